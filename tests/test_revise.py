"""Opt-outs and sizes of finished audiences: exact as a fresh expansion, whole at every moment, gone from every file."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audience_folders import Scored, make_audience, previous_of, ranking
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.errors import DataCorrupted, FailedPrecondition, InvalidInput, NotFound
from lookalike.files import file_digest
from lookalike.retrieval import audience as audience_module
from lookalike.retrieval import listing, membership, revise
from lookalike.retrieval.audience import Audience, IdsFile, MembersFile
from lookalike.retrieval.receipt import AUDIENCE_NAME, RESERVE_NAME, Receipt

BUDGETS = [0.0, 0.1, 0.25, 0.29, 0.5, 0.99, 1.0]


@pytest.fixture(autouse=True, scope="module")
def _disks_are_believed() -> Iterator[None]:
    """What is tested is the order of things; waiting for the disk a thousand times is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder for each of hypothesis's examples."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@contextmanager
def pieces_of(users: int) -> Iterator[None]:
    """Lists come in pieces of so many."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((audience_module, "ROW_GROUP"), (listing, "ROW_GROUP"), (audience_module, "ID_GROUP")):
            patch.setattr(owner, name, users)
        patch.setattr(listing, "_LOOKED_UP", users)
        yield


PIECES = st.sampled_from([1, 2, 5, audience_module.ROW_GROUP])


@st.composite
def pools(draw: st.DrawFn, most: int = 30) -> Scored:
    """Few scores, so that many users are tied; integers or strings as ids."""
    size = draw(st.integers(1, most))
    scores = draw(st.lists(st.sampled_from([0.125, 0.25, 0.5, 0.75]), min_size=size, max_size=size))
    if draw(st.booleans()):
        return Scored(pa.array(np.arange(size) * 3 - 10), scores)
    return Scored(pa.array([f"u{n:03d}" for n in range(size)], pa.large_string()), scores)


def some(draw: Any, pool: Scored, share: float = 1.0) -> list[Any]:
    users = pool.ids.to_pylist()
    return draw(st.lists(st.sampled_from(users), unique=True, max_size=int(len(users) * share)))


def members(folder: Path) -> list[Any]:
    audience = Audience.open(folder)
    return audience.members(0, audience.num_members)["user_id"].to_pylist()


def floor(budget: float, k: int) -> int:
    return int(Decimal(str(budget)) * k)


def by_swaps(pool: Scored, eligible: set[Any], before: set[Any], k: int, budget: float) -> list[Any]:
    """The members, in order, found otherwise: the best, then swaps until few enough are new."""
    order = sorted(eligible, key=lambda user: (-pool.scores[pool.rows([user])[0]], user))
    chosen, rest = order[:k], order[k:]
    while sum(user not in before for user in chosen) > floor(budget, len(chosen)):
        waiting = [user for user in rest if user in before]
        if not waiting:
            break
        chosen.remove([user for user in chosen if user not in before][-1])
        chosen.append(waiting[0])
        rest.remove(waiting[0])
    return [user for user in order if user in chosen]


@settings(max_examples=40)
@given(st.data())
def test_users_who_leave_are_followed_by_whom_a_fresh_expansion_would_choose(data: st.DataObject) -> None:
    pool = data.draw(pools())
    k, reserve = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 8))
    before = set(some(data.draw, pool))
    budget = data.draw(st.sampled_from(BUDGETS))
    previous = previous_of(pool, before, budget) if data.draw(st.booleans()) else None
    seeds = some(data.draw, pool, 0.2)
    excluded = [user for user in some(data.draw, pool, 0.2) if user not in seeds]
    gone: list[Any] = []
    with temporary() as folder, pieces_of(data.draw(PIECES)):
        asked = {"seeds": seeds, "exclusions": excluded, "previous": previous}
        first = make_audience(folder / "a", pool, k, reserve, **asked)
        listed = {*members(folder / "a"), *Audience.open(folder / "a").reserve()["user_id"].to_pylist()}
        for step in range(data.draw(st.integers(1, 3))):
            leaving = some(data.draw, pool, 0.3)
            gone += [user for user in leaving if user not in gone]
            receipt = revise.remove_users(folder / "a", pa.array(leaving, pool.ids.type))
            fresh = make_audience(folder / f"f{step}", pool, k, reserve, opted_out=gone, **asked)
            eligible = set(pool.ids.to_pylist()) - {*seeds, *excluded, *gone}
            assert receipt.k <= fresh.k == min(k, len(eligible))
            if receipt.removed.listed <= reserve or (first.reserve and first.reserve.complete):
                assert receipt.k == fresh.k
            wanted = by_swaps(pool, eligible, before, receipt.k, budget if previous else 1.0)
            assert members(folder / "a") == wanted
            if receipt.k == fresh.k:
                assert (folder / "a" / AUDIENCE_NAME).read_bytes() == (folder / f"f{step}" / AUDIENCE_NAME).read_bytes()
                assert receipt.audience_sha256 == fresh.audience_sha256
                assert (receipt.cutoff_score, receipt.ties_selected) == (fresh.cutoff_score, fresh.ties_selected)
                # Only of who was listed it is known that they tied.
                unknown = [user for user in gone if user not in listed and user not in (*seeds, *excluded)]
                tied = int(np.count_nonzero(pool.scores[pool.rows(unknown)] == np.float32(fresh.cutoff_score or -1)))
                assert fresh.ties_at_cutoff <= receipt.ties_at_cutoff <= fresh.ties_at_cutoff + tied
            kept = {
                user for path in (folder / "a").glob("*.parquet") for user in pq.read_table(path)["user_id"].to_pylist()
            }
            assert not kept & set(gone)
            assert_consistent(folder / "a")


def assert_consistent(folder: Path) -> None:
    """Files, names and receipt agree, and nothing else lies about."""
    receipt = Receipt.read(folder)
    assert file_digest(folder / AUDIENCE_NAME) == receipt.audience_sha256
    known = {"audience.parquet", "seeds.parquet", "manifest.json", revise.LOCK_NAME}
    known |= {"exclusions.parquet"} if receipt.exclusions_sha256 else set()
    if receipt.reserve is not None:
        assert file_digest(folder / RESERVE_NAME) == receipt.reserve.sha256
        assert Audience.open(folder).reserve()["rank"].to_pylist() == list(
            range(receipt.k + 1, receipt.k + receipt.reserve.size + 1)
        )
        known.add("reserve.parquet")
    if receipt.refresh is not None and receipt.churn_budget < 1:
        known.add("previous.parquet")
    assert {path.name for path in folder.iterdir()} <= known


@settings(max_examples=150)
@given(st.data())
def test_a_churn_budget_keeps_the_best_and_replaces_no_more(data: st.DataObject) -> None:
    """Against every set of members that there could be."""
    pool = data.draw(pools(most=8))
    k, budget = data.draw(st.integers(1, 8)), data.draw(st.sampled_from(BUDGETS))
    before = set(some(data.draw, pool))
    chosen, _ = ranking(pool, k, 0, previous=previous_of(pool, before, budget))
    rows = chosen.rows[chosen.members]
    ids = pool.ids.to_pylist()
    joined = [row for row in rows if ids[row] not in before]
    size = min(k, len(ids))
    fewest_new = max(0, size - len(before))
    assert len(rows) == size
    assert len(joined) <= max(floor(budget, size), fewest_new)
    allowed = [
        sum(pool.scores[list(rows)].tolist())
        for rows in itertools.combinations(range(len(ids)), size)
        if sum(ids[row] not in before for row in rows) <= max(floor(budget, size), fewest_new)
    ]
    assert sum(pool.scores[rows].tolist()) == max(allowed)
    told = chosen.refresh(previous_of(pool, before, budget))
    assert (told.joined, told.kept, told.left) == (len(joined), size - len(joined), len(before) - size + len(joined))
    assert told.mean_score == pytest.approx(pool.scores[rows].mean())
    assert told.mean_score_unbounded == pytest.approx(np.sort(pool.scores)[::-1][:size].mean())


def test_a_budget_is_the_decimal_number_it_is_written_as() -> None:
    pool = Scored(pa.array(np.arange(300)), np.linspace(1, 0, 300))
    chosen, _ = ranking(pool, 100, 0, previous=previous_of(pool, set(range(150, 300)), 0.29))
    assert int((chosen.rows[chosen.members] < 150).sum()) == 29  # though 0.29 * 100 is 28.999999999999996


@settings(max_examples=40)
@given(st.data())
def test_a_size_is_changed_within_what_was_kept_and_back(data: st.DataObject) -> None:
    pool = data.draw(pools())
    k, reserve = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 8))
    with temporary() as folder, pieces_of(data.draw(PIECES)):
        first = make_audience(folder / "a", pool, k, reserve)
        most, everyone = revise.capacity(first)
        bytes_before = (folder / "a" / AUDIENCE_NAME).read_bytes()
        for size in data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=3)):
            if size > most and not everyone:
                with pytest.raises(FailedPrecondition) as caught:
                    revise.resize(folder / "a", size)
                assert caught.value.reason == "RESERVE_EXHAUSTED"
                continue
            receipt = revise.resize(folder / "a", size)
            fresh = make_audience(folder / "f", pool, size, 0)
            assert (folder / "a" / AUDIENCE_NAME).read_bytes() == (folder / "f" / AUDIENCE_NAME).read_bytes()
            assert (receipt.k, receipt.k_requested) == (fresh.k, size)
            assert (receipt.cutoff_score, receipt.ties_at_cutoff) == (fresh.cutoff_score, fresh.ties_at_cutoff)
            assert_consistent(folder / "a")
            shutil.rmtree(folder / "f")
        revise.resize(folder / "a", k)
        assert (folder / "a" / AUDIENCE_NAME).read_bytes() == bytes_before


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=4))
def test_a_mean_is_numpys_however_scores_come(sizes: list[int]) -> None:
    scores = np.random.default_rng(1).random(sum(sizes), np.float32)
    found = membership.Mean()
    for some in np.split(scores, np.cumsum(sizes)[:-1]):
        found.add(some)
    assert found.value == float(scores.mean(dtype=np.float64))


@given(
    st.lists(st.sampled_from([0.25, 0.5, 0.75]), max_size=20).map(lambda some: sorted(some, reverse=True)),
    st.data(),
)
def test_a_cutoff_is_the_same_however_a_list_comes(scores: list[float], data: st.DataObject) -> None:
    """Against its definition: whose last score, how many of the best have it, how many of these are members."""
    count = len(scores)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)
    if data.draw(st.booleans()):
        chosen = np.sort(chosen)[::-1]
    listed, beyond = data.draw(st.integers(0, count)), data.draw(st.integers(0, 3))
    best = np.array(scores, np.float32)
    at_end = int(np.count_nonzero(best[:listed] == best[listed - 1])) + beyond if listed else 0
    found, place = membership.CutoffCount(), 0
    while place < count:
        step = data.draw(st.integers(1, 7))
        piece = slice(place, place + step)
        found.add(best[piece], chosen[piece], min(max(listed - place, 0), len(best[piece])))
        place += step
    members = np.flatnonzero(chosen)
    if not len(members):
        assert found.result(at_end) == membership.Cutoff(None, 0, 0)
        return
    last = best[members[-1]]
    selected = int(np.count_nonzero(best[members] == last))
    ties = selected
    if chosen[: len(members)].all():
        ties = at_end if listed and last == best[listed - 1] else int(np.count_nonzero(best[:listed] == last))
    assert found.result(at_end) == membership.Cutoff(float(last), max(ties, selected), selected)


class Killed(BaseException):
    """As a kill: nothing of ours that handles errors sees it."""


class Steps:
    """Kills at the n-th of the steps by which a revision changes a folder, before it is done or just after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, done: bool) -> None:
        self.count = 0
        self._at, self._done = at, done
        for owner, name in (
            (revise, "sync"),
            (revise, "write_whole"),
            (MembersFile, "add"),
            (IdsFile, "add"),
            (Path, "replace"),
            (Path, "unlink"),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            number = self.count
            if number == self._at and not self._done:
                raise Killed
            result = function(*args, **kwargs)
            if number == self._at:
                raise Killed
            return result

        return call


def content(folder: Path) -> tuple[list[Any], list[Any], str]:
    audience = Audience.open(folder)
    return members(folder), audience.reserve()["user_id"].to_pylist(), audience.receipt.audience_sha256


@pytest.mark.parametrize("done", [False, True])
def test_killed_at_any_step_it_is_the_old_or_the_new_one_and_goes_on(done: bool, tmp_path: Path) -> None:
    pool = Scored(pa.array(np.arange(40)), np.linspace(1, 0, 40))
    previous = previous_of(pool, set(range(15, 40)), 0.5)

    def made(name: str) -> Path:
        make_audience(tmp_path / name, pool, 10, 5, seeds=[39, 38], exclusions=[37], previous=previous)
        return tmp_path / name

    leaving = pa.array([0, 16, 38, 37])
    old = content(made("old"))
    revise.remove_users(made("new"), leaving)
    new = content(tmp_path / "new")
    assert old != new
    seen = set()
    for at in itertools.count(1):
        folder = made(f"{at}")
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, at, done=done)
            try:
                revise.remove_users(folder, leaving)
            except Killed:
                pass
            else:
                assert steps.count < at
                break
        found = content(folder)
        assert found in (old, new)
        seen.add(found == new)
        revise.remove_users(folder, leaving)
        assert content(folder) == new
        assert Receipt.read(folder).revision == 1
        assert_consistent(folder)
    assert at > 10
    assert seen == {False, True}


