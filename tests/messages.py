"""Test help: hypothesis strategies of protobuf messages, made from their descriptors, so that a field that is added is
tried from then on.

`messages` makes any message of a kind; `broken` takes a right one and makes one thing in it something else; `damaged`
are bytes that once were a message. `words` are texts that mean something to the server: names, tokens, paths, filters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

Words = tuple[str, ...]
Path = tuple[FieldDescriptor, ...]

# Deeper than anything ours; messages that hold themselves must end somewhere.
MAX_DEPTH = 5
# Of one repeated field.
MAX_BYTES = 2**20

TEXTS: Words = (
    "", " ", "\t\r\n", "\0", "a\0b", ".", "..", "/", "../..", "../../../../etc/passwd", "/etc/passwd", "a/../../b",
    "..\\..\\windows", "%2e%2e%2f", "file:///etc/passwd", "/proc/self/environ", "/dev/zero", "~root", "-rf", "null",
    "None", "nan", "{}", "[]", "[[" * 500, '{"a":' * 500, "%s%n%x", "${jndi:ldap://x}", "{0.__class__}", "$(id)",
    "`id`", "; DROP TABLE operations; --", "' OR '1'='1", '"', "'", "\\", "((((", "((" * 400, "NOT " * 300, "a = ",
    "1e999", "-1", "0x10", "9" * 400, "\x1b[31m", "\u202e", "\u200b", "\ufeff", "e\u0301" * 50, "\ufdfa" * 100,
    "\U0001d4b3", "\U0001f469\u200d\U0001f467", "\u017f", "\u0130", "\ufffe\uffff", "\U0010ffff", "x" * 129, "x" * 257,
    "x" * 5000, "\xfc" * 70_000, "\x7f\x80\x9f",
)  # fmt: skip
BYTES = (b"", b"\0", b"\xff\xfe", bytes(range(256)), b"x" * 70_000)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan, 1.0000000001)
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_EDGES = (
    0,
    1,
    -1,
    2,
    7,
    1000,
    10_000,
    10_001,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**32,
    2**53,
    2**63 - 1,
    2**64 - 1,
)


def texts(words: Words = ()) -> st.SearchStrategy[str]:
    """Texts that mean something, nearly so, or nothing at all."""
    known = st.sampled_from(words or TEXTS)
    changed = st.builds(
        lambda text, at, put, drop: text[: at % (len(text) + 1)] + put + text[at % (len(text) + 1) + drop :],
        known,
        st.integers(0, 100),
        st.sampled_from(("", "x", "/", "\0", "..", " ", "%", "ü", "\n", "'", '"', "A" * 300)),
        st.integers(0, 3),
    )
    return st.one_of(known, changed, st.sampled_from(TEXTS), st.text(max_size=12))


def messages(kind: Descriptor, words: Words = (), depth: int = 0) -> st.SearchStrategy[Message]:
    """Any message of the kind. A field is left out, or has any value its type can have."""
    if depth >= MAX_DEPTH or not kind.fields:
        return st.builds(GetMessageClass(kind))
    values = {field: _values(field, words, depth) for field in kind.fields}
    chosen = st.lists(st.sampled_from(list(kind.fields)), unique=True, max_size=min(4, len(kind.fields)))

    @st.composite
    def made(draw: st.DrawFn) -> Message:
        message = GetMessageClass(kind)()
        for field in draw(chosen):
            _set(message, field, draw(values[field]))
        return message

    return made()


def broken(valid: Message, words: Words = ()) -> st.SearchStrategy[Message]:
    """The message with one field, however deep in it, cleared or set to any value that its type can have."""

    @st.composite
    def made(draw: st.DrawFn) -> Message:
        message = type(valid)()
        message.CopyFrom(valid)
        *way, field = draw(st.sampled_from(paths(valid.DESCRIPTOR)))
        owner = message
        for step in way:
            owner = _into(owner, step)
        if draw(st.integers(0, 9)) == 0:
            owner.ClearField(field.name)
        else:
            _set(owner, field, draw(_values(field, words, len(way))))
        return message

    return made()


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of a message cut short, altered, or followed by unknown fields, wrong types, bad text and the like."""
    extra = st.sampled_from((
        b"\xc2\x3e\x05", b"\xc2\x3e\x00", b"\xfa\x3e\x03abc", b"\xf9\x3e12345678", b"\xfd\x3e1234",  # unknown fields
        b"\x0a\x02\xc3\x28", b"\x0a\xff\xff\xff\xff\x0f", b"\x08" + b"\xff" * 11, b"\x0b\x0b\x0c", b"\x0c", b"\0\x01",
        b"\x0f", b"\x0a\x01\xff", b"\x12\x02\xed\xa0", b"\x1a\x80", b"\x0b" * 200, b"{}", b"<a/>", b"\0" * 9,
        b"\x80" * 20,
    ))  # fmt: skip
    cut = st.integers(0, max(0, len(valid) - 1)).map(lambda n: valid[:n])
    flipped = st.builds(
        lambda at, byte: valid[:at] + bytes([byte]) + valid[at + 1 :],
        st.integers(0, max(0, len(valid) - 1)),
        st.integers(0, 255),
    )
    return st.one_of(cut, flipped, st.builds(bytes.__add__, st.just(valid), extra), extra, st.binary(max_size=40))


