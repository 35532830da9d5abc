"""The three formats of the Tencent Ads 2018 look-alike contest: feature groups of users, and tables of ads and samples.

Knows what a line must say; knows nothing of splits, stages or where the rows go. The formats are as the contest
described them; what the description leaves open is decided by the published files themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyroaring import BitMap64

from lookalike.dataset.malformed import EXAMPLES, BlockFaults, FaultLog
from lookalike.dataset.text_blocks import Block, Ints, Mask, Tokens, read_blocks
from lookalike.errors import SchemaError
from lookalike.stretches import places

Advanced = Callable[[int], None]

# Section 4.1 of the paper names the fourteen; the files have one value of the first seven and lists of the others.
SINGLE = ("carrier", "consumptionAbility", "LBS", "age", "education", "gender", "house")
MULTI = ("interest1", "interest2", "interest3", "kw1", "kw2", "topic1", "topic2")
LEFT_OUT = (*("marriageStatus", "ct", "os", "interest4", "interest5", "kw3", "topic3", "appIdInstall", "appIdAction"),)
AD_FIELDS = ("advertiserId", "adCategoryId", "campaignId", "productId", "productType", "creativeSize")
AD_FIELDS_LEFT_OUT = ("creativeId",)
SAMPLES_HEAD = ("aid", "uid", "label")

USERS_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.int64()),
        *(pa.field(name, pa.int32()) for name in SINGLE),
        *(pa.field(name, pa.list_(pa.int32())) for name in MULTI),
    ]
)

# A name is known by the space after it: a group without values is none.
_NAMES = ("uid", *SINGLE, *MULTI, *LEFT_OUT)
_CODES = {name: code for code, name in enumerate(_NAMES)}
_KNOWN = pa.array([f"{name} ".encode() for name in _NAMES], pa.binary())
# Every line of the published files ends in one of these, of one digit.
_LAST = (_CODES["carrier"], _CODES["house"])
_FEATURE_DIGITS = 9  # fits 32 bits
_UNKNOWN = 0  # "if a value is unknown it is 0", says the contest of users' features


# ------------------------------------------------------------------------------------------------------------- users


def read_users(
    path: Path, log: FaultLog, *, longest: int | None = None, advanced: Advanced | None = None
) -> Iterator[pa.RecordBatch]:
    """The users of `userFeature.data` in the file's order: `user_id` and the paper's 14 features, ids as integers.

    Missing, and null here, are fields a line lacks and fields whose one value is 0: so the contest writes *unknown*.
    A 0 among other ids is an id like any other. Values of fields beyond the 14 are not looked at.

    Args:
        longest: keep so many ids of a list, the first ones; default: all.

    Raises:
        DataCorrupted: most lines are malformed, or it is no text.
    """
    seen = BitMap64()
    for block in read_blocks(path, advanced):
        groups = _Groups.of(block, BlockFaults(log, block))
        groups.check()
        user_ids = groups.one_a_line("uid")
        features = [*(groups.single(name) for name in SINGLE), *(groups.multi(name, longest) for name in MULTI)]
        groups.check_repeated(user_ids, seen)
        batch = pa.record_batch([pa.array(user_ids), *features], schema=USERS_SCHEMA)
        bad = groups.faults.bad
        if bad.any():
            batch = batch.filter(pa.array(~bad))
        groups.faults.finish()
        yield batch


@dataclass(frozen=True)
class _Groups:
    """A block's feature groups: a name and its values, `[groups]` in the text's order.

    Attributes:
        name: the name's token. count: how many values follow it. line: of the block. code: of `_NAMES`, or -1.
    """

    block: Block
    faults: BlockFaults
    tokens: Tokens
    name: Ints
    count: Ints
    line: Ints
    code: npt.NDArray[np.int32]

    @staticmethod
    def of(block: Block, faults: BlockFaults) -> _Groups:
        tokens = Tokens.of(block, b" |")
        name = np.flatnonzero(tokens.before != ord(" "))
        count = np.diff(name, append=len(tokens.ends)) - 1
        line = np.cumsum(tokens.before[name] == ord("\n")) - 1
        # With its separator, every token ends where the next begins: they are one Arrow array without a copy.
        offsets = np.zeros(len(tokens.ends) + 1, np.int32)
        offsets[1:] = tokens.ends + 1
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block.text)]
        names = pa.BinaryArray.from_buffers(pa.binary(), len(tokens.ends), buffers).take(pa.array(name))
        code = pc.fill_null(pc.index_in(names, value_set=_KNOWN), -1).to_numpy()
        return _Groups(block, faults, tokens, name, count, line, code)

    def fault(self, kind: str, groups: Ints) -> None:
        """Note that these groups are wrong."""
        self.faults.add(
            kind,
            self.line[groups],
            self.tokens.starts[self.name[groups]],
            self.tokens.ends[self.name[groups] + self.count[groups]],
        )

    def check(self) -> None:
        """Note what is wrong with names."""
        first = np.flatnonzero(np.diff(self.line, prepend=-1))
        if self.block.broken_off and self.code[-1] not in _LAST:
            self.fault("no end: the file breaks off there", np.array([len(self.line) - 1]))
        self.fault("no uid at its start", first[self.code[first] != _CODES["uid"]])
        unnamed = self.code < 0
        self.fault("a field without a value", np.flatnonzero(unnamed & (self.count == 0)))
        self.fault("a field of unknown name", np.flatnonzero(unnamed & (self.count > 0)))

    def check_repeated(self, ids: Ints, seen: BitMap64) -> None:
        """Note lines whose uid an earlier line has; `seen` takes up the `ids` `[lines]` of lines without a fault."""
        lines = np.flatnonzero(~self.faults.bad)
        found, first = np.unique(ids[lines].astype(np.uint64), return_index=True)
        here = BitMap64(found)
        again = np.ones(len(lines), np.bool_)
        again[first] = np.isin(found, np.array((seen & here).to_array(), np.uint64))
        seen |= here
        if again.any():
            groups = np.flatnonzero(self.code == _CODES["uid"])
            self.fault("a uid that an earlier line has", groups[np.isin(self.line[groups], lines[again])])

    def single(self, name: str) -> pa.Array:
        """A single-valued field `[lines]`."""
        values = self.one_a_line(name, digits=_FEATURE_DIGITS).astype(np.int32)
        return pa.array(values, mask=values == _UNKNOWN)

    def multi(self, name: str, longest: int | None) -> pa.Array:
        """A multi-valued field `[lines]`."""
        groups, count, values = self._values(name, longest, digits=_FEATURE_DIGITS)
        alone = self.count[groups] == 1
        alone[alone] = values[(np.cumsum(count) - count)[alone]] == _UNKNOWN
        if alone.any():
            values = values[np.repeat(~alone, count)]
            count = np.where(alone, 0, count)
        lengths = np.bincount(self.line[groups], weights=count, minlength=self.block.num_lines).astype(np.int32)
        offsets = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        return pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(values.astype(np.int32)), mask=pa.array(lengths == 0)
        )

    def one_a_line(self, name: str, **options: int) -> Ints:
        """The field's one value `[lines]`, 0 where a line lacks it."""
        groups, count, values = self._values(name, None, **options)
        self.fault("several values of a field that has one", groups[count > 1])
        found = np.zeros(self.block.num_lines, np.int64)
        filled = count > 0
        found[self.line[groups[filled]]] = values[(np.cumsum(count) - count)[filled]]
        return found

    def _values(self, name: str, longest: int | None, **options: int) -> tuple[Ints, Ints, Ints]:
        """The field's groups `[groups]`, how many values are kept of each `[groups]`, and the values, joined."""
        groups = np.flatnonzero(self.code == _CODES[name])
        self.fault("a field twice", groups[1:][self.line[groups[1:]] == self.line[groups[:-1]]])
        count = self.count[groups]
        if longest is not None:
            count = np.minimum(count, longest)
        values, good = self.tokens.integers(places(self.name[groups] + 1, count), **options)
        if not good.all():
            self.fault("no integer, or one too long, as a value", np.repeat(groups, count)[~good])
        return groups, count, values


