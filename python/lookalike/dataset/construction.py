"""From who was interested in what to a dataset in the layout: the choice of campaigns, the split, the negatives.

Knows the layout; knows nothing of where the interest was seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.dataset.layout import CAMPAIGNS, SAMPLES, USERS, Dataset
from lookalike.dataset.sampling import sample_rows
from lookalike.errors import InvalidInput
from lookalike.files import staged_folder

Rows = npt.NDArray[np.int64]

LICENCE = "LICENSE.txt"
NEGATIVES_PER_POSITIVE = 20  # the paper's 1:20
TRAIN_SHARE = 0.6  # the paper's 60/40


@dataclass(frozen=True)
class Interest:
    """Users (rows of the users' table) interested in one campaign; `others` are neither, and never negatives."""

    seeds: Rows
    audience: Rows
    others: Rows


def choose_campaigns(candidates: Rows, share: float, rng: np.random.Generator) -> Rows:
    """A random `share` of the candidates, ascending; the rest are what users' behaviour may be told by."""
    count = round(share * len(candidates))
    if count < 2:
        raise InvalidInput(
            f"only {len(candidates)} items have enough interested users to be campaigns; lower the thresholds",
            field="raw",
        )
    return np.sort(rng.permutation(candidates)[:count])


def choose_splits(campaigns: int, rng: np.random.Generator) -> pa.Array:
    """`train` or `test` for each campaign `[campaigns]`, at random in the paper's proportion."""
    split = np.full(campaigns, "train", object)
    split[rng.permutation(campaigns)[: int((1 - TRAIN_SHARE) * campaigns)]] = "test"
    return pa.array(split, pa.string())


def build(
    output: Path,
    users: pa.Table,
    campaigns: pa.Table,
    interests: Sequence[Interest],
    *,
    rng: np.random.Generator,
    reuse_negatives: bool = False,
    licence: Path | None = None,
    extra: dict[str, pa.Table] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Split the campaigns, draw negatives, write the folder.

    Args:
        users: `user_id` and features; campaigns: `campaign_id` and features; interests: one a campaign.
        reuse_negatives: where users are too few, let the audience's negatives repeat those of the seeds; else both
            stages get fewer, in proportion.
        licence: file to put beside the data. extra: more tables, by file name.

    Raises:
        AlreadyExists: `output` exists and `overwrite` is false.
    """
    campaigns = campaigns.append_column("split", choose_splits(len(interests), rng))
    samples = draw_samples(users["user_id"], campaigns["campaign_id"], interests, rng, reuse_negatives=reuse_negatives)
    return write(
        output,
        {USERS: users, CAMPAIGNS: campaigns, SAMPLES: samples, **(extra or {})},
        files={} if licence is None else {LICENCE: licence.read_bytes()},
        overwrite=overwrite,
    )


def draw_samples(
    user_ids: pa.ChunkedArray,
    campaign_ids: pa.ChunkedArray,
    interests: Sequence[Interest],
    rng: np.random.Generator,
    *,
    reuse_negatives: bool = False,
) -> pa.Table:
    """The samples of all campaigns, one of `interests` each, negatives drawn as `build` says."""
    users = user_ids.combine_chunks()
    return pa.Table.from_batches(
        [
            _samples(campaign_id, interest, users, reuse_negatives, rng)
            for campaign_id, interest in zip(campaign_ids, interests, strict=True)
        ]
    )


def write(output: Path, tables: Mapping[str, pa.Table], *, files: Mapping[str, bytes], overwrite: bool) -> Dataset:
    """Write the folder, `tables` as Parquet and `files` beside them, by file name, and open it.

    Raises:
        AlreadyExists: `output` exists and `overwrite` is false. As `Dataset.open`, and then nothing is left.
    """
    with staged_folder(output, overwrite=overwrite) as folder:
        for name, table in tables.items():
            pq.write_table(table.replace_schema_metadata(None), folder / name, compression="zstd")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        Dataset.open(folder)
    return Dataset.open(output)


def _samples(
    campaign_id: pa.Scalar, interest: Interest, user_ids: pa.Array, reuse: bool, rng: np.random.Generator
) -> pa.RecordBatch:
    rows, labels, stages = [], [], []
    for stage, label, part in _parts(interest, len(user_ids), reuse, rng):
        rows.append(np.sort(part))
        labels.append(np.full(len(part), label, np.int8))
        stages.append(np.full(len(part), stage, np.int8))
    everyone = np.concatenate(rows)
    stage_names = pa.DictionaryArray.from_arrays(pa.array(np.concatenate(stages)), pa.array(["seed", "audience"]))
    return pa.record_batch(
        {
            "campaign_id": pa.repeat(campaign_id, len(everyone)),
            "user_id": user_ids.take(pa.array(everyone)),
            "label": pa.array(np.concatenate(labels)),
            "stage": stage_names.dictionary_decode(),
        }
    )


def _parts(
    interest: Interest, num_users: int, reuse: bool, rng: np.random.Generator
) -> Iterator[tuple[int, int, Rows]]:
    """(stage 0 or 1, label, rows): positives, and negatives from users who never showed interest."""
    interested = np.concatenate([interest.seeds, interest.audience, interest.others])
    free = num_users - len(np.unique(interested))
    for_seeds = NEGATIVES_PER_POSITIVE * len(interest.seeds)
    for_audience = NEGATIVES_PER_POSITIVE * len(interest.audience)
    if reuse:
        for_seeds, for_audience = min(for_seeds, free), min(for_audience, free)
    elif for_seeds + for_audience > free:
        for_seeds = int(free * for_seeds / (for_seeds + for_audience))
        for_audience = free - for_seeds
    fresh = min(for_seeds + for_audience, free)
    drawn = sample_rows(num_users, fresh, interested, rng)
    seed_negatives, audience_negatives = drawn[:for_seeds], drawn[for_seeds:]
    if reuse and len(audience_negatives) < for_audience:
        again = rng.permutation(seed_negatives)[: for_audience - len(audience_negatives)]
        audience_negatives = np.concatenate([audience_negatives, again])
    yield 0, 1, interest.seeds
    yield 0, 0, seed_negatives
    yield 1, 1, interest.audience
    yield 1, 0, audience_negatives
