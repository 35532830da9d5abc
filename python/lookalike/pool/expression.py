"""A filter's text as a small tree of comparisons: `country in ('DE', 'AT') and age >= '3'`.

SQL's grammar by sqlglot; everything but what `parse` lists is refused. Knows no fields, vocabularies or rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from lookalike.errors import InvalidInput

# Enough for an IN list of thousands; parsing this much takes about a second.
MAX_LENGTH = 65_536

Order: TypeAlias = Literal["<", "<=", ">", ">="]


@dataclass(frozen=True)
class In:
    """The field's value is one of `values`: `=` and `IN`."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Compare:
    field: str
    order: Order
    value: str


@dataclass(frozen=True)
class Like:
    field: str
    pattern: str


@dataclass(frozen=True)
class Contains:
    """One of the values of a multi-valued field is `value`."""

    field: str
    value: str


@dataclass(frozen=True)
class IsNull:
    field: str


@dataclass(frozen=True)
class Not:
    operand: Expression


@dataclass(frozen=True)
class And:
    operands: tuple[Expression, ...]


@dataclass(frozen=True)
class Or:
    operands: tuple[Expression, ...]


Expression: TypeAlias = In | Compare | Like | Contains | IsNull | Not | And | Or

_ORDERS: Mapping[type[exp.Expr], Order] = {exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}
_MIRRORED: Mapping[Order, Order] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def parse(text: str) -> Expression:
    """The tree of a filter.

    Fields (in double quotes where a name needs them) compared with values by `= != <> < <= > >=`, `[NOT] IN (...)`,
    `[NOT] BETWEEN x AND y`, `[NOT] LIKE 'pattern'`, `IS [NOT] NULL`; `contains(field, 'value')` for multi-valued
    fields; `NOT`, `AND`, `OR` and parentheses. Values are text in single quotes, numbers, or true and false.

    Raises:
        InvalidInput: anything else; field "filter".
    """
    if len(text) > MAX_LENGTH:
        raise _refused(f"the filter has {len(text):,} characters, more than {MAX_LENGTH:,}: use exclusions instead")
    try:
        return _expression(sqlglot.parse_one(text, into=exp.Condition, dialect="duckdb"))
    except SqlglotError as error:
        raise _refused(f"the filter cannot be read{_place(error)}; write it as: country in ('DE', 'AT')") from error
    except RecursionError as error:
        raise _refused("the filter is nested too deeply: use fewer parentheses") from error


def canonical(expression: Expression) -> str:
    """The one text of a tree; `parse` is its inverse."""
    match expression:
        case In(field, values):
            listed = ", ".join(_text(value) for value in values)
            return f"{_name(field)} = {listed}" if len(values) == 1 else f"{_name(field)} IN ({listed})"
        case Compare(field, order, value):
            return f"{_name(field)} {order} {_text(value)}"
        case Like(field, pattern):
            return f"{_name(field)} LIKE {_text(pattern)}"
        case Contains(field, value):
            return f"contains({_name(field)}, {_text(value)})"
        case IsNull(field):
            return f"{_name(field)} IS NULL"
        case Not(operand):
            return f"NOT {_within(operand)}"
        case And(operands):
            return " AND ".join(map(_within, operands))
        case Or(operands):
            return " OR ".join(map(_within, operands))


def _within(expression: Expression) -> str:
    text = canonical(expression)
    return f"({text})" if isinstance(expression, And | Or | Not) else text


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(field: str) -> str:
    return '"' + field.replace('"', '""') + '"'


def _expression(node: exp.Expr) -> Expression:
    match node:
        case exp.Paren():
            return _expression(node.this)
        case exp.And() | exp.Or():
            kind = And if isinstance(node, exp.And) else Or
            parts: list[Expression] = []
            for operand in node.flatten():
                part = _expression(operand)
                parts.extend(part.operands if isinstance(part, kind) else (part,))
            return kind(tuple(parts))
        case exp.Not():
            return _negated(_expression(node.this))
    return _leaf(node)