# --------------------------------------------------------------------------------------------------- ads and samples


@dataclass(frozen=True)
class Samples:
    """Labelled pairs `[samples]` in a file's order. `labels` are 1 and 0."""

    ad_ids: Ints
    user_ids: Ints
    labels: npt.NDArray[np.int8]


def read_ads(path: Path, log: FaultLog, *, advanced: Advanced | None = None) -> pa.Table:
    """The ads of `adFeature.csv` in the file's order: `aid` and the paper's six features, as integers.

    Values are as they are, 0 too: that it means unknown is said of users only.

    Raises:
        SchemaError: the header lacks a column. DataCorrupted: most lines are malformed, or it is no text.
    """
    head = ads_head(path)
    names = ("aid", *AD_FIELDS)
    parts = []
    for block in _rows(path, advanced):
        table = _Table.of(block, BlockFaults(log, block), len(head))
        columns = [table.integers(head.index(name)) for name in names]
        good = ~table.faults.bad
        table.faults.finish()
        parts.append(np.stack([*columns, block.first_line + np.arange(block.num_lines)])[:, good])
    found = np.concatenate(parts or [np.zeros((len(names) + 1, 0), np.int64)], axis=1)
    again, _ = _repeats(found[0])
    log.record("an aid that an earlier line has", found[-1][again], [str(ad) for ad in found[0][again[:EXAMPLES]]])
    return pa.table(dict(zip(names, np.delete(found[:-1], again, axis=1), strict=True)))


