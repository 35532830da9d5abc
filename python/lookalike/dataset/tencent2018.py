"""The Tencent Ads 2018 look-alike contest's raw files to the layout: a campaign is an ad, interest is a label of 1.

Knows what the rows become; how lines are read is in `tencent2018_files`. The files are the user's: nobody offers them
for download.

The paper takes each ad's audience from the contest's test1.csv, 2,265,989 rows beside the 8,798,814 of train.csv, whose
labels did not come with it; its authors' code reads them from test1_truth.csv. Given such a file, its rows are the
audience. Without one a fifth of each ad's rows of either label is held out of train.csv at random: the same 80:20, but
other rows than the paper's and a fifth fewer seeds, so that figures compare in kind only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.dataset.construction import choose_splits
from lookalike.dataset.layout import CAMPAIGNS, SAMPLES, USERS, Dataset
from lookalike.dataset.malformed import FaultLog, FileReport
from lookalike.dataset.sample_store import STAGES
from lookalike.dataset.tencent2018_files import (
    AD_FIELDS_LEFT_OUT,
    LEFT_OUT,
    USERS_SCHEMA,
    Samples,
    ads_head,
    check_samples_head,
    read_ads,
    read_samples,
    read_users,
)
from lookalike.dataset.text_blocks import Ints
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.files import require_space, staged_folder

USERS_FILE = "userFeature.data"
ADS_FILE = "adFeature.csv"
SAMPLES_FILE = "train.csv"
FILES = (USERS_FILE, ADS_FILE, SAMPLES_FILE)
REPORT = "conversion.json"

AUDIENCE_SHARE = 0.2  # the paper's test rows among all; see above
MAX_MALFORMED = 0.01  # of a file's lines; an excerpt of the published ones has none
_GROUP_ROWS = 1 << 18  # of Parquet: some 60 MB of users while they are gathered
_SHRINKS_TO = 0.4  # of the raw bytes at most; users came to 0.15 of theirs, samples to 0.26

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class Conversion:
    """What was read, what was left out, and how it was split; `conversion.json` beside the data says the same.

    Attributes:
        files: of ads, users and samples, in this order, and of the audience if it has a file of its own.
        users, campaigns, samples: how many rows were written.
        audience: the file's name, or the share that was held out of `train.csv`.
        campaigns_left_out: ads whose samples lack either label, or that have none.
        fields_left_out: what the raw files tell of users and ads and the paper does not use.
    """

    files: tuple[FileReport, ...]
    users: int
    campaigns: int
    samples: int
    seed: int
    audience: str | float
    longest: int | None
    campaigns_left_out: tuple[int, ...]
    fields_left_out: tuple[str, ...] = (*LEFT_OUT, *AD_FIELDS_LEFT_OUT)


def convert(
    raw: Path,
    output: Path,
    *,
    audience: Path | None = None,
    audience_share: float | None = None,
    longest: int | None = None,
    seed: int = 0,
    max_malformed: float = MAX_MALFORMED,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write the dataset from a folder with `userFeature.data`, `adFeature.csv` and `train.csv`.

    Same arguments, same bytes. Lines that are malformed are left out and reported. Time: some 20 s a GB. Memory: 300 MB
    whatever the files' size, and 20 bytes a user and 90 a sample.

    Args:
        audience: a file like `train.csv` (the names `aid,uid,label` may be missing) whose rows are the audience.
        audience_share: of each ad's rows of either label, what is held out of `train.csv`; default 0.2. Not with
            `audience`.
        longest: keep so many ids of a user's list, the first ones (the paper's authors: 10); default: all. They are in
            no user's order, so that cutting drops the same ids of everyone.
        seed: of the split of campaigns and of what is held out.
        max_malformed: share of a file's lines.
        progress: called with (bytes read, bytes in all); raise from it to stop.

    Raises:
        NotFound: a raw file is missing. SchemaError: one has other columns. DataCorrupted: too much is malformed.
        InvalidInput: an argument is out of range, or no ad is left. ResourceExhausted: the disk is too small.
        AlreadyExists: `output` exists and `overwrite` is false.
    """
    if audience is not None and audience_share is not None:
        raise InvalidInput("give an audience or an audience_share, not both", field="audience_share")
    share = AUDIENCE_SHARE if audience_share is None else audience_share
    if not 0 < share < 1:
        raise InvalidInput(f"audience_share must be between 0 and 1, not {share}", field="audience_share")
    if not 0 <= max_malformed <= 1:
        raise InvalidInput(f"max_malformed must be from 0 to 1, not {max_malformed}", field="max_malformed")
    if longest is not None and longest < 1:
        raise InvalidInput(f"longest must be 1 or more, not {longest}", field="longest")
    paths = _check_files(raw, audience)
    size = sum(path.stat().st_size for path in paths)
    rng = np.random.default_rng(seed)
    with staged_folder(output, overwrite=overwrite) as folder:
        require_space(folder, int(size * _SHRINKS_TO), purpose="the dataset")
        read = _read(paths, folder / USERS, longest, max_malformed, _Counter(size, progress).advance)
        campaigns, left_out = _choose_campaigns(read)
        campaigns = campaigns.append_column("split", choose_splits(campaigns.num_rows, rng))
        pq.write_table(campaigns, folder / CAMPAIGNS, compression="zstd")
        rows = _rows(campaigns["campaign_id"].to_numpy(), read.samples)
        if audience is None:
            rows.stages[_held_out(rows, share, rng)] = STAGES.index("audience")
        _write_samples(folder / SAMPLES, rows, campaigns["campaign_id"])
        conversion = Conversion(
            files=read.reports,
            users=read.users,
            campaigns=campaigns.num_rows,
            samples=len(rows.labels),
            seed=seed,
            audience=share if audience is None else audience.name,
            longest=longest,
            campaigns_left_out=left_out,
        )
        (folder / REPORT).write_text(json.dumps(asdict(conversion), indent=1, ensure_ascii=False) + "\n", "utf-8")
        Dataset.open(folder)
    return conversion


