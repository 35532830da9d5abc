"""What is to be said of a run when everything has been stopped. Knows only what it is handed: no process, no service.

An operation counts as accepted when a client was told so. Accepted operations must be in the store and done: with the
bytes of an undisturbed run, or with an error that a fault explains. Nothing else may be left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ledger import Entry
from plan import Order

# Faults that end a run of a job. When a front dies, runs of its operations are counted anew; those lost so, apart.
DEADLY = frozenset({"kill-worker", "kill-jvm", "kill-leash", "kill-torchserve", "stop-worker"})
# What may end an operation badly: the error's reason, and which fault it takes.
EXPLAINED: Mapping[str, frozenset[str]] = {
    "DISK_FULL": frozenset({"fill-disk"}),
    "WORKER_DIED": DEADLY,
    "WORKER_SILENT": DEADLY,
    "UNAVAILABLE": DEADLY,
    "SERVER_DIED": frozenset({"kill-front", "stop-front"}),
}
# Codes with which a call may be refused while its service is being mistreated: each says that it may be tried again.
REFUSALS = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"})


@dataclass(frozen=True)
class Struck:
    """A fault that was carried out, from when to when; Unix seconds."""

    kind: str
    begin: float
    end: float


@dataclass(frozen=True)
class Stored:
    """An operation as the store has it in the end; times are Unix seconds."""

    id: str
    request_id: str
    state: str
    created: float
    ended: float | None
    attempts: int = 0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Kept:
    """An audience's folder: the digests of its files as they are, and what is wrong with it."""

    audience_sha256: str = ""
    damage: str = ""


@dataclass(frozen=True)
class Found:
    """What there is when all is stopped.

    Attributes:
        audiences: by the folder's name, which is the operation's id.
        left: files and folders that belong to nothing; processes: that still run.
    """

    operations: Sequence[Stored]
    audiences: Mapping[str, Kept]
    left: Sequence[str] = ()
    processes: Sequence[str] = ()


@dataclass
class Verdict:
    """`wrong` is empty when nothing was lost."""

    wrong: list[str] = field(default_factory=list)
    accepted: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    runs: Counter[int] = field(default_factory=Counter)


def judge(
    orders: Sequence[Order],
    undisturbed: Mapping[str, Mapping[str, str]],
    entries: Sequence[Entry],
    struck: Sequence[Struck],
    found: Found,
    *,
    max_attempts: int,
    max_lost_runs: int,
) -> Verdict:
    """The verdict on a run.

    Args:
        undisturbed: for each content of an order `audience_sha256` and `members_sha256`.
        entries: what the clients noted.
        struck: the faults.
        max_attempts: runs of one job before it fails, as the service was told; max_lost_runs: those whose front dies.
    """
    needed = {"DISK_FULL": 1, "SERVER_DIED": max_lost_runs}
    by_number = {order.number: order for order in orders}
    told = _accepted(by_number, entries)
    stored = {one.id: one for one in found.operations}
    verdict = Verdict(accepted=len(told))
    verdict.refusals.update(f"{e.told['method']} {e.told['code']}" for e in entries if e.event == "refused")
    verdict.wrong += _doubled(by_number, told, found.operations, entries)
    for request_id, ids in told.items():
        verdict.wrong += [f"{request_id}: operations/{one} was accepted and is lost" for one in ids - stored.keys()]
    requests = {order.request_id: order for order in orders}
    for one in found.operations:
        verdict.ends[_end(one)] += 1
        verdict.runs[one.attempts] += 1
        order = requests.get(one.request_id)
        if order is not None:
            explained = _explained(one, struck, needed.get(one.reason, max_attempts))
            wrong = _ended_badly(one, order, undisturbed[order.content], found, entries, explained)
            verdict.wrong += [f"{order.request_id}: operations/{one.id} {text}" for text in wrong]
    for name in found.audiences.keys() - {one.id for one in found.operations if one.state == "SUCCEEDED"}:
        verdict.wrong.append(f"audiences/{name} is of no operation that succeeded")
    verdict.wrong += _lies(by_number, stored, undisturbed, entries)
    verdict.wrong += [f"{path} is left over" for path in found.left]
    verdict.wrong += [f"process {process} still runs" for process in found.processes]
    return verdict