def test_a_revision_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Scored(pa.array(np.arange(40)), np.linspace(1, 0, 40))
    make_audience(tmp_path / "a", pool, 10, 5)
    before = sorted(tmp_path.joinpath("a").iterdir()), content(tmp_path / "a")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(revise, "write_whole", full)
    monkeypatch.setattr(revise, "sync", full)
    with pytest.raises(OSError, match="No space"):
        revise.remove_users(tmp_path / "a", pa.array([3]))
    left = [path for path in sorted(tmp_path.joinpath("a").iterdir()) if path.name != revise.LOCK_NAME]
    assert (left, content(tmp_path / "a")) == before


def test_who_has_it_open_reads_on_as_it_was(tmp_path: Path) -> None:
    pool = Scored(pa.array(np.arange(400_000)), np.linspace(1, 0, 400_000))
    make_audience(tmp_path / "a", pool, 300_000, 50)
    audience = Audience.open(tmp_path / "a")
    batches = audience.batches(100_000)
    first = next(batches)
    revise.remove_users(tmp_path / "a", pa.array([5, 250_000]))
    read = pa.concat_arrays([first["user_id"], *(batch["user_id"] for batch in batches)])
    assert read.to_pylist() == list(range(300_000))
    assert audience.members(4, 6)["user_id"].to_pylist() == [4, 5]
    revise.discard(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert audience.members(299_998, 300_000)["user_id"].to_pylist() == [299_998, 299_999]
    revise.discard(tmp_path / "a")


POOLS: list[pa.MemoryPool] = []  # which must outlive whatever was allocated in them


def most_memory(change: Callable[[], object]) -> tuple[int, int]:
    """Bytes at once: of Arrow's, and of Python's and numpy's."""
    pool, usual = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        change()
        return pool.max_memory(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


@pytest.mark.parametrize(("budget", "bytes_a_user"), [(None, 0), (0.1, 6)])
def test_memory_does_not_grow_with_the_audience(budget: float | None, bytes_a_user: int, tmp_path: Path) -> None:
    """But for flags where there is a churn budget: without it, 8 bytes of id and 4 of score would show."""
    peaks = []
    with pieces_of(2000):
        for users in (40_000, 160_000):
            pool = Scored(pa.array(np.arange(users)), np.linspace(1, 0, users))
            previous = previous_of(pool, set(range(0, users, 2)), budget) if budget is not None else None
            folder = tmp_path / f"{users}"
            make_audience(folder, pool, users // 2, users // 4, previous=previous)
            leaving = pa.array([0, 4, users // 2, 5])
            peaks.append(most_memory(lambda folder=folder, leaving=leaving: revise.remove_users(folder, leaving)))
            assert Receipt.read(folder).removed.listed == 4
            peaks[-1] = max(peaks[-1], most_memory(lambda folder=folder, k=users // 3: revise.resize(folder, k)))
    (arrow, own), (arrow_of_more, own_of_more) = peaks
    assert arrow_of_more < 1.2 * arrow
    assert own_of_more - own < 50_000 + 120_000 * bytes_a_user


def test_what_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    pool = Scored(pa.array(np.arange(40)), np.linspace(1, 0, 40))
    first = make_audience(tmp_path / "a", pool, 10, 5)
    before = (tmp_path / "a" / "manifest.json").stat()
    assert revise.remove_users(tmp_path / "a", pa.array([30, 99, -1])) == first
    assert revise.resize(tmp_path / "a", 10) == first
    assert (tmp_path / "a" / "manifest.json").stat() == before


def test_the_receipt_tells_what_became_of_it(tmp_path: Path) -> None:
    pool = Scored(pa.array(np.arange(40)), np.linspace(1, 0, 40))
    first = make_audience(tmp_path / "a", pool, 10, 5, seeds=[39])
    revise.remove_users(tmp_path / "a", pa.array([0, 12, 39]))
    revise.resize(tmp_path / "a", 8)
    receipt = Receipt.read(tmp_path / "a")
    assert receipt == Receipt.from_json(receipt.to_json())
    assert (receipt.k_requested, receipt.k, receipt.revision) == (8, 8, 2)
    assert (receipt.removed.listed, receipt.removed.seeds) == (2, 1)
    assert [(one.reason, one.removed, one.k) for one in receipt.revisions] == [("opt-out", 2, 10), ("size", 0, 10)]
    assert receipt.revisions[0].audience_sha256 == first.audience_sha256
    assert (receipt.users_scored, receipt.users_skipped) == (first.users_scored, first.users_skipped)
    assert receipt.reserve is not None
    assert (receipt.reserve.size, receipt.reserve.listed, receipt.reserve.complete) == (5, 13, False)


@pytest.mark.parametrize("budget", [0.5, None])
def test_a_reserve_of_another_length_is_damaged(budget: float | None, tmp_path: Path) -> None:
    pool = Scored(pa.array(np.arange(40)), np.linspace(1, 0, 40))
    previous = previous_of(pool, set(range(15, 40)), budget) if budget is not None else None
    make_audience(tmp_path / "a", pool, 10, 5, previous=previous)
    audience_module.write_members(tmp_path / "a" / RESERVE_NAME, pa.array([30]), np.zeros(1, np.float32))
    for change in (
        lambda: revise.resize(tmp_path / "a", 9),
        lambda: revise.remove_users(tmp_path / "a", pa.array([1])),
    ):
        with pytest.raises(DataCorrupted, match="reserve.parquet has 1 users"):
            change()
    assert Receipt.read(tmp_path / "a").revision == 0


def test_wrong_changes_are_refused(tmp_path: Path) -> None:
    pool = Scored(pa.array(np.arange(40)), np.linspace(1, 0, 40))
    make_audience(tmp_path / "a", pool, 10, 5)
    with pytest.raises(InvalidInput, match="this audience's are int64"):
        revise.remove_users(tmp_path / "a", pa.array(["1"], pa.large_string()))
    with pytest.raises(InvalidInput, match="k must be 1"):
        revise.resize(tmp_path / "a", 0)
    for change in (
        lambda: revise.resize(tmp_path / "b", 1),
        lambda: revise.remove_users(tmp_path / "b", pa.array([1])),
    ):
        with pytest.raises(NotFound):
            change()
    assert not (tmp_path / "b").exists()
