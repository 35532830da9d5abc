"""The people of an order, its seeds and exclusions: in the operation's record while it waits, in files when it runs.

A record is stored in one go, and with it its people: files would have to be on the disk before it, each of them and
the names of their folders too, which takes longer than all else that accepting does. Many are files from the start.

Knows Parquet and files; knows no database.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.files import staged_folder

SEEDS_NAME = "seeds.parquet"
EXCLUSIONS_NAME = "exclusions.parquet"
PREVIOUS_NAME = "previous.parquet"
# Of a record: some 30,000 integer ids. Sending more takes longer than files do.
MOST_BYTES = 256 * 1024


@dataclass(frozen=True)
class People:
    """Parquet files with a column `user_id`, as bytes; `exclusions`: None: nobody.

    `previous`: members of the audience that is refreshed, if one is.
    """

    seeds: bytes
    exclusions: bytes | None
    previous: bytes | None = None

    @staticmethod
    def of(seeds: pa.Array, exclusions: pa.Array, previous: pa.Array | None = None) -> People:
        """Those of an order."""
        return People(
            _parquet(seeds),
            _parquet(exclusions) if len(exclusions) else None,
            _parquet(previous) if previous is not None else None,
        )

    @property
    def few(self) -> bool:
        """Whether a record may hold them; it has no place for former members."""
        return self.previous is None and len(self.seeds) + len(self.exclusions or b"") <= MOST_BYTES

    def write(self, folder: Path) -> None:
        """As files of a new folder, and on the disk when this returns.

        Raises:
            AlreadyExists: `folder` exists.
        """
        with staged_folder(folder) as staged:
            (staged / SEEDS_NAME).write_bytes(self.seeds)
            if self.exclusions is not None:
                (staged / EXCLUSIONS_NAME).write_bytes(self.exclusions)
            if self.previous is not None:
                (staged / PREVIOUS_NAME).write_bytes(self.previous)


def _parquet(ids: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    # Seeds differ from each other, and their file is read once.
    pq.write_table(pa.table({"user_id": ids}), sink, use_dictionary=False, write_statistics=False)
    written: bytes = sink.getvalue().to_pybytes()
    return written