def _accepted(orders: Mapping[int, Order], entries: Sequence[Entry]) -> dict[str, set[str]]:
    told: dict[str, set[str]] = {}
    for entry in entries:
        if entry.event == "accepted":
            name = str(entry.told["operation"]).removeprefix("operations/")
            told.setdefault(orders[entry.order].request_id, set()).add(name)
    return told


def _doubled(
    orders: Mapping[int, Order],
    told: Mapping[str, set[str]],
    operations: Sequence[Stored],
    entries: Sequence[Entry],
) -> Iterator[str]:
    for request_id, ids in told.items():
        if len(ids) > 1:
            yield f"{request_id}: two operations were accepted for it: {', '.join(sorted(ids))}"
    for request_id, count in Counter(one.request_id for one in operations).items():
        if count > 1:
            yield f"{request_id}: the store has {count} operations for it"
    sent = {orders[entry.order].request_id for entry in entries if entry.event == "sent"}
    for one in operations:
        if one.request_id not in sent:
            yield f"operations/{one.id} was ordered by nobody (request_id '{one.request_id}')"


def _ended_badly(
    one: Stored,
    order: Order,
    expected: Mapping[str, str],
    found: Found,
    entries: Sequence[Entry],
    explained: bool,
) -> Iterator[str]:
    match one.state:
        case "SUCCEEDED":
            kept = found.audiences.get(one.id)
            if kept is None:
                yield "succeeded and has no audience"
            elif kept.damage:
                yield f"has a damaged audience: {kept.damage}"
            elif kept.audience_sha256 != expected["audience_sha256"]:
                yield "has other bytes than the undisturbed run"
        case "CANCELLED":
            if not any(entry.order == order.number and entry.event == "cancelled" for entry in entries):
                yield "is cancelled, and nobody asked for it"
        case "FAILED":
            if not explained:
                yield f"failed, and no fault explains it: {one.reason}: {one.message}"
        case _:
            yield f"is not done: {one.state}"


def _explained(one: Stored, struck: Sequence[Struck], needed: int) -> bool:
    """Whether enough of what may cause its error struck between its acceptance and its end."""
    until = float("inf") if one.ended is None else one.ended
    in_time = [fault for fault in struck if fault.begin <= until and fault.end >= one.created]
    causes = sum(fault.kind in EXPLAINED.get(one.reason, frozenset()) for fault in in_time)
    return causes >= needed


def _lies(
    orders: Mapping[int, Order],
    stored: Mapping[str, Stored],
    undisturbed: Mapping[str, Mapping[str, str]],
    entries: Sequence[Entry],
) -> Iterator[str]:
    """What clients were told that is not so."""
    for entry in entries:
        order = orders[entry.order]
        expected = undisturbed[order.content]
        if entry.event == "refused" and entry.told["code"] not in REFUSALS:
            told = f"{entry.told['code']}, {entry.told['reason']}: {entry.told['message']}"
            yield f"{order.request_id}: {entry.told['method']} was refused with {told}"
        elif entry.event == "read" and entry.told["members_sha256"] != expected["members_sha256"]:
            yield f"{order.request_id}: a client read other members than the undisturbed run has"
        elif entry.event == "ended":
            one = stored.get(str(entry.told["operation"]).removeprefix("operations/"))
            if one is None:
                continue
            if "audience_sha256" in entry.told and one.state != "SUCCEEDED":
                yield f"{order.request_id}: a client was told of success, and the store says {one.state}"
            elif "error" in entry.told and entry.told["error"] != one.reason:
                yield f"{order.request_id}: a client was told {entry.told['error']}, the store says {_end(one)}"


def _end(one: Stored) -> str:
    return f"{one.state} {one.reason}".strip() if one.state != "CANCELLED" else one.state
