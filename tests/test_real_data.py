from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from lookalike.dataset.layout import Dataset
from lookalike.evaluation.metrics import auc
from lookalike.model.baselines.logistic_regression import LogisticRegression
from lookalike.pool.ingest import ingest

CAMPAIGNS = 10


def test_a_real_data_set_is_whole_and_its_features_tell_who_is_interested(real_dataset: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(real_dataset)
    pool = ingest(dataset.users_path, tmp_path / "pool")
    aucs = []
    for campaign in dataset.campaign_ids("train")[:CAMPAIGNS]:
        seeds, labels = dataset.samples(campaign, "seed")
        rows = pool.find(seeds)
        assert (rows >= 0).all()
        regression = LogisticRegression(pool.schema).fit(pool.take(rows), labels)
        later, later_labels = dataset.samples(campaign, "audience")
        assert not np.isin(pool.find(later.filter(later_labels == 1)), rows[labels == 1]).any()  # nothing leaks
        aucs.append(auc(later_labels, regression.score(pool.take(pool.find(later)))))
    assert np.mean(aucs) > 0.7


def test_examples_name_a_test_campaign_of_movielens(real_dataset: Path) -> None:
    if real_dataset.resolve().name != "ml1m":
        pytest.skip("wants MovieLens: make test DATA=.../ml1m")
    root = Path(__file__).resolve().parent.parent
    texts = [root / "README.md", *(root / "python" / "lookalike" / "cli").glob("*.py")]
    named = {int(one) for path in texts for one in re.findall(r"ml1m --campaign (\d+)", path.read_text())}
    assert named
    # The model has seen those of training campaigns: what is shown of them is too good.
    assert named <= set(Dataset.open(real_dataset).campaign_ids("test"))