def read_samples(
    path: Path,
    log: FaultLog,
    *,
    ad_ids: Ints | None = None,
    user_ids: Ints | None = None,
    earlier: Samples | None = None,
    advanced: Advanced | None = None,
) -> Samples:
    """The labelled pairs of `train.csv`, or of a test file with labels; a header line may be missing.

    Memory: 40 bytes a row, and as much again while repeated pairs are looked for.

    Args:
        ad_ids, user_ids: who is known, ascending; default: whoever is named.
        earlier: samples of another file, whose pairs are not to be repeated.

    Raises:
        SchemaError: the file has other columns. DataCorrupted: most lines are malformed, or it is no text.
    """
    check_samples_head(path)
    parts = [np.zeros((4, 0), np.int64)]
    for block in _rows(path, advanced):
        table = _Table.of(block, BlockFaults(log, block), len(SAMPLES_HEAD))
        ads, users, labels = (table.integers(column) for column in range(len(SAMPLES_HEAD)))
        table.fault("a label other than 1 and -1", np.abs(labels) != 1)
        if ad_ids is not None:
            table.fault("an aid that adFeature.csv lacks", ~_is_in(ads, ad_ids))
        if user_ids is not None:
            table.fault("a uid that userFeature.data lacks", ~_is_in(users, user_ids))
        good = ~table.faults.bad
        table.faults.finish()
        parts.append(np.stack([ads, users, labels, block.first_line + np.arange(block.num_lines)])[:, good])
    ads, users, labels, lines = np.concatenate(parts, axis=1)
    labels = (labels == 1).astype(np.int8)
    every = Samples(ads, users, labels)
    if earlier is not None:
        every = Samples(
            np.concatenate([earlier.ad_ids, ads]),
            np.concatenate([earlier.user_ids, users]),
            np.concatenate([earlier.labels, labels]),
        )
    again, before = _repeats(every.ad_ids, every.user_ids)
    contrary = every.labels[again] != every.labels[before]
    again -= len(every.labels) - len(labels)
    for kind, rows in (
        ("a pair that an earlier line has", again[~contrary]),
        ("a pair to which an earlier line gives the other label", again[contrary]),
    ):
        log.record(kind, lines[rows], [f"{ads[row]},{users[row]}" for row in rows[:EXAMPLES]])
    kept = np.ones(len(labels), np.bool_)
    kept[again] = False
    return Samples(ads[kept], users[kept], labels[kept])


