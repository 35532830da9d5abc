"""The clients: real ones over gRPC, of several sorts, in a process that is itself killed now and then.

    python chaos/customers.py ORDERS LEDGER DATASET BEGIN ADDRESS...

Places the orders of ORDERS from the Unix time BEGIN on, a thread each, and notes everything in LEDGER. A process that
goes on for one that was killed leaves alone what that one had done with. All but those who vanish for good order until
they are accepted, with the same request_id, whatever happens to the service.

    patient      orders, waits for the end, reads the members
    returning    hangs up in the middle of ordering, then orders the same again
    vanishing    hangs up in the middle of ordering, for good
    leaving      orders, hangs up in the middle of waiting, every other one of reading, for good
    twice        orders the same over two connections at once
    cancelling   orders, cancels, waits for the end
"""

from __future__ import annotations

import hashlib
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import plan
import pyarrow as pa
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2
from ledger import Ledger
from ledger import read as read_ledger
from plan import Order

from lookalike.dataset.layout import Dataset
from lookalike.service.status import from_rpc_error, from_status
from lookalike.v1 import audience_pb2, audience_pb2_grpc, campaign_pb2

CALL_SECONDS = 6.0
WAIT_SECONDS = 3.0
AGAIN_SECONDS = 0.7  # between two tries
GIVE_UP_SECONDS = 600.0  # of one order; only a service that stays away gets there


class Connection:
    """Channels of one's own to a front: equal arguments would share one."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self._open()

    def _open(self) -> None:
        self._channel = grpc.insecure_channel(
            random.choice(self._addresses), options=[("lookalike.customer", random.random())]
        )
        self.audiences = audience_pb2_grpc.AudienceServiceStub(self._channel)
        self.operations = operations_pb2_grpc.OperationsStub(self._channel)

    def again(self) -> None:
        """Another connection, perhaps to another front."""
        self.close()
        self._open()

    def close(self) -> None:
        self._channel.close()


class Customer:
    """Does one order; `run` returns when the client has done with it."""

    def __init__(self, order: Order, request: Any, addresses: list[str], ledger: Ledger) -> None:
        self._order = order
        self._request = request
        self._addresses = addresses
        self._ledger = ledger

    def run(self) -> None:
        order = self._order
        connection = Connection(self._addresses)
        try:
            if order.sort in ("returning", "vanishing"):
                self._hang_up_ordering(Connection(self._addresses))
            if order.sort == "vanishing":
                return
            other = threading.Thread(target=self._order_only) if order.sort == "twice" else None
            if other is not None:
                other.start()
            name = self._until_accepted(connection)
            if other is not None:
                other.join()
            if order.sort == "leaving":
                self._hang_up_reading(connection, name) if order.number % 2 else self._hang_up_waiting(connection, name)
                return
            if order.sort == "cancelling":
                time.sleep(order.pause)
                self._cancel(connection, name)
            audience = self._until_done(connection, name)
            if audience:
                self._read(connection, audience)
        finally:
            connection.close()
            self._ledger.note(order.number, "over")

    def _order_only(self) -> None:
        connection = Connection(self._addresses)
        try:
            self._until_accepted(connection)
        finally:
            connection.close()

    def _hang_up_ordering(self, connection: Connection) -> None:
        self._ledger.note(self._order.number, "sent")
        call = connection.audiences.ExpandAudience.future(self._request, timeout=CALL_SECONDS)
        time.sleep(self._order.pause)
        if call.done() and call.exception() is None:
            self._ledger.note(self._order.number, "accepted", operation=call.result().name)
        connection.close()

    def _hang_up_waiting(self, connection: Connection, name: str) -> None:
        wait = operations_pb2.WaitOperationRequest(name=name, timeout=duration_pb2.Duration(seconds=20))
        connection.operations.WaitOperation.future(wait, timeout=20)
        time.sleep(self._order.pause)
        connection.close()

    def _hang_up_reading(self, connection: Connection, name: str) -> None:
        audience = self._until_done(connection, name)
        if audience:
            request = audience_pb2.StreamAudienceMembersRequest(audience=audience)
            stream = connection.audiences.StreamAudienceMembers(request, timeout=CALL_SECONDS)
            with suppress(grpc.RpcError):
                next(stream)
        connection.close()

    def _until_accepted(self, connection: Connection) -> str:
        def place() -> str:
            self._ledger.note(self._order.number, "sent")
            name: str = connection.audiences.ExpandAudience(self._request, timeout=CALL_SECONDS).name
            self._ledger.note(self._order.number, "accepted", operation=name)
            return name

        name: str = self._again("ExpandAudience", connection, place)
        return name

    def _cancel(self, connection: Connection, name: str) -> None:
        def cancel() -> None:
            self._ledger.note(self._order.number, "cancelled")
            connection.operations.CancelOperation(
                operations_pb2.CancelOperationRequest(name=name), timeout=CALL_SECONDS
            )

        self._again("CancelOperation", connection, cancel)

    def _until_done(self, connection: Connection, name: str) -> str:
        """Returns the audience's name if there is one."""
        seconds = duration_pb2.Duration(nanos=int(WAIT_SECONDS * 1e9) % 10**9, seconds=int(WAIT_SECONDS))
        request = operations_pb2.WaitOperationRequest(name=name, timeout=seconds)

        def wait() -> Any:
            return connection.operations.WaitOperation(request, timeout=WAIT_SECONDS + CALL_SECONDS)

        give_up = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < give_up:
            operation = self._again("WaitOperation", connection, wait)
            if not operation.done:
                continue
            if operation.WhichOneof("result") == "error":
                error = from_status(operation.error)
                self._ledger.note(self._order.number, "ended", operation=name, error=error.reason)
                return ""
            response = audience_pb2.ExpandAudienceResponse()
            operation.response.Unpack(response)
            sha256 = response.audience.audience_sha256
            self._ledger.note(self._order.number, "ended", operation=name, audience_sha256=sha256)
            return response.audience.name
        raise TimeoutError(f"{name} has not ended within {GIVE_UP_SECONDS:g} s")

    def _read(self, connection: Connection, audience: str) -> None:
        def read() -> None:
            digest = hashlib.sha256()
            request = audience_pb2.StreamAudienceMembersRequest(audience=audience)
            for message in connection.audiences.StreamAudienceMembers(request, timeout=CALL_SECONDS):
                ids = np.array(message.user_ids.integers.values, np.int64)
                digest.update(rows_bytes(ids, np.array(message.scores, np.float32)))
            self._ledger.note(self._order.number, "read", members_sha256=digest.hexdigest())

        self._again("StreamAudienceMembers", connection, read)

    def _again(self, method: str, connection: Connection, call: Callable[[], Any]) -> Any:
        """Call until it works; what it is refused with is noted, for a refusal may be a lie."""
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                return call()
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
                told = {"method": method, "code": raised.code().name, "reason": error.reason, "message": error.message}
                self._ledger.note(self._order.number, "refused", **told)
                if time.monotonic() >= give_up:
                    raise
            time.sleep(AGAIN_SECONDS)
            connection.again()


