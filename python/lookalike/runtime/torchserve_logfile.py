"""A log file for each TorchServe, whoever started it: none is shared. Knows the file system only."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO


class LogFile:
    """`path`, or, while another TorchServe writes to that, `path` with -2, -3, ... before its suffix.

    Which is free a lock on the file tells, of this process and of others; it goes with `release` or with the process.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # the data folder: people will lie in it
        number = 1
        while True:
            self.path = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
            self._file: BinaryIO = self.path.open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                number += 1
            except BaseException:
                self._file.close()
                raise
            else:
                return

    def release(self) -> None:
        """Another TorchServe may have it."""
        self._file.close()
