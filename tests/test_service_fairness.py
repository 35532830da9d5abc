"""Quotas and turns: laws of the order in which tenants are served, whatever they order."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operations import operation

from lookalike.config import QuotasConfig, TenantQuota
from lookalike.service.fairness import Quota, Quotas, Waiting
from lookalike.service.records import PRIORITY_SECONDS, Priority

TENANTS = "abcd"
WEIGHTS = st.dictionaries(st.sampled_from(TENANTS), st.sampled_from([0.5, 1.0, 2.0, 4.0]))


class Queues:
    """Tenants' queues served one turn after the other, as the store does it."""

    def __init__(self, weights: dict[str, float], running: int = 0) -> None:
        self.quotas = Quotas(
            QuotasConfig(running=running, tenants={name: TenantQuota(weight=w) for name, w in weights.items()})
        )
        self.queued: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.last_turn: dict[str, float] = {}

    def serve(self) -> str | None:
        waiting = [
            Waiting(tenant, self.running[tenant], self.last_turn.get(tenant), 0.0)
            for tenant, count in self.queued.items()
            if count
        ]
        turns = self.quotas.turns(waiting, max(self.last_turn.values(), default=0.0))
        if not turns:
            return None
        turn = turns[0]
        self.queued[turn.tenant] -= 1
        self.running[turn.tenant] += 1
        self.last_turn[turn.tenant] = turn.start
        return turn.tenant


EVENTS = st.lists(st.sampled_from(TENANTS) | st.just("serve") | st.sampled_from([f"end {t}" for t in TENANTS]))


@given(weights=WEIGHTS, events=EVENTS, victim=st.sampled_from(TENANTS), greed=st.integers(1, 50))
def test_whoever_waits_is_passed_no_more_often_than_weights_say(
    weights: dict[str, float], events: list[str], victim: str, greed: int
) -> None:
    """After any history, with others who order without end and are done at once, a tenant's turn comes."""
    queues = Queues(weights)
    for event in events:
        if event == "serve":
            queues.serve()
        elif event.startswith("end "):
            queues.running[event[4:]] = max(0, queues.running[event[4:]] - 1)
        else:
            queues.queued[event] += 1
    queues.running.clear()
    queues.queued = Counter(dict.fromkeys(TENANTS, 1000 * greed))
    passed: Counter[str] = Counter()
    for _ in range(1000):
        tenant = queues.serve()
        assert tenant is not None
        queues.running[tenant] -= 1
        if tenant == victim:
            break
        passed[tenant] += 1
    own = weights.get(victim, 1.0)
    for tenant, count in passed.items():
        assert count <= math.ceil(weights.get(tenant, 1.0) / own) + 1


@given(weights=WEIGHTS, rounds=st.integers(1, 60))
def test_turns_are_in_proportion_to_weights(weights: dict[str, float], rounds: int) -> None:
    queues = Queues(weights)
    queues.queued.update(dict.fromkeys(TENANTS, 10_000))
    served: Counter[str] = Counter()
    for _ in range(rounds):
        tenant = queues.serve()
        assert tenant is not None
        queues.running[tenant] -= 1
        served[tenant] += 1
    for a in TENANTS:
        for b in TENANTS:
            weight_a, weight_b = weights.get(a, 1.0), weights.get(b, 1.0)
            assert abs(served[a] / weight_a - served[b] / weight_b) <= 1 / weight_a + 1 / weight_b


@given(weights=WEIGHTS, idle=st.integers(1, 100))
def test_an_idle_tenant_saves_nothing_up(weights: dict[str, float], idle: int) -> None:
    queues = Queues(weights)
    queues.queued.update({"a": 10_000})
    for _ in range(idle):
        queues.serve()
        queues.running.clear()
    queues.queued.update({"b": 10_000})
    served = [queues.serve() for _ in range(20) if not queues.running.clear()]  # type: ignore[func-returns-value]
    weight_a, weight_b = weights.get("a", 1.0), weights.get("b", 1.0)
    first_a = served.index("a")
    assert first_a <= math.ceil(weight_b / weight_a) + 1


@given(accepted=st.lists(st.tuples(st.integers(0, 5000), st.sampled_from(Priority)), min_size=1))
def test_no_priority_lets_an_operation_wait_for_ever(accepted: list[tuple[int, Priority]]) -> None:
    orders = [operation(str(n), created=then, priority=priority) for n, (then, priority) in enumerate(accepted)]
    queue = sorted(orders, key=lambda one: one.due)
    for n, before in enumerate(queue):
        for after in queue[n + 1 :]:
            ahead = before.priority - after.priority
            assert before.created <= after.created + ahead * PRIORITY_SECONDS


def test_the_fewest_running_come_first() -> None:
    quotas = Quotas(QuotasConfig(tenants={"b": TenantQuota(weight=4)}))
    turns = quotas.turns([Waiting("a", 1, None, 0), Waiting("b", 3, 9.0, 0), Waiting("c", 2, None, 0)], 5.0)
    assert [turn.tenant for turn in turns] == ["b", "a", "c"]


def test_among_equals_the_longest_waiting_comes_first() -> None:
    turns = Quotas(QuotasConfig()).turns([Waiting("a", 0, None, 7.0), Waiting("b", 0, None, 3.0)], 0.0)
    assert [turn.tenant for turn in turns] == ["b", "a"]


def test_who_may_run_no_more_is_left_out() -> None:
    quotas = Quotas(QuotasConfig(running=2, tenants={"b": TenantQuota(running=3)}))
    turns = quotas.turns([Waiting("a", 2, None, 0), Waiting("b", 2, None, 0), Waiting("c", 1, None, 0)], 0.0)
    assert {turn.tenant for turn in turns} == {"b", "c"}


@pytest.mark.parametrize(
    ("tenant", "quota"),
    [("x", Quota(1000, None, None, 1.0)), ("own", Quota(5, 2, 100, 2.5)), ("some", Quota(1000, None, 7, 1.0))],
)
def test_a_tenants_own_quotas_go_before_everyones(tenant: str, quota: Quota) -> None:
    own = TenantQuota(queued=5, running=2, per_day=100, weight=2.5)
    assert Quotas(QuotasConfig(tenants={"own": own, "some": TenantQuota(per_day=7)})).of(tenant) == quota
