"""Which users a filter lets in: every comparison once over its field's vocabulary, then tables applied to the ids.

SQL's three-valued logic: a comparison with a missing value is neither true nor false, and who is eligible is who the
whole filter is true for. Knows pools and expressions.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property, reduce
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import DataCorrupted, InvalidInput, quoted
from lookalike.pool.bitmap import Bitmap, empty_bitmap
from lookalike.pool.expression import (
    And,
    Compare,
    Contains,
    Expression,
    In,
    IsNull,
    Like,
    Not,
    Or,
    Order,
    canonical,
    parse,
)
from lookalike.pool.snapshot import Pool
from lookalike.schema import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID, EncodedColumns, FeatureSchema, Field, FieldKind

# Kleene's logic in integers: AND is the minimum, OR the maximum, NOT 2 - x.
FALSE, NEITHER, TRUE = 0, 1, 2
# A multiple of 8, so that blocks share no byte of a bitmap; ids widened for indexing stay within L2.
BLOCK_ROWS = 1 << 16

Truth: TypeAlias = npt.NDArray[np.uint8]
_Rows: TypeAlias = Callable[[EncodedColumns], Truth]

_ORDERS: Mapping[Order, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_INTEGER = re.compile(r"-?[0-9]+")


class Filter:
    """A checked filter of one schema's fields.

    Values are compared as text, by code points; as numbers where every value of the field's vocabulary is an integer.
    A value that no vocabulary holds is *unknown*: it equals none that a filter may name, and whether it is less or
    greater, or LIKE something, is neither true nor false. A numeric field is kept in bins: it can be compared by
    `>=` and `<` at their edges only.

    Attributes:
        text: the canonical form: equal texts, equal filters.
    """

    def __init__(self, text: str, schema: FeatureSchema) -> None:
        """Check the filter against the fields.

        Raises:
            InvalidInput: it cannot be read, names an unknown field, or compares it with what it cannot be; field
                "filter".
        """
        expression = parse(text)
        self.text = canonical(expression)
        known = {field.name: _Vocabulary(field) for field in schema.fields}
        self._rows = _compiled(expression, known)
        self._fields = _fields(expression)

    def passes(self, users: EncodedColumns) -> npt.NDArray[np.bool_]:
        """Which of the users, with all fields of the schema, the filter is true for: `[users]`."""
        passing: npt.NDArray[np.bool_] = self._rows(users) == TRUE
        return passing

    def ineligible(self, pool: Pool, threads: int = 1) -> Bitmap:
        """The rows the filter is not true for.

        Raises:
            DataCorrupted: the pool holds an id that its schema lacks.
        """
        bitmap = empty_bitmap(pool.num_users)

        def fill(start: int) -> None:
            stop = min(start + BLOCK_ROWS, pool.num_users)
            try:
                truth = self._rows(pool.read(start, stop, self._fields))
            except IndexError as error:
                raise DataCorrupted(
                    f"{pool.path} holds an id beyond its vocabulary: ingest it again", field="pool"
                ) from error
            bitmap[start >> 3 : (stop + 7) >> 3] = np.packbits(truth != TRUE, bitorder="little")

        with ThreadPoolExecutor(threads, thread_name_prefix="filter") as workers:
            for _ in workers.map(fill, range(0, pool.num_users, BLOCK_ROWS)):
                pass
        return bitmap


@dataclass(frozen=True)
class _Table:
    """Truth by id of one single-valued field; tables of one field merge before a row is looked at."""

    field: str
    truth: Truth

    def __call__(self, users: EncodedColumns) -> Truth:
        return self.truth.take(users.ids[self.field])


@dataclass(frozen=True)
class _Lists:
    """Of a multi-valued field: whether any id of a row is marked; `empty` is said of a row without ids."""

    field: str
    marked: Truth
    empty: int

    def __call__(self, users: EncodedColumns) -> Truth:
        offsets = users.offsets[self.field]
        hits = self.marked.take(users.ids[self.field][offsets[0] : offsets[-1]])
        before = np.concatenate(([0], np.cumsum(hits, dtype=np.int64)))[offsets - offsets[0]]
        found = np.where(np.diff(before) > 0, np.uint8(TRUE), np.uint8(FALSE))
        found[np.diff(offsets) == 0] = self.empty
        return found


def _compiled(expression: Expression, known: Mapping[str, _Vocabulary]) -> _Rows:
    match expression:
        case Not(operand):
            return _inverted(_compiled(operand, known))
        case And(operands):
            return _joined(np.minimum, [_compiled(part, known) for part in operands])
        case Or(operands):
            return _joined(np.maximum, [_compiled(part, known) for part in operands])
    vocabulary = known.get(expression.field)
    if vocabulary is None:
        near = difflib.get_close_matches(expression.field, known, 1, 0.5) or list(known)
        raise _refused(f"the pool has no field {quoted(expression.field)}; it has {', '.join(near)}")
    return vocabulary.rows(expression)


def _fields(expression: Expression) -> frozenset[str]:
    """The fields it compares."""
    match expression:
        case Not(operand):
            return _fields(operand)
        case And(operands) | Or(operands):
            return frozenset[str]().union(*map(_fields, operands))
    return frozenset({expression.field})


def _inverted(rows: _Rows) -> _Rows:
    if isinstance(rows, _Table):
        return _Table(rows.field, TRUE - rows.truth)
    return lambda users: TRUE - rows(users)


def _joined(join: Callable[[Truth, Truth], Truth], parts: list[_Rows]) -> _Rows:
    tables: dict[str, _Table] = {}
    others: list[_Rows] = []
    for part in parts:
        if not isinstance(part, _Table):
            others.append(part)
        elif part.field in tables:
            tables[part.field] = _Table(part.field, join(tables[part.field].truth, part.truth))
        else:
            tables[part.field] = part
    left: list[_Rows] = [*tables.values(), *others]
    return left[0] if len(left) == 1 else lambda users: reduce(join, (part(users) for part in left))


class _Vocabulary:
    """A field, and what is true of each of its ids."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def rows(self, leaf: In | Compare | Like | Contains | IsNull) -> _Rows:
        multi = self.field.kind is FieldKind.MULTI
        match leaf:
            case IsNull():
                if multi:
                    return _Lists(self.field.name, np.zeros(self.field.size, np.uint8), TRUE)
                truth = np.zeros(self.field.size, np.uint8)
                truth[MISSING_ID] = TRUE
                return _Table(self.field.name, truth)
            case Contains(_, value):
                if not multi:
                    raise _refused(
                        f"'{self.field.name}' has one value a user: write {self.field.name} = {quoted(value)}"
                    )
                marked = np.zeros(self.field.size, np.uint8)
                marked[self._ids((value,))] = 1
                return _Lists(self.field.name, marked, NEITHER)
        if multi:
            raise _refused(f"'{self.field.name}' has several values a user: write contains({self.field.name}, 'value')")
        truth = np.full(self.field.size, FALSE, np.uint8)
        truth[MISSING_ID] = NEITHER
        if self.field.kind is FieldKind.NUMERIC:
            self._bins(leaf, truth)
            return _Table(self.field.name, truth)
        match leaf:
            case In(_, values):
                truth[self._ids(values)] = TRUE
            case Compare(_, order, value):
                truth[UNKNOWN_ID] = NEITHER
                truth[FIRST_VALUE_ID:] = TRUE * self._compared(order, value)
            case Like(_, pattern):
                truth[UNKNOWN_ID] = NEITHER
                like = pc.match_like(pa.array(self.field.values, pa.large_string()), pattern)
                truth[FIRST_VALUE_ID:] = TRUE * like.to_numpy(zero_copy_only=False)
        return _Table(self.field.name, truth)

    @cached_property
    def _numbers(self) -> list[int] | None:
        """The vocabulary as integers, if it holds nothing else."""
        values = self.field.values
        return [int(value) for value in values] if values and all(map(_INTEGER.fullmatch, values)) else None

    @cached_property
    def _ids_by_value(self) -> dict[Any, list[int]]:
        found: dict[Any, list[int]] = {}
        for number, value in enumerate(self._numbers or self.field.values, FIRST_VALUE_ID):
            found.setdefault(value, []).append(number)
        return found

    def _key(self, value: str) -> Any:
        return value if self._numbers is None else self._number(value)

    def _number(self, value: str) -> Decimal:
        try:
            number = Decimal(value)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            raise _refused(f"'{self.field.name}' holds integers only: compare it with a number, not {quoted(value)}")
        return number

    def _ids(self, values: tuple[str, ...]) -> list[int]:
        """Ids of values. One that the vocabulary lacks cannot be told from other unknown values, so it is refused."""
        ids: list[int] = []
        for value in values:
            found = self._ids_by_value.get(self._key(value))
            if found is None:
                raise _refused(f"{quoted(value)} is no known value of '{self.field.name}'{self._near(value)}")
            ids += found
        return ids

    def _near(self, value: str) -> str:
        # difflib takes microseconds a value; a vocabulary of a million would keep the caller waiting.
        by_lower = {known.lower(): known for known in self.field.values[:10_000]}
        close = difflib.get_close_matches(value.lower(), by_lower, 3, 0.5)
        near = [by_lower[name] for name in close] or self.field.values[:3]
        return f"; there are {', '.join(map(quoted, near))}, ..." if near else ""

    def _compared(self, order: Order, value: str) -> npt.NDArray[np.bool_]:
        holds, key = _ORDERS[order], self._key(value)
        return np.fromiter((holds(v, key) for v in self._numbers or self.field.values), np.bool_)

    def _bins(self, leaf: In | Compare | Like | Contains | IsNull, truth: Truth) -> None:
        name, edges = self.field.name, self.field.boundaries
        if not isinstance(leaf, Compare):
            raise _refused(f"'{name}' is numeric and kept in bins: compare it by >= or <, at a bin's edge")
        try:
            value = float(leaf.value)
        except ValueError:
            value = float("nan")
        if np.isnan(value):
            raise _refused(f"'{name}' is numeric: compare it with a number, not {quoted(leaf.value)}")
        place = int(np.searchsorted(edges, value))
        if place == len(edges) or edges[place] != value:
            near = ", ".join(repr(edge) for edge in edges[max(place - 1, 0) : place + 1]) or "none"
            raise _refused(
                f"'{name}' is kept in bins, and {quoted(leaf.value)} is no edge of one; the nearest edges: {near}"
            )
        if leaf.order not in {">=", "<"}:
            raise _refused(
                f"'{name}' is kept in bins that begin at their edge: {leaf.order} {quoted(leaf.value)} cannot be told; "
                "write >= or <"
            )
        above = FIRST_VALUE_ID + place + 1  # id = FIRST_VALUE_ID + number of edges <= value
        truth[UNKNOWN_ID] = NEITHER
        truth[FIRST_VALUE_ID:above] = FALSE if leaf.order == ">=" else TRUE
        truth[above:] = TRUE if leaf.order == ">=" else FALSE


def _refused(message: str) -> InvalidInput:
    return InvalidInput(message, field="filter", reason="INVALID_FILTER")
