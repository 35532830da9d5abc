"""KuaiRand-Pure, as its authors publish it, to the layout: a campaign is a video, interest is a long view.

Knows the raw files; knows nothing of where they come from. Features tell only of videos that are no campaign, and
only of the first period. Seeds watched in it; the audience did so in the last two weeks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from lookalike.dataset.behaviour import latest, most_frequent, spoken
from lookalike.dataset.construction import Interest, build, choose_campaigns
from lookalike.dataset.layout import Dataset
from lookalike.errors import DataCorrupted, NotFound

USERS_FILE = "user_features_pure.csv"
VIDEOS_FILE = "video_features_basic_pure.csv"
FIRST_LOG = "log_standard_4_08_to_4_21_pure.csv"
LATER_LOGS = ("log_standard_4_22_to_5_08_pure.csv", "log_random_4_22_to_5_08_pure.csv")
FILES = (USERS_FILE, VIDEOS_FILE, FIRST_LOG, *LATER_LOGS)
LICENCE_FILE = "LICENSE"
EVENTS = "events.parquet"

CAMPAIGN_SHARE = 0.5  # of the videos watched often enough; the others feed the features
# Three days lie between the seeds' period and the audience's, as when a campaign is planned before it runs.
AUDIENCE_DATES = (20220425, 20220508)

_PROFILE = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{number}" for number in range(18)),
)
_VIDEO = ("author_id", "video_type", "upload_type", "video_duration", "music_type", "tag")
_LOG = {
    "user_id": pa.int64(),
    "video_id": pa.int64(),
    "date": pa.int64(),
    "time_ms": pa.int64(),
    "is_click": pa.int8(),
    "long_view": pa.int8(),
    "is_like": pa.int8(),
    "play_time_ms": pa.int32(),
}
_DURATIONS = ((10, "<10s"), (20, "10-20s"), (40, "20-40s"), (80, "40-80s"), (160, "80-160s"), (np.inf, ">160s"))

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Views:
    """Long views `[views]`: rows of users and of videos, dates and times."""

    user: Ints
    video: Ints
    date: Ints
    time: Ints


def convert(
    raw: Path,
    output: Path,
    *,
    seed: int = 0,
    min_seeds: int = 50,
    min_audience: int = 20,
    overwrite: bool = False,
) -> Dataset:
    """Write the dataset, and `events.parquet` with the campaigns' exposures, from a folder of the raw CSV files.

    Same arguments, same bytes.

    Args:
        seed: of the choice of campaigns, split and negatives.
        min_seeds, min_audience: long-viewing users of either period that a video needs to be a campaign.

    Raises:
        NotFound: a raw file is missing. DataCorrupted: one lacks a column or is not in the published format.
        InvalidInput: hardly any video is watched often enough. AlreadyExists: `output` exists.
    """
    people = _read(raw / USERS_FILE, {"user_id": pa.int64(), **dict.fromkeys(_PROFILE, pa.string())}).sort_by("user_id")
    videos = _read(raw / VIDEOS_FILE, {"video_id": pa.int64(), **dict.fromkeys(_VIDEO, pa.string())}).sort_by(
        "video_id"
    )
    early = _read(raw / FIRST_LOG, _LOG)
    late = pa.concat_tables([_read(raw / name, _LOG) for name in LATER_LOGS])
    before = _views(early, people, videos, raw / FIRST_LOG)
    after = _views(late, people, videos, raw / LATER_LOGS[0])
    rng = np.random.default_rng(seed)

    interests = _interests(before, after, videos.num_rows)
    popular = [row for row, i in interests.items() if len(i.seeds) >= min_seeds and len(i.audience) >= min_audience]
    chosen = choose_campaigns(np.array(popular, np.int64), CAMPAIGN_SHARE, rng)
    features = _video_features(videos)
    told = ~np.isin(before.video, chosen)  # what features may tell
    told_views = _Views(before.user[told], before.video[told], before.date[told], before.time[told])
    return build(
        output,
        _users(people, features, told_views),
        features.take(pa.array(chosen)).rename_columns(["campaign_id", *features.column_names[1:]]),
        [interests[int(row)] for row in chosen],
        rng=rng,
        reuse_negatives=True,
        licence=raw / LICENCE_FILE if (raw / LICENCE_FILE).exists() else None,
        extra={EVENTS: _events(late, videos["video_id"].take(pa.array(chosen)))},
        overwrite=overwrite,
    )


def _views(log: pa.Table, people: pa.Table, videos: pa.Table, path: Path) -> _Views:
    long = log.filter(pc.equal(log["long_view"], 1))
    rows = []
    for name, known in (("user_id", people), ("video_id", videos)):
        found = pc.index_in(long[name], value_set=known[name].combine_chunks())
        if found.null_count:
            example = long[name].filter(pc.is_null(found))[0].as_py()
            raise DataCorrupted(f"{path} names {name} {example}, which the features lack", field=path.name)
        rows.append(found.to_numpy().astype(np.int64))
    return _Views(rows[0], rows[1], long["date"].to_numpy(), long["time_ms"].to_numpy())


def _interests(before: _Views, after: _Views, num_videos: int) -> dict[int, Interest]:
    """By video row: seeds of the first period, the audience's new users, and who watched only in between."""
    in_time = (after.date >= AUDIENCE_DATES[0]) & (after.date <= AUDIENCE_DATES[1])
    seeds = _users_by_video(before.user, before.video, num_videos)
    audience = _users_by_video(after.user[in_time], after.video[in_time], num_videos)
    between = _users_by_video(after.user[~in_time], after.video[~in_time], num_videos)
    interests = {}
    for video in range(num_videos):
        new = np.setdiff1d(audience[video], seeds[video])
        interests[video] = Interest(seeds[video], new, between[video])
    return interests


