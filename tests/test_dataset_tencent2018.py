"""The Tencent Ads 2018 contest's raw formats to the layout, on a small contest in those formats."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_tencent2018 as raw_files
from hypothesis import given
from hypothesis import strategies as st
from raw_tencent2018 import ADS, BAD_ADS, BAD_SAMPLES, BAD_USERS, ONE_SIDED, UNSEEN, USERS, write_raw

from lookalike.cli.app import run
from lookalike.dataset import tencent2018_files, text_blocks
from lookalike.dataset.layout import Dataset, Split, Stage
from lookalike.dataset.malformed import FaultLog
from lookalike.dataset.tencent2018 import Conversion, convert
from lookalike.dataset.tencent2018_files import MULTI, SINGLE, read_samples, read_users
from lookalike.errors import AlreadyExists, Cancelled, DataCorrupted, InvalidInput, NotFound, SchemaError
from lookalike.files import file_digest
from lookalike.pool.ingest import ingest
from lookalike.training.tasks import load_tasks

STAGES: tuple[Stage, ...] = ("seed", "audience")
SPLITS: tuple[Split, ...] = ("train", "test")
TABLES = ("users.parquet", "campaigns.parquet", "samples.parquet")
Rows = dict[tuple[int, str], set[tuple[int, int]]]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("tencent") / "raw")


@pytest.fixture(scope="module")
def converted(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Conversion, Dataset]:
    path = tmp_path_factory.mktemp("tencent") / "dataset"
    return convert(raw, path), Dataset.open(path)


@pytest.fixture(scope="module")
def dataset(converted: tuple[Conversion, Dataset]) -> Dataset:
    return converted[1]


def rows(dataset: Dataset) -> Rows:
    """(user, label of the contest) by campaign and stage."""
    found: Rows = {}
    for campaign in dataset.campaign_ids():
        for stage in STAGES:
            user_ids, labels = dataset.samples(campaign, stage)
            pairs = zip(user_ids.to_pylist(), (2 * labels - 1).tolist(), strict=True)
            found[int(campaign), stage] = set(pairs)
            assert len(found[int(campaign), stage]) == len(labels)
    return found


# ------------------------------------------------------------------------------------------------- what a dataset has


def test_users_have_the_paper_s_fields_and_zero_is_missing(dataset: Dataset) -> None:
    users = pq.read_table(dataset.users_path)
    assert users.column_names == ["user_id", *SINGLE, *MULTI]
    assert users["user_id"].to_pylist() == [raw_files.user_id(user) for user in range(USERS)]
    for row in users.to_pylist():
        said = raw_files.features(row.pop("user_id"))
        for name in SINGLE:
            assert row[name] == (said.get(name, [0])[0] or None)
        for name in MULTI:
            assert row[name] == (None if said.get(name, [0]) == [0] else said[name])


@pytest.mark.parametrize("longest", [1, 3])
def test_lists_are_cut_if_asked_and_what_is_left_of_one_is_not_missing(raw: Path, tmp_path: Path, longest: int) -> None:
    convert(raw, tmp_path / "out", longest=longest)
    cut = pq.read_table(tmp_path / "out" / "users.parquet")["interest1"].to_pylist()
    said = [raw_files.features(raw_files.user_id(user)).get("interest1", [0]) for user in range(USERS)]
    assert cut == [None if values == [0] else values[:longest] for values in said]
    assert [0] in cut or longest > 1


def test_campaigns_are_ads_with_both_labels_and_three_in_five_are_for_training(
    converted: tuple[Conversion, Dataset],
) -> None:
    conversion, dataset = converted
    assert dataset.campaign_ids() == [ad for ad in ADS if ad not in {ONE_SIDED, UNSEEN}]
    assert conversion.campaigns_left_out == (UNSEEN, ONE_SIDED)
    assert len(dataset.campaign_ids("test")) == int(0.4 * len(dataset.campaign_ids()))
    assert dataset.campaign_features(411) == {
        "advertiserId": 411 % 3,
        "adCategoryId": 411 % 4,
        "campaignId": 411 % 5,
        "productId": 0,
        "productType": 11,
        "creativeSize": 1,
    }


def test_a_fifth_of_each_ad_s_seeds_and_of_its_others_is_held_out(dataset: Dataset) -> None:
    found = rows(dataset)
    for ad in dataset.campaign_ids():
        seed, audience = found[int(ad), "seed"], found[int(ad), "audience"]
        assert not seed & audience
        assert seed | audience == {(uid, label) for a, uid, label in raw_files.samples() if a == ad}
        for label in (1, -1):
            held, every = (sum(row[1] == label for row in part) for part in (audience, seed | audience))
            assert held == round(0.2 * every)
    table = pq.read_table(dataset.path / "samples.parquet")
    groups = list(zip(table["campaign_id"].to_pylist(), table["stage"].to_pylist(), strict=True))
    assert list(dict.fromkeys(groups)) == [key for key, _ in groupby(groups)]  # together, so that no reader need sort


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_either_stage_keeps_both_labels_of_every_ad(raw: Path, tmp_path: Path, share: float) -> None:
    convert(raw, tmp_path / "out", audience_share=share)
    found = rows(Dataset.open(tmp_path / "out"))
    assert all({label for _, label in part} == {1, -1} for part in found.values())


def test_a_labelled_test_file_is_the_audience_but_for_pairs_of_train_csv(raw: Path, tmp_path: Path) -> None:
    file = tmp_path / "test1_truth.csv"
    wanted = raw_files.test_samples()
    file.write_text("".join(f"{ad},{uid},{label}\n" for ad, uid, label in wanted))  # no line of names
    conversion = convert(raw, tmp_path / "out", audience=file, max_malformed=0.2)
    assert conversion.audience == file.name
    train = {(ad, uid) for ad, uid, _ in raw_files.samples()}
    repeated = [(number, row) for number, row in enumerate(wanted, 1) if row[:2] in train]
    report = conversion.files[-1]
    assert [(fault.kind, fault.lines) for fault in report.faults] == [
        ("a pair that an earlier line has", len(repeated))
    ]
    assert [e.line for e in report.faults[0].examples] == [number for number, _ in repeated[:5]]
    dataset = Dataset.open(tmp_path / "out")
    found = rows(dataset)
    for ad in dataset.campaign_ids():
        assert found[int(ad), "seed"] == {row[1:] for row in raw_files.samples() if row[0] == ad}
        assert found[int(ad), "audience"] == {row[1:] for row in wanted if row[0] == ad and row[:2] not in train}
    with pytest.raises(InvalidInput, match="not both"):
        convert(raw, tmp_path / "again", audience=file, audience_share=0.2)


def test_the_same_seed_gives_the_same_bytes(raw: Path, dataset: Dataset, tmp_path: Path) -> None:
    convert(raw, tmp_path / "again")
    convert(raw, tmp_path / "other", seed=1)
    digests = [
        {path.name: file_digest(path) for path in folder.iterdir()}
        for folder in (dataset.path, tmp_path / "again", tmp_path / "other")
    ]
    assert digests[0] == digests[1]
    assert {name for name in TABLES if digests[0][name] != digests[2][name]} == {"campaigns.parquet", "samples.parquet"}


def test_a_pool_and_tasks_are_made_of_it(dataset: Dataset, tmp_path: Path) -> None:
    pool = ingest(dataset.users_path, tmp_path / "pool")
    assert pool.num_users == USERS
    schema = {field.name: field for field in pool.schema.fields}
    assert list(schema) == [*SINGLE, *MULTI]
    assert [field.name for field in pool.schema.multi] == list(MULTI)
    assert schema["house"].values == ("1",)
    assert set(schema["carrier"].values) == {"1", "2", "3"}
    counts = Counter((ad, label) for ad, _, label in raw_files.samples())
    for split in SPLITS:
        tasks = load_tasks(dataset, pool, dataset.campaign_schema(), split)
        assert [task.campaign_id for task in tasks] == dataset.campaign_ids(split)
        for task in tasks:
            seeds, others = (counts[int(task.campaign_id), label] for label in (1, -1))
            assert task.samples.labels.sum() == seeds
            assert len(task.samples) == seeds + others
            assert task.seeds.trainable
            assert task.audience.trainable


# -------------------------------------------------------------------------------------------------- what is malformed


def test_malformed_lines_are_counted_shown_and_change_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    conversion = convert(write_raw(tmp_path / "raw", malformed=True), tmp_path / "out", max_malformed=0.25)
    for report, expected in zip(conversion.files, (BAD_ADS, BAD_USERS, BAD_SAMPLES), strict=True):
        found = {example.line: fault.kind for fault in report.faults for example in fault.examples}
        assert found == {number: kind for number, (_, kind) in expected.items()}
        assert report.malformed == len(expected)
        assert all(example.text in expected[example.line][0] for fault in report.faults for example in fault.examples)
    assert conversion.files[1].lines == USERS + len(BAD_USERS)
    assert json.loads((tmp_path / "out" / "conversion.json").read_text()) == json.loads(json.dumps(asdict(conversion)))
    for name in TABLES:
        assert file_digest(tmp_path / "out" / name) == file_digest(dataset.path / name)


def test_too_many_malformed_lines_are_an_error_that_says_where(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", malformed=True)
    share = len(BAD_USERS) / (USERS + len(BAD_USERS))
    (raw / "adFeature.csv").write_text("\n".join([raw_files.AD_HEAD, *map(raw_files.ad_line, ADS)]))
    convert(raw, tmp_path / "most", max_malformed=share)
    with pytest.raises(
        DataCorrupted, match=r"13 of .* 913 lines of .*userFeature\.data .*line 60: 'age young'.*max_malf"
    ):
        convert(raw, tmp_path / "out", max_malformed=share - 1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "most"}


def test_a_file_that_is_something_else_is_not_read_to_its_end(raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "raw"
    other.mkdir()
    for name in ("adFeature.csv", "train.csv"):
        (other / name).write_bytes((raw / name).read_bytes())
    (other / "userFeature.data").write_text("uid,age\n" + "7,3\n" * 3_000_000)
    seen = []
    with pytest.raises(DataCorrupted, match=r"userFeature\.data .* no uid at its start, first line 1: 'uid,age'"):
        convert(other, tmp_path / "out", progress=lambda done, total: seen.append(done / total))
    assert max(seen) < 0.5
    (other / "userFeature.data").write_bytes(b"\0" * 10_000_000)
    with pytest.raises(DataCorrupted, match="no line break"):
        convert(other, tmp_path / "out")


def test_what_is_wrong_is_seen_at_the_door(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"lacks userFeature\.data, adFeature\.csv, train\.csv"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(NotFound, match="truth"):
        convert(raw, tmp_path / "out", audience=tmp_path / "truth")
    unlabelled = tmp_path / "test1.csv"
    unlabelled.write_text("aid,uid\n411,3000\n")
    with pytest.raises(SchemaError, match=r"aid,uid,label.*'aid,uid'\. It has no labels"):
        convert(raw, tmp_path / "out", audience=unlabelled)
    swapped = tmp_path / "swapped.csv"
    swapped.write_text("uid,aid,label\n3000,411,1\n")
    with pytest.raises(SchemaError, match="'uid,aid,label'"):
        convert(raw, tmp_path / "out", audience=swapped)
    for option in ({"audience_share": 1.0}, {"max_malformed": -0.1}, {"longest": 0}):
        with pytest.raises(InvalidInput, match=next(iter(option))):
            convert(raw, tmp_path / "out", **option)
    other = tmp_path / "raw"
    other.mkdir()
    for name in ("userFeature.data", "train.csv"):
        (other / name).write_bytes((raw / name).read_bytes())
    (other / "adFeature.csv").write_text("aid,advertiserId,productId\n1,2,3\n")
    with pytest.raises(SchemaError, match="lacks adCategoryId, campaignId, productType, creativeSize"):
        convert(other, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(AlreadyExists):
        convert(raw, tmp_path / "there")
    assert not (tmp_path / "out").exists()


def test_samples_of_one_label_make_no_dataset(raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "raw"
    other.mkdir()
    for name in ("userFeature.data", "adFeature.csv"):
        (other / name).write_bytes((raw / name).read_bytes())
    (other / "train.csv").write_text("aid,uid,label\n" + "".join(f"411,{3000 + user},-1\n" for user in range(50)))
    with pytest.raises(InvalidInput, match="both labels"):
        convert(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_byte_and_can_stop_it(raw: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(raw, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in raw.iterdir())
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    def stop(done: int, total: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        convert(raw, tmp_path / "stopped", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ------------------------------------------------------------------------------------- what a plain reader would read


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
        multi = {name: [int(value) for value in said.get(name, ["0"])] for name in MULTI}
        kept = {name: None if values == [0] else values[:longest] for name, values in multi.items()}
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
)
def test_users_are_read_as_a_plain_reader_reads_them_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], block: int, longest: int | None, line_break: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "userFeature.data"
    path.write_bytes("".join(line + line_break for line in lines).encode())
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
    good = 0
    for line in lines[named:]:
        try:
            ad, user, label = map(int, line.split(","))
        except ValueError:
            continue
        if ad in ads and user in users and label in {1, -1} and (ad, user) not in expected:
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


@pytest.mark.parametrize(("end", "users"), [("|carrier 1", 2), ("|carrier 1|house 1", 2), ("|carr", 1), ("", 1)])
def test_a_last_line_without_a_line_break_is_whole_if_it_ends_as_lines_do(tmp_path: Path, end: str, users: int) -> None:
    path = tmp_path / "userFeature.data"
    path.write_text(f"uid 1|kw1 5 6|carrier 1\nuid 2|kw1 5 6{end}")
    log = FaultLog(path, 1.0)
    assert sum(batch.num_rows for batch in read_users(path, log)) == users
    assert [fault.kind for fault in log.report().faults] == ["no end: the file breaks off there"] * (2 - users)


# -------------------------------------------------------------------------------------------------- the command line


def test_the_command_line_converts_and_tells_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = write_raw(tmp_path / "raw", malformed=True), tmp_path / "out"
    command = ["dataset", "convert", "tencent2018", str(raw), "--output", str(out)]
    assert run(command) == 8
    assert "adFeature.csv" in capsys.readouterr().err
    assert run([*command, "--max-malformed", "0.25", "--audience-share", "0.3", "--seed", "3", "--longest", "10"]) == 0
    shown = capsys.readouterr()
    assert "1 with a label other than 1 and -1: line 10 '411,3070,0'" in shown.err
    assert "ads 6, 70" in shown.err
    assert "appIdInstall" in shown.err
    dataset = Dataset.open(out)
    count = sum(len(dataset.samples(ad, stage)[1]) for ad in dataset.campaign_ids() for stage in STAGES)
    assert f"samples  {count:,}\n" in shown.out
    report = json.loads((out / "conversion.json").read_text())
    assert (report["audience"], report["seed"], report["longest"]) == (0.3, 3, 10)


# ------------------------------------------------------------------------------------------------------ the real files


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
