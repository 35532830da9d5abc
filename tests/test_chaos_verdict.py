"""The verdict of `make chaos` must be able to fail: for each thing that may go wrong, a run in which it did."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "chaos"))

import plan
from customers import remaining
from ledger import Entry, Ledger, read
from plan import Order
from verdict import Found, Kept, Stored, Struck, Verdict, judge

BYTES = {"audience_sha256": "a" * 64, "members_sha256": "b" * 64}
ATTEMPTS = 3


def order(number: int, sort: str = "patient") -> Order:
    return Order(number, f"r{number}", at=0.0, sort=sort, pause=0.0, campaign=1, k=10, random_seed=0)


ORDERS = [order(0), order(1), order(2, "cancelling"), order(3), order(4, "vanishing")]
ENTRIES = [
    *(Entry(10.0, number, "sent", {}) for number in range(5)),
    *(Entry(11.0, number, "accepted", {"operation": f"operations/o{number}"}) for number in range(4)),
    Entry(12.0, 1, "accepted", {"operation": "operations/o1"}),  # it asked twice
    Entry(12.0, 2, "cancelled", {}),
    Entry(12.0, 0, "refused", {"method": "WaitOperation", "code": "UNAVAILABLE", "reason": "R", "message": "away"}),
    Entry(13.0, 0, "ended", {"operation": "operations/o0", "audience_sha256": BYTES["audience_sha256"]}),
    Entry(13.0, 0, "read", {"members_sha256": BYTES["members_sha256"]}),
    Entry(14.0, 3, "ended", {"operation": "operations/o3", "error": "DISK_FULL"}),
]
STRUCK = [Struck("fill-disk", 12.0, 13.0), Struck("kill-worker", 12.0, 12.0), Struck("kill-jvm", 12.5, 12.5)]
OPERATIONS = [
    Stored("o0", "r0", "SUCCEEDED", 11.0, 13.0, attempts=2),
    Stored("o1", "r1", "SUCCEEDED", 11.0, 13.0, attempts=1),
    Stored("o2", "r2", "CANCELLED", 11.0, 12.5, reason="CANCELLED"),
    Stored("o3", "r3", "FAILED", 11.0, 14.0, attempts=3, reason="DISK_FULL", message="full"),
]
FOUND = Found(OPERATIONS, {name: Kept(BYTES["audience_sha256"]) for name in ("o0", "o1")})


def verdict(found: Found = FOUND, *, more: list[Entry] | None = None, struck: list[Struck] | None = None) -> Verdict:
    entries = [*ENTRIES, *(more or [])]
    undisturbed = {one.content: BYTES for one in ORDERS}
    faults = STRUCK if struck is None else struck
    return judge(ORDERS, undisturbed, entries, faults, found, max_attempts=ATTEMPTS, max_lost_runs=ATTEMPTS + 1)


def changed(number: int, **changes: object) -> Found:
    operations = [replace(one, **changes) if one.id == f"o{number}" else one for one in OPERATIONS]
    return replace(FOUND, operations=operations)


def test_a_run_in_which_nothing_was_lost() -> None:
    good = verdict()
    assert good.wrong == []
    assert good.accepted == 4
    assert good.ends == {"SUCCEEDED": 2, "CANCELLED": 1, "FAILED DISK_FULL": 1}
    assert good.refusals == {"WaitOperation UNAVAILABLE": 1}


def test_who_vanished_may_or_may_not_have_ordered() -> None:
    late = Stored("o4", "r4", "SUCCEEDED", 11.0, 13.0)
    found = Found([*OPERATIONS, late], {**FOUND.audiences, "o4": Kept(BYTES["audience_sha256"])})
    assert verdict(found).wrong == []


AUDIENCES = dict(FOUND.audiences)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (replace(FOUND, operations=OPERATIONS[1:]), "r0: operations/o0 was accepted and is lost"),
        (replace(FOUND, operations=[*OPERATIONS, replace(OPERATIONS[2], id="x")]), "r2: the store has 2 operations"),
        (replace(FOUND, operations=[*OPERATIONS, replace(OPERATIONS[2], id="x", request_id="")]), "ordered by nobody"),
        (changed(1, state="RUNNING", ended=None), "o1 is not done: RUNNING"),
        (changed(1, state="QUEUED", ended=None), "o1 is not done: QUEUED"),
        (changed(1, state="CANCELLED"), "nobody asked for it"),
        (changed(3, reason="INTERNAL"), "no fault explains it: INTERNAL"),
        (changed(3, reason="WORKER_DIED"), "no fault explains it: WORKER_DIED"),  # two of three runs
        (changed(3, ended=11.5), "no fault explains it: DISK_FULL"),  # before the disk was full
        (changed(3, created=13.5), "no fault explains it: DISK_FULL"),  # after it
        (replace(FOUND, audiences={"o0": AUDIENCES["o0"]}), "o1 succeeded and has no audience"),
        (replace(FOUND, audiences={**AUDIENCES, "o1": Kept(damage="half")}), "o1 has a damaged audience: half"),
        (replace(FOUND, audiences={**AUDIENCES, "o1": Kept("c" * 64)}), "o1 has other bytes"),
        (replace(FOUND, audiences={**AUDIENCES, "o2": AUDIENCES["o0"]}), "audiences/o2 is of no operation"),
        (replace(FOUND, left=["jobs/o1.tmp-3"]), "jobs/o1.tmp-3 is left over"),
        (replace(FOUND, processes=["7 (java)"]), "process 7 (java) still runs"),
    ],
)
def test_what_is_found_in_the_end(found: Found, said: str) -> None:
    assert any(said in wrong for wrong in verdict(found).wrong)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("accepted", 0, {"operation": "operations/o9"}), "r0: two operations were accepted for it: o0, o9"),
        (("ended", 3, {"operation": "operations/o3", "audience_sha256": "a"}), "told of success"),
        (("ended", 3, {"operation": "operations/o3", "error": "CANCELLED"}), "told CANCELLED"),
        (("read", 1, {"members_sha256": "c"}), "read other members"),
        (
            ("refused", 1, {"method": "GetOperation", "code": "INTERNAL", "reason": "X", "message": "a defect"}),
            "refused with INTERNAL, X: a defect",
        ),
    ],
)
def test_what_clients_were_told(entry: tuple[str, int, dict[str, str]], said: str) -> None:
    event, number, told = entry
    assert any(said in wrong for wrong in verdict(more=[Entry(15.0, number, event, told)]).wrong)


def test_a_fault_explains_only_what_it_can_cause() -> None:
    assert verdict(struck=STRUCK[1:]).wrong == ["r3: operations/o3 failed, and no fault explains it: DISK_FULL: full"]
    deadly = [*STRUCK, Struck("stop-worker", 11.5, 13.0)]
    died = changed(3, reason="WORKER_DIED")
    told = [wrong for wrong in verdict(died, struck=deadly).wrong if "explains" in wrong]
    assert told == []
    killed = [Struck("kill-front", 11.5, 11.5), Struck("stop-front", 12.0, 12.5), Struck("kill-front", 13.0, 13.0)]
    lost = changed(3, reason="SERVER_DIED")
    for struck, explained in (([*killed, *deadly], False), ([*killed, Struck("kill-front", 13.5, 13.5)], True)):
        assert explained is not any("explains" in wrong for wrong in verdict(lost, struck=struck).wrong)


def test_the_plan_is_the_seeds() -> None:
    orders = plan.draw_orders(7, 40, 60.0, [1, 2, 3])
    faults = plan.draw_faults(7, 300.0, 3.0, list(plan.DECK))
    assert orders == plan.draw_orders(7, 40, 60.0, [1, 2, 3])
    assert faults == plan.draw_faults(7, 300.0, 3.0, list(plan.DECK))
    assert faults != plan.draw_faults(8, 300.0, 3.0, list(plan.DECK))
    assert len({one.request_id for one in orders}) == 40
    assert {one.kind for one in faults} == plan.DECK.keys()
    assert {one.sort for one in orders} == plan.SORTS.keys()
    assert plan.draw_faults(7, 300.0, 3.0, []) == []


def test_clients_that_go_on_for_others_leave_alone_what_is_over(tmp_path: Path) -> None:
    orders = [
        order(0),
        order(1),
        order(2, "vanishing"),
        order(3, "leaving"),
        order(4, "leaving"),
        order(5, "vanishing"),
    ]
    ledger = Ledger(tmp_path / "ledger")
    for number in range(5):
        ledger.note(number, "sent")
    ledger.note(0, "over")
    ledger.note(3, "accepted", operation="operations/x")
    assert [one.number for one in remaining(orders, tmp_path / "ledger")] == [1, 4, 5]
    assert read(tmp_path / "ledger")[-1].told == {"operation": "operations/x"}
