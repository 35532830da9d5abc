"""The people of an order, its seeds and exclusions: in the operation's record while it waits, in files when it runs.

A record is stored in one go, and with it its people: files would have to be on the disk before it, each of them and
the names of their folders too, which takes longer than all else that accepting does. Many are files from the start.

Knows Parquet and files; knows no database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.files import sync, write_whole

SEEDS_NAME = "seeds.parquet"
EXCLUSIONS_NAME = "exclusions.parquet"
PREVIOUS_NAME = "previous.parquet"
NAME = re.compile(r"[a-z]+(\.parquet)?")  # none leads out of a folder
# Of a record: some 30,000 integer ids. Sending more takes longer than files do.
MOST_BYTES = 256 * 1024


@dataclass(frozen=True)
class People:
    """Parquet files with a column `user_id`, as bytes, by name."""

    files: Mapping[str, bytes]

    @staticmethod
    def of(ids: Mapping[str, pa.Array]) -> People:
        """User ids by the names of their files."""
        return People({name: _parquet(column) for name, column in ids.items()})

    @property
    def few(self) -> bool:
        """Whether a record may hold them."""
        return sum(map(len, self.files.values())) <= MOST_BYTES

    def write(self, folder: Path) -> None:
        """Into a folder, made if need be, and on the disk when this returns; files that are there already stay."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            if not (folder / name).exists():
                write_whole(folder / name, content)
        sync(folder.parent)


def _parquet(ids: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    # Seeds differ from each other, and their file is read once.
    pq.write_table(pa.table({"user_id": ids}), sink, use_dictionary=False, write_statistics=False)
    written: bytes = sink.getvalue().to_pybytes()
    return written
