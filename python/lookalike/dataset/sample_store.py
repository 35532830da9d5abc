"""`samples.parquet` in memory, grouped by campaign and stage once, so that a campaign's rows are one slice.

Knows the file's columns; which campaigns exist it is told.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.dataset.parquet import ParquetSource
from lookalike.errors import InvalidInput, SchemaError
from lookalike.schema import as_ids, id_type, require_column

STAGES = ("seed", "audience")
_FILE = "samples.parquet"


class SampleStore:
    """Rows sorted by (campaign, stage), in file order within: user ids, labels, and where each group starts."""

    def __init__(self, user_ids: pa.Array, labels: npt.NDArray[np.int8], starts: npt.NDArray[np.int64]) -> None:
        self._user_ids = user_ids
        self._labels = labels
        self._starts = starts  # [campaigns * 2 + 1]; group = campaign row * 2 + stage

    def get(self, campaign_row: int, stage: str) -> tuple[pa.Array, npt.NDArray[np.int8]]:
        """User ids `[n]` and labels `[n]`, shared with the store.

        Raises:
            InvalidInput: `stage` is neither seed nor audience.
        """
        if stage not in STAGES:
            raise InvalidInput(f"stage must be one of {', '.join(STAGES)}, not {stage!r}", field="stage")
        group = campaign_row * len(STAGES) + STAGES.index(stage)
        start, stop = int(self._starts[group]), int(self._starts[group + 1])
        return self._user_ids.slice(start, stop - start), self._labels[start:stop]

    @staticmethod
    def check_columns(schema: pa.Schema, user_id_type: pa.DataType, campaign_id_type: pa.DataType) -> None:
        """Check names and types.

        Raises:
            SchemaError: a column is missing, of a wrong type, or its ids are of another type than where they come from.
        """
        for name, expected, home in (
            ("campaign_id", campaign_id_type, "campaigns.parquet"),
            ("user_id", user_id_type, "users.parquet"),
        ):
            where = f"{_FILE}:{name}"
            found = id_type(require_column(schema, name, where=_FILE).type, where=where)
            if found != expected:
                raise SchemaError(
                    f"'{where}' is {found}, but {home} has {name} as {expected}: cast one of them", field=where
                )
        label = require_column(schema, "label", where=_FILE).type
        if not (pa.types.is_integer(label) or pa.types.is_boolean(label)):
            raise SchemaError(f"'{_FILE}:label' must be an integer, 0 or 1, not {label}", field=f"{_FILE}:label")
        stage = require_column(schema, "stage", where=_FILE).type
        text = stage.value_type if pa.types.is_dictionary(stage) else stage
        if not (pa.types.is_string(text) or pa.types.is_large_string(text)):
            raise SchemaError(f"'{_FILE}:stage' must be a string, not {stage}", field=f"{_FILE}:stage")

    @staticmethod
    def read(path: Path, campaign_ids: pa.ChunkedArray, user_id_type: pa.DataType) -> SampleStore:
        """Read and group the file.

        Raises:
            InvalidInput: nulls, labels other than 0 and 1, other stages, or campaigns not among `campaign_ids`.
        """
        source = ParquetSource.open(path)
        known = campaign_ids.combine_chunks()
        users: list[pa.Array] = []
        labels = np.empty(source.rows, np.int8)
        groups = np.empty(source.rows, np.int32)
        row = 0
        # Batch by batch, so that the file's wide columns never stand in memory whole.
        for batch in source.batches(["campaign_id", "user_id", "label", "stage"], batch_rows=1 << 20):
            for column, name in zip(batch.columns, batch.schema.names, strict=True):
                if column.null_count:
                    raise InvalidInput(f"'{_FILE}:{name}' holds nulls; every row needs one", field=f"{_FILE}:{name}")
            part = slice(row, row + batch.num_rows)
            labels[part] = _labels(batch["label"])
            groups[part] = _positions(batch["campaign_id"], known, "campaign_id", "a campaign of campaigns.parquet")
            groups[part] *= len(STAGES)
            groups[part] += _positions(
                batch["stage"], pa.array(STAGES, pa.large_string()), "stage", "'seed' or 'audience'"
            )
            users.append(as_ids(batch["user_id"], where=f"{_FILE}:user_id"))
            row += batch.num_rows
        user_ids = pa.concat_arrays(users) if users else pa.array([], user_id_type)
        if np.any(groups[1:] < groups[:-1]):
            order = np.argsort(groups, kind="stable")
            groups, labels, user_ids = groups[order], labels[order], user_ids.take(pa.array(order))
        starts = np.searchsorted(groups, np.arange(len(known) * len(STAGES) + 1))
        labels.flags.writeable = False
        return SampleStore(user_ids, labels, starts.astype(np.int64))


def _labels(column: pa.Array) -> npt.NDArray[np.int8]:
    numbers: npt.NDArray[np.int64] = pc.cast(column, pa.int64()).to_numpy(zero_copy_only=False)
    wrong = numbers[(numbers != 0) & (numbers != 1)]
    if wrong.size:
        raise InvalidInput(f"'{_FILE}:label' holds {wrong[0]}; labels are 0 and 1", field=f"{_FILE}:label")
    return numbers.astype(np.int8)


def _positions(column: pa.Array, known: pa.Array, name: str, expected: str) -> npt.NDArray[np.int32]:
    """Where in `known` each value is.

    Raises:
        InvalidInput: a value is not in `known`.
    """
    values = as_ids(column, where=f"{_FILE}:{name}")
    found = pc.index_in(values, value_set=known)
    if found.null_count:
        value = values.filter(pc.is_null(found))[0].as_py()
        raise InvalidInput(f"'{_FILE}:{name}' holds {value!r}, which is not {expected}", field=f"{_FILE}:{name}")
    positions: npt.NDArray[np.int32] = found.to_numpy(zero_copy_only=True)
    return positions