def _users_by_video(user: Ints, video: Ints, num_videos: int) -> list[Ints]:
    base = int(user.max(initial=0)) + 1
    pairs = np.unique(video * base + user)
    return np.split(pairs % base, np.searchsorted(pairs, np.arange(1, num_videos) * base))


def _video_features(videos: pa.Table) -> pa.Table:
    seconds = pc.divide(pc.cast(videos["video_duration"], pa.float64()), 1000).to_numpy()
    # NaN, a missing duration, is below no limit.
    names = [next((name for limit, name in _DURATIONS if value < limit), None) for value in seconds.tolist()]
    tags = pc.split_pattern(pc.fill_null(videos["tag"], ""), ",").combine_chunks()
    tags = pc.if_else(pc.is_null(videos["tag"].combine_chunks()), pa.scalar([], tags.type), tags)
    return pa.table(
        {
            "video_id": videos["video_id"],
            **{name: videos[name] for name in ("author_id", "video_type", "upload_type", "music_type")},
            "duration": pa.array(names, pa.string()),
            "tag": tags,
        }
    )


def _users(people: pa.Table, features: pa.Table, views: _Views) -> pa.Table:
    num_users = people.num_rows
    tags, authors = features["tag"].combine_chunks(), features["author_id"].combine_chunks()
    titles = pc.cast(features["video_id"].combine_chunks(), pa.string())
    return pa.table(
        {
            "user_id": people["user_id"],
            **{name: people[name] for name in _PROFILE},
            "interest_tags": most_frequent(*spoken(views.user, views.video, tags), num_users, limit=10),
            "watched_videos": latest(views.user, views.video, views.time, titles, num_users, limit=20),
            "watched_authors": most_frequent(*spoken(views.user, views.video, authors), num_users, limit=10),
        }
    )


def _events(log: pa.Table, campaign_ids: pa.ChunkedArray) -> pa.Table:
    """The campaigns' exposures of the audience's period, in time order."""
    in_time = pc.and_(pc.greater_equal(log["date"], AUDIENCE_DATES[0]), pc.less_equal(log["date"], AUDIENCE_DATES[1]))
    shown = log.filter(pc.and_(in_time, pc.is_in(log["video_id"], value_set=campaign_ids.combine_chunks())))
    shown = shown.sort_by([("time_ms", "ascending"), ("user_id", "ascending"), ("video_id", "ascending")])
    columns = ["video_id", "user_id", "time_ms", "is_click", "long_view", "is_like", "play_time_ms"]
    return shown.select(columns).rename_columns(["campaign_id", *columns[1:]])


def _read(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """Some columns of a CSV file. Categories that were written as floats ("9.0") lose the ".0"."""
    try:
        table = csv.read_csv(
            path,
            convert_options=csv.ConvertOptions(
                include_columns=list(columns), column_types=columns, null_values=[""], strings_can_be_null=True
            ),
        )
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing; the folder must hold {', '.join(FILES)}", field=path.name) from error
    except (pa.ArrowException, KeyError) as error:
        raise DataCorrupted(f"{path} is not in KuaiRand-Pure's format: {error}", field=path.name) from error
    for number, (name, kind) in enumerate(columns.items()):
        if pa.types.is_string(kind):
            table = table.set_column(number, name, pc.replace_substring_regex(table[name], r"^(-?\d+)\.0$", r"\1"))
    return table
