"""The Tencent Ads 2018 contest's raw formats to the layout, on a small contest in those formats."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import raw_tencent2018 as raw_files
from raw_tencent2018 import ADS, BAD_ADS, BAD_SAMPLES, BAD_USERS, ONE_SIDED, UNSEEN, USERS, write_raw

from lookalike.cli.app import run
from lookalike.dataset.layout import Dataset, Split, Stage
from lookalike.dataset.tencent2018 import Conversion, convert
from lookalike.dataset.tencent2018_files import MULTI, SINGLE
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
    train = {(ad, uid): label for ad, uid, label in raw_files.samples()}
    repeated = [(number, row) for number, row in enumerate(wanted, 1) if row[:2] in train]
    contrary = [number for number, row in repeated if train[row[:2]] != row[2]]
    again = [number for number, _ in repeated if number not in contrary]
    expected = {
        "a pair that an earlier line has": again,
        "a pair to which an earlier line gives the other label": contrary,
    }
    faults = conversion.files[-1].faults
    assert {fault.kind: fault.lines for fault in faults} == {kind: len(of) for kind, of in expected.items() if of}
    for fault in faults:
        assert [e.line for e in fault.examples] == expected[fault.kind][:5]
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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"uid 1|age 2\n"), "gzip; unpack it"),
        ("uid 1|age 2\n".encode("utf-16"), "convert it to UTF-8"),
        (b"", "holds no users"),
    ],
    ids=["gzip", "utf-16", "empty"],
)
def test_a_file_of_users_that_is_none_is_told_by_its_name(
    raw: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    other = tmp_path / "raw"
    other.mkdir()
    for name in ("adFeature.csv", "train.csv"):
        (other / name).write_bytes((raw / name).read_bytes())
    (other / "userFeature.data").write_bytes(content)
    with pytest.raises(DataCorrupted, match=rf"userFeature\.data .*{words}") as caught:
        convert(other, tmp_path / "out")
    assert caught.value.field == "userFeature.data"
    assert not (tmp_path / "out").exists()


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