def _check_files(raw: Path, audience: Path | None) -> tuple[Path, ...]:
    """The files in the order in which they are read: ads, users, samples, audience. What would fail late fails here."""
    missing = [name for name in FILES if not (raw / name).is_file()]
    if missing:
        raise NotFound(
            f"{raw} lacks {', '.join(missing)}; it must hold the unpacked files of the Tencent Ads 2018 contest: "
            f"{', '.join(FILES)}",
            field=missing[0],
        )
    if audience is not None and not audience.is_file():
        raise NotFound(f"{audience} does not exist; give a file of {SAMPLES_FILE}'s form", field="audience")
    samples = (raw / SAMPLES_FILE, *([] if audience is None else [audience]))
    ads_head(raw / ADS_FILE)
    for path in samples:
        check_samples_head(path)
    return (raw / ADS_FILE, raw / USERS_FILE, *samples)


class _Counter:
    """Bytes of all files together."""

    def __init__(self, total: int, callback: ProgressCallback | None) -> None:
        self._total = total
        self._callback = callback
        self._done = 0

    def advance(self, read: int) -> None:
        self._done += read
        if self._callback is not None:
            self._callback(self._done, self._total)


@dataclass(frozen=True)
class _Read:
    """The files as read. `samples` are of `train.csv`, and of the audience's file if there is one."""

    ads: pa.Table
    users: int
    samples: tuple[Samples, ...]
    reports: tuple[FileReport, ...]


def _read(
    paths: tuple[Path, ...], users: Path, longest: int | None, max_malformed: float, advanced: Callable[[int], None]
) -> _Read:
    """Read them all; users go straight to the file `users`."""
    logs = [FaultLog(path, max_malformed) for path in paths]
    ads = read_ads(paths[0], logs[0], advanced=advanced)
    reports = [logs[0].report()]
    user_ids = _write_users(users, read_users(paths[1], logs[1], longest=longest, advanced=advanced))
    reports.append(logs[1].report())
    if not len(user_ids):
        raise DataCorrupted(f"{paths[1]} holds no users: get the file anew", field=paths[1].name)
    ad_ids = np.sort(ads["aid"].to_numpy())
    user_ids.sort()
    samples: list[Samples] = []
    for path, log in zip(paths[2:], logs[2:], strict=True):
        earlier = samples[0] if samples else None
        samples.append(read_samples(path, log, ad_ids=ad_ids, user_ids=user_ids, earlier=earlier, advanced=advanced))
        reports.append(log.report())
    return _Read(ads, len(user_ids), tuple(samples), tuple(reports))