def rows_bytes(user_ids: Any, scores: Any) -> bytes:
    """Members as a digest takes them: the same however they are cut into pieces."""
    rows = np.empty(len(user_ids), np.dtype([("user_id", "<i8"), ("score", "<f4")]))
    rows["user_id"], rows["score"] = user_ids, scores
    return rows.tobytes()


def seeds_of(dataset: Dataset, campaign: int) -> pa.Array:
    """What the campaign's orders send."""
    users, labels = dataset.samples(campaign, "seed")
    return users.filter(pa.array(labels == 1))


def remaining(orders: list[Order], ledger: Path) -> list[Order]:
    """What a process that goes on for another one has to do."""
    entries = read_ledger(ledger)
    over = {entry.order for entry in entries if entry.event == "over"}
    sent = {entry.order for entry in entries if entry.event == "sent"}
    accepted = {entry.order for entry in entries if entry.event == "accepted"}
    over |= {o.number for o in orders if o.sort == "vanishing" and o.number in sent}
    over |= {o.number for o in orders if o.sort == "leaving" and o.number in accepted}
    return [order for order in orders if order.number not in over]


def main() -> None:
    """See the module."""
    orders_file, ledger_file, dataset_folder, begin, *addresses = sys.argv[1:]
    dataset = Dataset.open(Path(dataset_folder))
    ledger = Ledger(Path(ledger_file))
    orders = remaining(plan.read(Path(orders_file)), Path(ledger_file))
    seeds = {campaign: seeds_of(dataset, campaign).to_pylist() for campaign in {order.campaign for order in orders}}
    with ThreadPoolExecutor(max_workers=max(1, len(orders))) as threads:
        running = []
        for order in orders:
            request = audience_pb2.ExpandAudienceRequest(
                request_id=order.request_id,
                campaign=campaign_pb2.Campaign(name=str(order.campaign)),
                k=order.k,
                random_seed=order.random_seed,
            )
            request.seed_ids.integers.values.extend(seeds[order.campaign])
            time.sleep(max(0.0, float(begin) + order.at - time.time()))
            running.append(threads.submit(Customer(order, request, addresses, ledger).run))
        for one in running:
            one.result()


if __name__ == "__main__":
    main()