def ads_head(path: Path) -> list[str]:
    """The columns of `adFeature.csv`.

    Raises:
        SchemaError: one is missing.
    """
    head = _head(path)
    missing = [name for name in ("aid", *AD_FIELDS) if head.count(name) != 1]
    if missing:
        raise SchemaError(
            f"the first line of {path} must name each of its columns once; it lacks {', '.join(missing)}, and is "
            f"{','.join(head)!r}",
            field=path.name,
        )
    return head


def check_samples_head(path: Path) -> None:
    """Check the first line of a file of samples: its names, or numbers under no names.

    Raises:
        SchemaError: they are not `aid,uid,label`.
    """
    head = _head(path)
    if head != list(SAMPLES_HEAD) and (_has_names(head) or len(head) != len(SAMPLES_HEAD)):
        raise SchemaError(
            f"{path} must have the columns {','.join(SAMPLES_HEAD)}; its first line is {','.join(head)!r}"
            + (". It has no labels: test1.csv as the contest published it is of no use here" if len(head) == 2 else ""),
            field=path.name,
        )


def _head(path: Path) -> list[str]:
    with path.open("rb") as file:
        return file.readline(1000).decode("utf-8-sig", errors="replace").rstrip("\r\n").split(",")


def _has_names(head: list[str]) -> bool:
    return any(character.isalpha() for character in "".join(head))


def _rows(path: Path, advanced: Advanced | None) -> Iterator[Block]:
    """The blocks, without the line of names if there is one."""
    named = _has_names(_head(path))
    for block in read_blocks(path, advanced):
        rows = block.without_head() if named else block
        named = False
        if rows.num_lines:
            yield rows


@dataclass(frozen=True)
class _Table:
    """A block of numbers separated by commas. `heads` `[lines]` is each line's first token."""

    faults: BlockFaults
    tokens: Tokens
    heads: Ints

    @staticmethod
    def of(block: Block, faults: BlockFaults, columns: int) -> _Table:
        tokens = Tokens.of(block, b",")
        table = _Table(faults, tokens, tokens.line_heads)
        widths = np.diff(table.heads, append=len(tokens.ends))
        faults.add("another number of columns", np.flatnonzero(widths != columns))
        return table

    def fault(self, kind: str, wrong: Mask) -> None:
        """Note the lines `[lines]` that are wrong."""
        self.faults.add(kind, np.flatnonzero(wrong))

    def integers(self, column: int) -> Ints:
        """A column `[lines]`; where there is no number, the line is noted and has 0."""
        lines = np.flatnonzero(~self.faults.bad)
        values, good = self.tokens.integers(self.heads[lines] + column)
        self.faults.add("no integer in a column", lines[~good])
        found = np.zeros(len(self.heads), np.int64)
        found[lines[good]] = values[good]
        return found


def _is_in(values: Ints, known: Ints) -> Mask:
    """Which of `values` are among `known`, ascending. Sorted look-ups stay in the cache; random ones do not."""
    order = np.argsort(values)
    at = np.searchsorted(known, values[order])
    found = np.zeros(len(values), np.bool_)
    found[order] = known[np.minimum(at, len(known) - 1)] == values[order] if len(known) else False
    return found


def _repeats(*keys: Ints) -> tuple[Ints, Ints]:
    """Rows that have the same keys `[rows]` as one before, ascending, and for each the nearest of these."""
    order = np.lexsort(keys[::-1])  # stable: of equal rows the first stays first
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for key in keys:
        ordered = key[order]
        same &= ordered[1:] == ordered[:-1]
    rows, before = order[1:][same], order[:-1][same]
    ascending = np.argsort(rows)
    return rows[ascending], before[ascending]