@lru_cache
def paths(kind: Descriptor) -> Sequence[Path]:
    """Ways to every field of a kind, whole messages among them, shallow ones first."""
    return sorted(_paths(kind, ()), key=len)


def filled(message: Message, way: Path = ()) -> set[Path]:
    """The paths to what is there in a message; of a long list, the first ones are looked into."""
    found: set[Path] = set()
    for field, value in message.ListFields():
        here = (*way, field)
        found.add(here)
        if field.message_type is None or len(here) > MAX_DEPTH:
            continue
        values = list(value.values()) if _is_map(field) else value if field.is_repeated else [value]
        for one in list(values)[:5]:
            if isinstance(one, Message):
                found |= filled(one, here)
    return found


def has_field(kind: Descriptor, dotted: str) -> bool:
    """Whether a violation's `field` names one of the kind's; a map's keys are the caller's own, cut or not."""
    name, _, rest = dotted.partition(".")
    field = kind.fields_by_name.get(name)
    if field is None or (rest and field.message_type is None):
        return False
    if not rest or _is_map(field):
        return True
    return has_field(field.message_type, rest)


def _paths(kind: Descriptor, way: Path) -> Iterator[Path]:
    for field in kind.fields:
        yield (*way, field)
        inner = field.message_type
        if _is_map(field):
            inner = inner.fields_by_name["value"].message_type
        if inner is not None and len(way) < MAX_DEPTH and inner not in {one.message_type for one in way}:
            yield from _paths(inner, (*way, field))


def _into(owner: Message, field: FieldDescriptor) -> Message:
    """The message that a field holds; its first, or a new one, where it may hold several."""
    there = getattr(owner, field.name)
    inner: Message = there
    if _is_map(field):
        key = field.message_type.fields_by_name["key"]
        inner = there[next(iter(there), "key" if key.cpp_type == FieldDescriptor.CPPTYPE_STRING else 1)]
    elif field.is_repeated:
        inner = there[0] if there else there.add()
    else:
        inner.SetInParent()
    return inner


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _values(field: FieldDescriptor, words: Words, depth: int) -> st.SearchStrategy[Any]:
    if _is_map(field):
        entry = field.message_type.fields_by_name
        keys = _single(entry["key"], words, depth)
        return st.dictionaries(keys, _single(entry["value"], words, depth + 1), max_size=3)
    one = _single(field, words, depth)
    if not field.is_repeated:
        return one
    return st.lists(one, max_size=3) | st.builds(_many, one, st.sampled_from((30, 3000)))


def _many(value: Any, times: int) -> list[Any]:
    """The value again and again, within MAX_BYTES: gRPC itself refuses what is larger than a message may be."""
    size = value.ByteSize() if isinstance(value, Message) else 4 * len(value) if isinstance(value, str | bytes) else 8
    return [value] * min(times, 1 + MAX_BYTES // max(size, 1))


@cache
def _single(field: FieldDescriptor, words: Words, depth: int) -> st.SearchStrategy[Any]:
    """Any value of the field's type, one of them where it is repeated."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages(field.message_type, words, depth + 1)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([*sorted(field.enum_type.values_by_number), -1, 99, 2**31 - 1, -(2**31)])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        width = 64 if kind == FieldDescriptor.CPPTYPE_DOUBLE else 32
        return st.sampled_from(FLOATS) | st.floats(width=width)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.sampled_from(BYTES) | st.binary(max_size=20)
        return texts(words)
    least, most = _BITS[kind]
    return st.sampled_from([edge for edge in _EDGES if least <= edge <= most]) | st.integers(least, most)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    there = getattr(message, field.name)
    if _is_map(field):
        there.clear()
        for key, one in value.items():
            if isinstance(one, Message):
                there[key].CopyFrom(one)
            else:
                there[key] = one
    elif field.is_repeated:
        del there[:]
        there.extend(value)
    elif isinstance(value, Message):
        there.CopyFrom(value)
        there.SetInParent()
    else:
        setattr(message, field.name, value)
