"""Synthetic pools of any size, straight to shards: users of a profile, made, written and hashed side by side.

Knows the profiles and shards; no Parquet and no sorting, for the users come in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from lookalike.dataset.profiles import BLOCK_USERS, Population, Profile
from lookalike.errors import InvalidInput
from lookalike.files import file_digest, require_space, staged_folder
from lookalike.pool.ingest import SHARD_ROWS
from lookalike.pool.manifest import Manifest, Shard
from lookalike.pool.shard import ID_TYPES, arrow_schema, to_arrow, write
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns, Ids

ProgressCallback = Callable[[int, int], None]

_ID_TYPE = "int64"
# One makes users while the other writes and hashes; each holds a shard, which for `tencent` is half a GiB.
_THREADS = 2


def simulate_pool(
    output: Path,
    profile: Profile,
    *,
    users: int,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
    shard_rows: int = SHARD_ROWS,
    threads: int = _THREADS,
) -> Pool:
    """Write a snapshot of the first `users` users of a profile and open it; on any failure nothing is left behind.

    The same as ingesting the users of the profile's data set with the profile's schema, whatever the threads.

    Args:
        progress: called with (users written, users in all) after each shard; raise from it to stop.
        overwrite: replace an existing `output`.
        shard_rows: users of a shard.
        threads: shards made at a time; memory is less than two shards for each.

    Raises:
        InvalidInput: `users`, `seed`, `shard_rows` or `threads` is no sensible number. AlreadyExists: `output` exists.
        ResourceExhausted: the disk has not so much space; nothing was written.
    """
    for name, value in (("users", users), ("shard_rows", shard_rows), ("threads", threads)):
        if value < 1:
            raise InvalidInput(f"{name} must be 1 or more, not {value}", field=name)
    population = Population(profile, seed)
    with staged_folder(Path(output), overwrite=overwrite) as folder:
        require_space(folder.parent, pool_bytes(population, users), purpose=f"a pool of {users:,} users")
        writer = _Writer(population, folder, users, shard_rows)
        shards: list[Shard] = []
        with ThreadPoolExecutor(threads, thread_name_prefix="simulate") as executor:
            try:
                for shard in executor.map(writer.write, range(-(-users // shard_rows))):
                    shards.append(shard)
                    if progress is not None:
                        progress(shard.first_row + shard.rows, users)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)  # those under way are waited for by the block
                raise
        now = datetime.now(UTC).isoformat(timespec="seconds")
        Manifest(
            id_type=_ID_TYPE, rows=users, schema=profile.schema, shards=tuple(shards), created=now, as_of=now
        ).write(folder)
    return Pool.open(Path(output))


def pool_bytes(population: Population, users: int) -> int:
    """What a pool of so many users takes on disk, within a hundredth: as its first users do."""
    user_ids, columns = population.block(0)
    arrays = [user_ids, *columns.ids.values(), *columns.offsets.values()]
    return -(-users * sum(array.nbytes for array in arrays) // BLOCK_USERS)


class _Writer:
    """Makes and writes shards; on any thread, in any order."""

    def __init__(self, population: Population, folder: Path, users: int, shard_rows: int) -> None:
        self._population = population
        self._folder = folder
        self._users = users
        self._shard_rows = shard_rows
        self._columns = arrow_schema(population.schema, ID_TYPES[_ID_TYPE])

    def write(self, number: int) -> Shard:
        """Write shard `number`."""
        first = number * self._shard_rows
        stop = min(first + self._shard_rows, self._users)
        path = self._folder / f"users-{number:05d}.arrow"
        batch = self._batch(first, stop)
        write(path, batch)
        size = path.stat().st_size
        return Shard(file=path.name, first_row=first, rows=stop - first, bytes=size, sha256=file_digest(path))

    def _batch(self, first: int, stop: int) -> pa.RecordBatch:
        rows = stop - first
        schema = self._population.schema
        user_ids = np.empty(rows, np.int64)
        ids: dict[str, Ids] = {field.name: np.empty(rows, field.dtype) for field in schema.single}
        offsets = {field.name: np.zeros(rows + 1, np.int64) for field in schema.multi}
        values: dict[str, list[Ids]] = {field.name: [] for field in schema.multi}
        at = 0
        for some, columns in self._population.blocks(first, stop):
            end = at + len(some)
            user_ids[at:end] = some
            for field in schema.single:
                ids[field.name][at:end] = columns.ids[field.name]
            for name, into in offsets.items():
                starts = columns.offsets[name]
                np.add(starts[1:], into[at] - starts[0], out=into[at + 1 : end + 1])
                values[name].append(columns.ids[name][starts[0] : starts[-1]])
            at = end
        ids |= {name: np.concatenate(parts) for name, parts in values.items()}
        return to_arrow(pa.array(user_ids), EncodedColumns(rows, ids, offsets), self._columns)