def _leaf(node: exp.Expr) -> Expression:
    match node:
        case exp.EQ() | exp.NEQ():
            field, value, _ = _sides(node)
            return _negated(In(field, (value,)), unless=isinstance(node, exp.EQ))
        case exp.LT() | exp.LTE() | exp.GT() | exp.GTE():
            field, value, mirrored = _sides(node)
            order = _ORDERS[type(node)]
            return Compare(field, _MIRRORED[order] if mirrored else order, value)
        case exp.In():
            _only(node, "this", "expressions")
            values = sorted({_value(value, node) for value in node.expressions})
            if not values:
                raise _refused(f"the list in {_shown(node)} is empty")
            return In(_field(node.this, node), tuple(values))
        case exp.Between():
            _only(node, "this", "low", "high")
            field = _field(node.this, node)
            low, high = (_value(node.args[name], node) for name in ("low", "high"))
            return And((Compare(field, ">=", low), Compare(field, "<=", high)))
        case exp.Like():
            _only(node, "this", "expression", "negate")
            like = Like(_field(node.this, node), _value(node.expression, node))
            return _negated(like, unless=not node.args.get("negate"))
        case exp.Is():
            _only(node, "this", "expression")
            negated = isinstance(node.expression, exp.Not)
            if not isinstance(node.expression.this if negated else node.expression, exp.Null):
                raise _refused(f"{_shown(node)}: IS takes NULL only")
            return _negated(IsNull(_field(node.this, node)), unless=not negated)
        case exp.Contains() | exp.ArrayContains():
            _only(node, "this", "expression")
            return Contains(_field(node.this, node), _value(node.expression, node))
    raise _refused(
        f"{_shown(node)} is no comparison a filter may hold; there are = != < <= > >= IN, BETWEEN, LIKE, IS NULL, "
        "contains(field, 'value'), AND, OR and NOT"
    )


def _negated(expression: Expression, *, unless: bool = False) -> Expression:
    if unless:
        return expression
    return expression.operand if isinstance(expression, Not) else Not(expression)


def _sides(node: exp.Expr) -> tuple[str, str, bool]:
    """Field, value, and whether the value stands on the left."""
    _only(node, "this", "expression")
    left, right = node.this.unnest(), node.expression.unnest()
    mirrored = not isinstance(left, exp.Column) and isinstance(right, exp.Column)
    field, value = (right, left) if mirrored else (left, right)
    return _field(field, node), _value(value, node), mirrored


def _field(node: exp.Expr, within: exp.Expr) -> str:
    if not isinstance(node, exp.Column) or not isinstance(node.this, exp.Identifier):
        raise _refused(f"{_shown(within)} does not compare a field; write: field = 'value'")
    _only(node, "this")
    return node.name


def _value(node: exp.Expr | None, within: exp.Expr) -> str:
    negative = isinstance(node, exp.Neg)
    if negative and node is not None:
        node = node.this
    if isinstance(node, exp.Boolean) and not negative:
        return "true" if node.this else "false"
    if isinstance(node, exp.Literal) and not (negative and node.is_string):
        return f"-{node.this}" if negative else str(node.this)
    hint = "; write IS NULL" if isinstance(node, exp.Null) else ""
    raise _refused(f"{_shown(within)} does not compare with a value: text in single quotes, or a number{hint}")


def _only(node: exp.Expr, *names: str) -> None:
    """Refuses a node that says more than we read."""
    more = [name for name, value in node.args.items() if name not in names and value]
    if more:
        raise _refused(f"{_shown(node)} says more than a filter may: {', '.join(more)}")


def _shown(node: exp.Expr) -> str:
    text = node.sql(dialect="duckdb", comments=False)
    data = text.encode(errors="replace")
    return text if len(data) <= 80 else data[:77].decode(errors="ignore") + "..."


def _place(error: SqlglotError) -> str:
    details = getattr(error, "errors", None)
    if details and details[0].get("highlight"):
        return f" at '{details[0]['highlight'][:40]}' (line {details[0].get('line')}, column {details[0].get('col')})"
    return ""


def _refused(message: str) -> InvalidInput:
    return InvalidInput(message, field="filter", reason="INVALID_FILTER")
