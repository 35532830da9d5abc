from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.dataset.layout import Dataset
from lookalike.errors import InvalidInput
from lookalike.evaluation.metrics import auc
from lookalike.model.baselines.logistic_regression import LogisticRegression
from lookalike.model.one_hot import one_hot
from lookalike.pool.snapshot import Pool
from lookalike.schema import FeatureSchema, Field, FieldKind

SCHEMA = FeatureSchema(
    (
        Field("city", FieldKind.CATEGORICAL, values=("paris", "rome")),
        Field("tags", FieldKind.MULTI, values=("a", "b")),
        Field("age", FieldKind.NUMERIC, boundaries=(30.0,)),
    )
)
USERS = SCHEMA.encode(
    pa.table(
        {
            "city": ["rome", None, "oslo"],
            "tags": [["a", "b"], [], ["a", "a"]],
            "age": [20.0, 40.0, None],
        }
    ),
    where="users",
)
EXPECTED = [
    # city: missing unknown paris rome; tags: missing unknown a b; age: missing unknown <30 >=30
    [0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0, 1, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0],
]


def test_one_hot_has_a_column_for_every_id_and_counts_values() -> None:
    assert one_hot(SCHEMA, USERS).toarray().tolist() == EXPECTED


def test_one_hot_of_a_slice_is_the_slice_of_one_hot() -> None:
    assert one_hot(SCHEMA, USERS.slice(1, 3)).toarray().tolist() == EXPECTED[1:]


def test_it_learns_who_is_interested(sample_dataset: Path, sample_pool: Path) -> None:
    dataset, pool = Dataset.open(sample_dataset), Pool.open(sample_pool)
    aucs = []
    for campaign in dataset.campaign_ids("test"):
        users, labels = dataset.samples(campaign, "seed")
        model = LogisticRegression(pool.schema).fit(pool.take(pool.find(users)), labels)
        later, later_labels = dataset.samples(campaign, "audience")
        aucs.append(auc(later_labels, model.score(pool.take(pool.find(later)))))
    assert np.mean(aucs) > 0.6


def test_labels_that_are_all_alike_teach_nothing() -> None:
    with pytest.raises(InvalidInput, match="some 1 and some 0"):
        LogisticRegression(SCHEMA).fit(USERS, np.ones(3, np.int8))
