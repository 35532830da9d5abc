"""The contest's raw formats: bulk reading beside plain reading, and the published files themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.dataset import tencent2018_files, text_blocks
from lookalike.dataset.malformed import FaultLog
from lookalike.dataset.tencent2018_files import MULTI, SINGLE, read_samples, read_users


def plain_users(text: str, longest: int | None) -> tuple[list[dict[str, object]], dict[int, str]]:
    """Users and the faults by line, line by line and in the order in which faults take precedence."""
    users: list[dict[str, object]] = []
    faults: dict[int, str] = {}
    seen = set()
    for number, line in enumerate(text.splitlines(), 1):
        groups = [group.split(" ") for group in line.split("|")]
        fault = plain_fault(groups, longest)
        said = {name: group for name, *group in groups}
        if fault is None and (uid := int(said["uid"][0])) in seen:
            fault = "a uid that an earlier line has"
        if fault is not None:
            faults[number] = fault
            continue
        seen.add(uid)
        single = {name: int(said.get(name, ["0"])[0]) or None for name in SINGLE}
        multi = {name: said.get(name, ["0"]) for name in MULTI}
        kept: dict[str, object] = {
            name: None if len(values) == 1 and int(values[0]) == 0 else [int(value) for value in values[:longest]]
            for name, values in multi.items()  # what is cut off is not looked at
        }
        users.append({"user_id": uid, **single, **kept})
    return users, faults


def plain_fault(groups: list[list[str]], longest: int | None) -> str | None:
    names = [group[0] for group in groups]
    known = tencent2018_files._NAMES
    if names[0] != "uid" or len(groups[0]) == 1:
        return "no uid at its start"
    if any(len(group) == 1 for group in groups):
        return "a field without a value"
    if any(name not in known for name in names):
        return "a field of unknown name"
    for name in ("uid", *SINGLE, *MULTI):
        found = [group[1:] for group in groups if group[0] == name]
        values = [value for group in found for value in group[: longest if name in MULTI else None]]
        if len(found) > 1:
            return "a field twice"
        digits = 18 if name == "uid" else 9
        if not all(v.removeprefix("-").isdigit() and len(v.removeprefix("-")) <= digits for v in values):
            return "no integer, or one too long, as a value"
        if name not in MULTI and len(values) > 1:
            return "several values of a field that has one"
    return None


VALUES = st.sampled_from(["0", "1", "7", "42", "00", "123456789"]) | st.sampled_from(
    ["", "x", "1-", "-", "-8", "1" * 10]
)
GOOD = st.integers(0, 999_999).map(str)
FIELDS = st.sampled_from([*SINGLE, *MULTI, "ct", "kw3"]).flatmap(
    lambda name: st.lists(GOOD, min_size=1, max_size=1 if name in SINGLE else 4).map(lambda v: " ".join([name, *v]))
)
ODD_FIELDS = st.tuples(st.sampled_from(["age", "kw1", "kw", "uid", ""]), st.lists(VALUES, max_size=3)).map(
    lambda group: " ".join([group[0], *group[1]])
)
LINES = st.tuples(
    (st.integers(1, 40) | st.integers(10**17, 10**18 - 1)).map(lambda uid: f"uid {uid}"),
    st.lists(FIELDS, max_size=5, unique_by=lambda group: group.split(" ")[0]),
).map(lambda parts: "|".join([parts[0], *parts[1]]))
ODD_LINES = st.lists(FIELDS | ODD_FIELDS | st.just("uid 5"), max_size=4).map("|".join)


@given(
    st.lists(LINES | ODD_LINES, max_size=12),
    st.integers(200, 2000),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_users_are_read_as_a_plain_reader_reads_them_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    block: int,
    longest: int | None,
    line_break: str,
    encoding: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "userFeature.data"
    path.write_bytes("".join(line + line_break for line in lines).encode(encoding) if lines else b"")
    log = FaultLog(path, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK_BYTES", block)
        batches = list(read_users(path, log, longest=longest))
    expected, faults = plain_users("".join(line + "\n" for line in lines), longest)
    assert [row for batch in batches for row in batch.to_pylist()] == expected
    report = log.report()
    assert report.lines == len(lines)
    assert {fault.kind: fault.lines for fault in report.faults} == Counter(faults.values())
    for fault in report.faults:
        assert [e.line for e in fault.examples] == [n for n, kind in faults.items() if kind == fault.kind][:5]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, -1])).map(
                lambda row: f"{row[0]},{row[1]},{row[2]}"
            ),
            st.sampled_from(["", "1,2", "1,2,3", "1,2,1,1", "a,2,1", "5,1,1", "1,99,1", "1,2,", "-1,2,1"]),
        ),
        max_size=30,
    ),
    st.integers(20, 200),
    st.booleans(),
)
def test_samples_are_read_as_a_plain_reader_reads_them_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], block: int, named: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "train.csv"
    lines = (["aid,uid,label"] if named else ["1,1,1"]) + lines
    path.write_text("".join(line + "\n" for line in lines))
    ads, users = np.arange(1, 5), np.arange(1, 10)
    expected: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], int] = {}
    good = contrary = 0
    for line in lines[named:]:
        try:
            ad, user, label = map(int, line.split(","))
        except ValueError:
            continue
        if ad in ads and user in users and label in {1, -1}:
            contrary += last.get((ad, user), label) != label
            last[ad, user] = label
            if (ad, user) not in expected:
                expected[ad, user] = max(label, 0)
                good += 1
    log = FaultLog(path, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK_BYTES", block)
        samples = read_samples(path, log, ad_ids=ads, user_ids=users)
    pairs = zip(samples.ad_ids.tolist(), samples.user_ids.tolist(), strict=True)
    assert list(zip(pairs, samples.labels.tolist(), strict=True)) == list(expected.items())
    assert log.report().lines == len(lines) - named
    assert log.report().malformed == len(lines) - named - good
    kinds = {fault.kind: fault.lines for fault in log.report().faults}
    assert kinds.get("a pair to which an earlier line gives the other label", 0) == contrary


@pytest.mark.parametrize(("end", "users"), [("|carrier 1", 2), ("|carrier 1|house 1", 2), ("|carr", 1), ("", 1)])
def test_a_last_line_without_a_line_break_is_whole_if_it_ends_as_lines_do(tmp_path: Path, end: str, users: int) -> None:
    path = tmp_path / "userFeature.data"
    path.write_text(f"uid 1|kw1 5 6|carrier 1\nuid 2|kw1 5 6{end}")
    log = FaultLog(path, 1.0)
    assert sum(batch.num_rows for batch in read_users(path, log)) == users
    assert [fault.kind for fault in log.report().faults] == ["no end: the file breaks off there"] * (2 - users)


def test_the_real_files_are_read(tencent2018_raw: Path) -> None:
    log = FaultLog(tencent2018_raw / "userFeature.data", 0.01)
    users = pa.Table.from_batches(read_users(tencent2018_raw / "userFeature.data", log))
    report = log.report()
    assert report.faults == ()
    assert users.num_rows == report.lines
    # What the formats' description leaves open, and the reader takes for granted.
    assert users["age"].null_count < 0.01 * users.num_rows
    assert 0 < users["house"].null_count < users.num_rows
    assert 0 < users["carrier"].null_count < users.num_rows
    for name in MULTI:
        assert 0 < users[name].null_count < users.num_rows
    log = FaultLog(tencent2018_raw / "train.csv", 0.01)
    samples = read_samples(tencent2018_raw / "train.csv", log)
    assert log.report().faults == ()
    assert len(samples.labels) == log.report().lines
    assert 0.03 < samples.labels.mean() < 0.07  # 1:20
