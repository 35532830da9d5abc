"""Fields, vocabularies and encoded columns: how raw features become small integers.

Id 0 is *missing* (null, empty list, NaN), id 1 is *unknown* (a value the vocabulary lacks); real values start at 2.
Both special ids have trained embeddings. Knows only `errors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import SchemaError, quoted
from lookalike.stretches import places

MISSING_ID = 0
UNKNOWN_ID = 1
FIRST_VALUE_ID = 2

Ids = npt.NDArray[np.unsignedinteger[Any]]
Offsets = npt.NDArray[np.int64]
FeatureValue = str | int | float | Sequence[str | int] | None


class FieldKind(StrEnum):
    CATEGORICAL = "categorical"
    MULTI = "multi"
    NUMERIC = "numeric"


@dataclass(frozen=True)
class Field:
    """One feature and its vocabulary.

    `values` holds the known values of a categorical or multi-valued field as text, in id order (id = index + 2);
    `boundaries` the inner bin edges of a numeric one, ascending (id = 2 + number of edges <= value).
    """

    name: str
    kind: FieldKind
    values: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of ids, missing and unknown included: the rows of the embedding table."""
        return FIRST_VALUE_ID + self.known

    @property
    def known(self) -> int:
        """Number of values, or of bins."""
        return len(self.boundaries) + 1 if self.kind is FieldKind.NUMERIC else len(self.values)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Narrowest unsigned integer that holds every id."""
        return np.min_scalar_type(self.size - 1)

    @cached_property
    def _lookup(self) -> pa.Array:
        return pa.array(self.values, pa.large_string())

    def encode(self, column: pa.Array | pa.ChunkedArray, *, where: str) -> tuple[Ids, Offsets | None]:
        """Ids of a column: `[rows]` and None, or for a multi-valued field `[values]` and offsets `[rows + 1]`.

        An empty or null list has no ids: its row of `offsets` is empty, and the model reads it as missing.

        Raises:
            SchemaError: the column's type does not fit the field's kind; `where` names the column.
        """
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        self.require_type(column.type, where=where)
        if self.kind is FieldKind.NUMERIC:
            return self._encode_numeric(column), None
        if self.kind is FieldKind.CATEGORICAL:
            return self._encode_text(column), None
        return self._encode_lists(column)

    def require_type(self, arrow_type: pa.DataType, *, where: str) -> None:
        """Check that a column of this type can be encoded.

        Raises:
            SchemaError: it does not fit the field's kind; `where` names the column.
        """
        found = kind_of(arrow_type, where=where)
        # A numeric field that was floating point when the schema was made may come as integers later.
        fits = found is self.kind or (self.kind is FieldKind.NUMERIC and pa.types.is_integer(arrow_type))
        if not fits and not pa.types.is_null(arrow_type):
            raise SchemaError(
                f"column '{where}' is {arrow_type}, which is {found.value}; the schema says {self.kind.value}: "
                "cast the column",
                field=where,
            )

    def _encode_numeric(self, column: pa.Array) -> Ids:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        numbers = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        ids = FIRST_VALUE_ID + np.searchsorted(np.asarray(self.boundaries, np.float64), numbers, side="right")
        ids[np.isnan(numbers)] = MISSING_ID
        return self._narrow(ids)

    def _encode_text(self, column: pa.Array) -> Ids:
        """Each distinct value is looked up once; rows take what was found."""
        if pa.types.is_null(column.type):
            return np.full(len(column), MISSING_ID, self.dtype)
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        text = pc.cast(column.dictionary, pa.large_string())
        known = pc.fill_null(pc.index_in(text, value_set=self._lookup), UNKNOWN_ID - FIRST_VALUE_ID)
        id_of = np.append(known.to_numpy(zero_copy_only=False).astype(np.int64) + FIRST_VALUE_ID, MISSING_ID)
        id_of[:-1][pc.is_null(text).to_numpy(zero_copy_only=False)] = MISSING_ID
        indices = pc.cast(column.indices, pa.int32())
        if indices.null_count:
            indices = pc.fill_null(indices, len(text))
        ids: Ids = self._narrow(id_of)[indices.to_numpy(zero_copy_only=True)]
        return ids

    def _narrow(self, ids: npt.NDArray[np.int64]) -> Ids:
        narrow: Ids = ids.astype(self.dtype)
        return narrow

    def _encode_lists(self, column: pa.Array) -> tuple[Ids, Offsets]:
        if pa.types.is_null(column.type):
            return np.zeros(0, self.dtype), np.zeros(len(column) + 1, np.int64)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        flat = pc.list_flatten(column)
        ids = self._encode_text(flat)
        offsets = np.zeros(len(column) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if flat.null_count:  # a null inside a list says nothing: drop it
            keep = ids != MISSING_ID
            kept = np.concatenate(([0], np.cumsum(keep)))
            ids, offsets = ids[keep], kept[offsets]
        return ids, offsets


def kind_of(arrow_type: pa.DataType, *, where: str) -> FieldKind:
    """The kind a column's Arrow type stands for: text, integers and booleans are categorical, floats numeric.

    Raises:
        SchemaError: no kind fits (structs, timestamps, nested lists, ...).
    """
    types = pa.types
    if types.is_dictionary(arrow_type):
        return kind_of(arrow_type.value_type, where=where)
    if types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type):
        if kind_of(arrow_type.value_type, where=where) is FieldKind.CATEGORICAL:
            return FieldKind.MULTI
    elif types.is_floating(arrow_type) or types.is_decimal(arrow_type):
        return FieldKind.NUMERIC
    elif (
        types.is_string(arrow_type)
        or types.is_large_string(arrow_type)
        or types.is_integer(arrow_type)
        or types.is_boolean(arrow_type)
        or types.is_null(arrow_type)
    ):
        return FieldKind.CATEGORICAL
    raise SchemaError(
        f"column '{where}' has type {arrow_type}; features are strings, integers, floats or lists of strings or "
        "integers: cast or drop it",
        field=where,
    )


@dataclass(frozen=True)
class EncodedColumns:
    """Encoded rows, column by column, in the schema's field order.

    `ids[field]` is `[rows]` for a single-valued field, `[values]` for a multi-valued one, whose row r holds
    `ids[field][offsets[field][r]:offsets[field][r + 1]]`. Offsets need not start at 0 (a slice shares its values).
    """

    length: int
    ids: Mapping[str, Ids]
    offsets: Mapping[str, Offsets]

    def slice(self, start: int, stop: int) -> EncodedColumns:
        """Rows `start:stop`, without a copy."""
        ids = {name: a if name in self.offsets else a[start:stop] for name, a in self.ids.items()}
        return EncodedColumns(stop - start, ids, {name: o[start : stop + 1] for name, o in self.offsets.items()})

    def only(self, fields: Collection[str]) -> EncodedColumns:
        """The same rows of these fields only, without a copy."""
        ids = {name: a for name, a in self.ids.items() if name in fields}
        return EncodedColumns(self.length, ids, {name: o for name, o in self.offsets.items() if name in fields})

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> EncodedColumns:
        """The rows named, in that order, copied."""
        ids: dict[str, Ids] = {}
        offsets: dict[str, Offsets] = {}
        for name, column in self.ids.items():
            if name not in self.offsets:
                ids[name] = column[rows]
                continue
            starts = self.offsets[name][rows]
            lengths = self.offsets[name][np.asarray(rows) + 1] - starts
            out = np.zeros(len(rows) + 1, np.int64)
            np.cumsum(lengths, out=out[1:])
            ids[name] = column[places(starts, lengths)]
            offsets[name] = out
        return EncodedColumns(len(rows), ids, offsets)

    @staticmethod
    def concat(parts: Sequence[EncodedColumns]) -> EncodedColumns:
        """All rows of `parts`, in order, copied. `parts` must not be empty and must share one schema."""
        ids: dict[str, Ids] = {}
        offsets: dict[str, Offsets] = {}
        for name in parts[0].ids:
            if name not in parts[0].offsets:
                ids[name] = np.concatenate([part.ids[name] for part in parts])
                continue
            ids[name] = np.concatenate(
                [part.ids[name][part.offsets[name][0] : part.offsets[name][-1]] for part in parts]
            )
            lengths = np.concatenate([np.diff(part.offsets[name]) for part in parts])
            offsets[name] = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        return EncodedColumns(sum(part.length for part in parts), ids, offsets)


@dataclass(frozen=True)
class FeatureSchema:
    """The fields of users or of campaigns, in order."""

    fields: tuple[Field, ...]

    @property
    def single(self) -> tuple[Field, ...]:
        """Fields with one id a row (categorical and numeric), in order."""
        return tuple(f for f in self.fields if f.kind is not FieldKind.MULTI)

    @property
    def multi(self) -> tuple[Field, ...]:
        """Multi-valued fields, in order."""
        return tuple(f for f in self.fields if f.kind is FieldKind.MULTI)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is its inverse."""
        return {
            "fields": [
                {"name": f.name, "kind": f.kind.value, "values": list(f.values), "boundaries": list(f.boundaries)}
                for f in self.fields
            ]
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> FeatureSchema:
        """Inverse of `to_json`.

        Raises:
            SchemaError: `data` is not what `to_json` writes.
        """
        try:
            return FeatureSchema(
                tuple(
                    Field(f["name"], FieldKind(f["kind"]), tuple(f["values"]), tuple(f["boundaries"]))
                    for f in data["fields"]
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(f"not a schema: {error!r}", field="schema") from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON: equal fingerprints encode alike."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def require_columns(self, columns: pa.Schema, *, where: str, beside: Collection[str] = ()) -> None:
        """Check that a table of these columns can be encoded.

        Args:
            beside: columns that are no features.

        Raises:
            SchemaError: columns are missing or of another type; the message names them all, and those left over.
        """
        missing = [field.name for field in self.fields if not columns.get_all_field_indices(field.name)]
        wrong = {}
        for field in self.fields:
            if field.name not in missing:
                found = require_column(columns, field.name, where=where)
                try:
                    field.require_type(found.type, where=f"{where}:{field.name}")
                except SchemaError:
                    wrong[field.name] = f"{field.name} ({found.type}, the schema says {field.kind.value})"
        if not missing and not wrong:
            return
        extra = sorted(set(columns.names) - {field.name for field in self.fields} - set(beside))
        parts = (("missing", missing), ("of another type", wrong.values()), ("not in the schema", extra))
        raise SchemaError(
            f"{where} does not fit the schema: "
            + "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
            + ". Rename or cast the columns, or train on what there is",
            field=f"{where}:{[*missing, *wrong][0]}",
        )

    def encode(self, table: pa.Table, *, where: str) -> EncodedColumns:
        """Encode every field of `table`; other columns are ignored. `where` names the table in errors.

        Raises:
            SchemaError: a column is missing or of a wrong type.
        """
        ids: dict[str, Ids] = {}
        offsets: dict[str, Offsets] = {}
        for field in self.fields:
            require_column(table.schema, field.name, where=where)
            encoded, starts = field.encode(table[field.name], where=f"{where}:{field.name}")
            ids[field.name] = encoded
            if starts is not None:
                offsets[field.name] = starts
        return EncodedColumns(table.num_rows, ids, offsets)

    def encode_features(self, features: Mapping[str, FeatureValue], *, where: str) -> EncodedColumns:
        """Encode one row given by name. Features left out are missing; names the schema lacks are an error.

        Raises:
            SchemaError: an unknown feature name, or a value of a wrong type.
        """
        known = {field.name: field for field in self.fields}
        for name in features:
            if name not in known:
                raise SchemaError(
                    f"unknown feature {quoted(name)}; this checkpoint knows {', '.join(known) or 'none'}",
                    field=f"{where}.{name}",
                )
        columns = {}
        for name, field in known.items():
            value = features.get(name)
            columns[name] = _one_row(field, value, where=f"{where}.{name}")
        return self.encode(pa.table(columns) if columns else pa.table({"_": [0]}), where=where)


def _one_row(field: Field, value: FeatureValue, *, where: str) -> pa.Array:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if value is None:
        return pa.nulls(1)
    if field.kind is FieldKind.MULTI:
        members: Iterable[Any] = value if is_list else [value]  # type: ignore[assignment]
        return pa.array([[_text(v) for v in members]], pa.large_list(pa.large_string()))
    if is_list:
        raise SchemaError(f"feature '{where}' takes one value, not a list", field=where)
    if field.kind is FieldKind.NUMERIC:
        try:
            return pa.array([float(value)], pa.float64())  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise SchemaError(f"feature '{where}' takes a number, not {quoted(str(value))}", field=where) from error
    return pa.array([_text(value)], pa.large_string())


def _text(value: object) -> str | None:
    """The text Arrow's cast gives the same value in a column: JSON turns 3 into 3.0, and Python writes True."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def id_type(arrow_type: pa.DataType, *, where: str) -> pa.DataType:
    """What a column of user or campaign ids is kept as: `pa.int64()` or `pa.large_string()`.

    Raises:
        SchemaError: neither integers nor strings; `where` names the column.
    """
    types = pa.types
    if types.is_dictionary(arrow_type):
        return id_type(arrow_type.value_type, where=where)
    if types.is_integer(arrow_type):
        return pa.int64()
    if types.is_string(arrow_type) or types.is_large_string(arrow_type):
        return pa.large_string()
    raise SchemaError(f"ids in '{where}' must be integers or strings, not {arrow_type}: cast the column", field=where)


def as_ids(column: pa.Array | pa.ChunkedArray, *, where: str) -> pa.Array | pa.ChunkedArray:
    """The column as `id_type` keeps it; nulls stay.

    Raises:
        SchemaError: neither integers nor strings, or an integer beyond 64 bits with a sign.
    """
    try:
        return pc.cast(column, id_type(column.type, where=where))
    except pa.ArrowException as error:
        raise SchemaError(f"ids in '{where}' must fit 64 bits with a sign: {error}", field=where) from error


def require_column(schema: pa.Schema, name: str, *, where: str) -> pa.Field:
    """The column's field.

    Raises:
        SchemaError: there is no such column, or more than one.
    """
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        problem = "is missing" if not found else "appears more than once"
        raise SchemaError(
            f"column '{name}' {problem} in {where}; it has {', '.join(schema.names)}", field=f"{where}:{name}"
        )
    return schema.field(found[0])