def _write_users(path: Path, batches: Iterator[pa.RecordBatch]) -> Ints:
    """Write the users and return their ids, both in the order given."""
    user_ids = [np.zeros(0, np.int64)]
    held: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, USERS_SCHEMA, compression="zstd") as writer:
        for batch in batches:
            user_ids.append(batch["user_id"].to_numpy())
            held.append(batch)
            if sum(part.num_rows for part in held) >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(held))
                held = []
        if held:
            writer.write_table(pa.Table.from_batches(held))
    return np.concatenate(user_ids)


def _choose_campaigns(read: _Read) -> tuple[pa.Table, tuple[int, ...]]:
    """Ads that will have both labels in both stages, as campaigns in the file's order; and the ids of the others.

    Raises:
        InvalidInput: there is none.
    """
    ad_ids = read.ads["aid"].to_numpy()
    enough = np.ones(len(ad_ids), np.bool_)
    for samples in read.samples:
        at = 2 * _positions(ad_ids, samples.ad_ids) + samples.labels
        counts = np.bincount(at, minlength=2 * len(ad_ids)).reshape(-1, 2)
        enough &= counts.min(axis=1) >= (2 if len(read.samples) == 1 else 1)
    if not enough.any():
        raise InvalidInput(
            f"no ad of {ADS_FILE} has enough samples of both labels for both stages: are the files of one set?",
            field=SAMPLES_FILE,
        )
    campaigns = read.ads.filter(pa.array(enough)).rename_columns({"aid": "campaign_id"})
    return campaigns, tuple(np.sort(ad_ids[~enough]).tolist())


@dataclass(frozen=True)
class _Rows:
    """`samples.parquet` to be: rows of campaigns, user ids, labels and stages `[samples]`, in the order read."""

    campaigns: Ints
    user_ids: Ints
    labels: npt.NDArray[np.int8]
    stages: npt.NDArray[np.int8]


def _rows(campaign_ids: Ints, files: tuple[Samples, ...]) -> _Rows:
    """The samples of these campaigns, each file a stage."""
    kept = [np.flatnonzero(np.isin(samples.ad_ids, campaign_ids)) for samples in files]
    pairs = list(zip(files, kept, strict=True))
    return _Rows(
        np.concatenate([_positions(campaign_ids, samples.ad_ids[rows]) for samples, rows in pairs]),
        np.concatenate([samples.user_ids[rows] for samples, rows in pairs]),
        np.concatenate([samples.labels[rows] for samples, rows in pairs]),
        np.concatenate([np.full(len(rows), stage, np.int8) for stage, rows in enumerate(kept)]),
    )


def _held_out(rows: _Rows, share: float, rng: np.random.Generator) -> Ints:
    """A random `share` of each campaign's rows of either label, at least one and not all."""
    group = 2 * rows.campaigns + rows.labels
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    counts = [min(max(round(share * len(part)), 1), len(part) - 1) for part in members]
    return np.concatenate([rng.permutation(part)[:count] for part, count in zip(members, counts, strict=True)])


def _write_samples(path: Path, rows: _Rows, campaign_ids: pa.ChunkedArray) -> None:
    """Write them by campaign and stage, so that whoever reads them need not sort."""
    order = np.lexsort((rows.stages, rows.campaigns))
    stages = pa.DictionaryArray.from_arrays(pa.array(rows.stages[order]), pa.array(STAGES))
    table = pa.table(
        {
            "campaign_id": campaign_ids.combine_chunks().take(pa.array(rows.campaigns[order])),
            "user_id": rows.user_ids[order],
            "label": rows.labels[order],
            "stage": stages.dictionary_decode(),
        }
    )
    pq.write_table(table, path, compression="zstd")


def _positions(known: Ints, values: Ints) -> Ints:
    """Where in `known`, of any order, each value is; it is there."""
    order = np.argsort(known)
    return order[np.searchsorted(known[order], values)]
