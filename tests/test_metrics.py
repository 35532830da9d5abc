"""Metrics against scikit-learn and against the definition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lookalike.errors import InvalidInput
from lookalike.evaluation.metrics import auc, evaluate, pooled_auc, precision_recall

Case = tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]


@st.composite
def _cases(draw: st.DrawFn, min_users: int = 2) -> Case:
    n = draw(st.integers(min_users, 80))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), np.int8)
    labels[:2] = [0, 1]
    few = st.sampled_from([0.0, 0.25, 1.0])  # many ties
    scores = draw(st.lists(few | st.floats(-5, 5, width=32), min_size=n, max_size=n))
    return labels, np.array(scores, np.float32)


@given(_cases())
def test_auc_is_scikit_learns(case: Case) -> None:
    assert auc(*case) == pytest.approx(roc_auc_score(*case), abs=1e-12)


@given(_cases(min_users=20), st.randoms())
def test_precision_and_recall_do_not_depend_on_the_order_of_users(case: Case, random: object) -> None:
    labels, scores = case
    ids = np.arange(len(labels)) * 7 - 30
    order = np.array(random.sample(range(len(labels)), len(labels)))  # type: ignore[attr-defined]
    assert precision_recall(labels, scores, ids) == precision_recall(labels[order], scores[order], ids[order])


def test_the_top_is_the_best_twentieth() -> None:
    scores = np.arange(59, dtype=np.float32)
    labels = np.zeros(59, np.int8)
    labels[[58, 3, 4, 5]] = 1
    # floor(0.05 * 59) = 2 users, 58 and 57.
    assert precision_recall(labels, scores, np.arange(59)) == (0.5, 0.25)


@pytest.mark.parametrize("as_text", [False, True])
def test_ties_fall_by_the_id_and_favour_nobody(as_text: bool) -> None:
    labels = (np.arange(2000) < 1000).astype(np.int8)
    ids = np.array([f"u{i}" for i in range(2000)]) if as_text else np.arange(2000)
    precision, recall = precision_recall(labels, np.zeros(2000), ids)
    # 100 of 2,000 equal users, half of them positive: 0.5 by chance, with a standard deviation of 0.05.
    assert 0.3 < precision < 0.7
    assert recall == pytest.approx(precision / 10)


def test_some_of_the_ties_at_the_cutoff_are_in() -> None:
    scores = np.array([9.0] + [5.0] * 10 + [1.0] * 29)
    labels = np.array([0] + [1] * 10 + [0] * 29)
    assert precision_recall(labels, scores, np.arange(40)) == (0.5, 0.1)


def test_ids_may_come_from_arrow() -> None:
    labels, scores = np.array([0, 1] * 20), np.zeros(40)
    for ids in (pa.array(range(40)), pa.array([str(i) for i in range(40)], pa.large_string())):
        assert precision_recall(labels, scores, ids) == precision_recall(labels, scores, np.asarray(ids))


def test_all_metrics_at_once() -> None:
    labels, scores = np.array([1, 0] * 30), np.linspace(1, 0, 60)
    metrics = evaluate(labels, scores, np.arange(60))
    assert (metrics.k, metrics.users, metrics.positives) == (3, 60, 30)
    assert metrics.auc == auc(labels, scores)
    assert (metrics.precision, metrics.recall) == (2 / 3, 2 / 30)


@pytest.mark.parametrize(
    ("labels", "scores", "field"),
    [
        ([0, 1], [0.5], "labels"),
        ([0, 0], [0.5, 0.4], "labels"),
        ([1, 1], [0.5, 0.4], "labels"),
        ([0, 2], [0.5, 0.4], "labels"),
        ([], [], "labels"),
        ([0, 1], [0.5, np.nan], "scores"),
    ],
)
def test_what_has_no_metric_is_refused(labels: list[int], scores: list[float], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        auc(np.array(labels), np.array(scores))
    assert caught.value.field == field


def test_a_top_of_nobody_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nobody"):
        precision_recall(np.array([0, 1] * 9), np.zeros(18), np.arange(18))
    with pytest.raises(InvalidInput, match="user ids"):
        precision_recall(np.array([0, 1] * 10), np.zeros(20), np.arange(19))


def test_pooled_users_count_by_rank_within_their_campaign() -> None:
    labels = np.array([1, 0, 0, 0], np.int8)
    high, low = np.array([9.0, 8.0, 7.0, 6.0]), np.array([0.2, 0.3, 0.1, 0.2])
    # Ranks 4 3 2 1 and 2.5 4 1 2.5, as shares .875 .625 .375 .125 and .5 .875 .125 .5: the first positive is above five
    # of six and level with one, the second above three and level with one.
    assert pooled_auc([(labels, high), (labels, low)]) == pytest.approx((5.5 + 3.5) / 12)
    assert pooled_auc([(labels, high), (labels, 100 * low - 7)]) == pooled_auc([(labels, high), (labels, low)])


@given(_cases())
def test_pooled_alone_is_the_campaign_s_own(case: Case) -> None:
    assert pooled_auc([case]) == pytest.approx(auc(*case))


def test_nothing_to_pool_is_refused() -> None:
    with pytest.raises(InvalidInput):
        pooled_auc([])
