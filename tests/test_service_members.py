"""Members as messages: whatever the encoding, the sizes and where it begins, the members of the file come, in order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import write_audience

from lookalike import errors
from lookalike.retrieval import audience as audience_module
from lookalike.retrieval.audience import Audience
from lookalike.runtime.job import ExpansionJob
from lookalike.service import members
from lookalike.service.members import batch_of, messages
from lookalike.service.people import People
from lookalike.v1 import audience_pb2

USERS = 700
IDS = {
    "integers": pa.array(np.random.default_rng(1).integers(-(2**63), 2**63 - 1, USERS)),
    "strings": pa.array([("é☕" * (n % 40)) + str(n) * (n % 3) for n in range(USERS)], pa.large_string()),
}


@pytest.fixture(scope="module")
def audiences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Audience]:
    """Of both types of ids, in row groups of 100."""
    found = {}
    for kind, ids in IDS.items():
        folder = tmp_path_factory.mktemp(kind)
        People.of({"seeds.parquet": ids.slice(0, 3)}).write(folder / "people")
        job = ExpansionJob(
            job_id=kind,
            campaign="c",
            seeds=folder / "people" / "seeds.parquet",
            k=USERS,
            pool=folder,
            output=folder / "audience",
            cancel_flag=folder / "cancel",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audience_module, "ROW_GROUP", 100)
            write_audience(job, ids)
        found[kind] = Audience.open(job.output)
    return found


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(IDS)),
    packed=st.booleans(),
    start=st.integers(0, USERS + 1),
    size=st.integers(1, 5000),
)
def test_all_members_come_in_order(
    kind: str, packed: bool, start: int, size: int, audiences: dict[str, Audience]
) -> None:
    it = audiences[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "MESSAGE_BYTES", max(size, members.REPEATED_BYTES))
        sent = [one.SerializeToString() for one in messages(it, start, packed=packed, listing="x")]
    came = [audience_pb2.StreamAudienceMembersResponse.FromString(one) for one in sent]
    assert all(one.HasField("packed") is packed and one.total_size == USERS for one in came)
    expected = it.members(min(start, USERS), USERS)
    schema = pa.schema([("rank", pa.int64()), ("user_id", it.id_type), ("score", pa.float32())])
    assert pa.Table.from_batches([batch_of(one) for one in came], schema) == expected
    longest = max((len(text.encode()) for text in IDS["strings"].to_pylist()), default=0)
    assert all(len(one) <= 2 * max(size, members.REPEATED_BYTES) + longest + 400 for one in sent)


def packed(**changes: object) -> audience_pb2.StreamAudienceMembersResponse:
    columns = {"count": 2, "scores": bytes(8), "integer_ids": bytes(16)}
    message = audience_pb2.PackedMembers(**{**columns, **changes})
    return audience_pb2.StreamAudienceMembersResponse(start_rank=1, packed=message)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": bytes(7)},
        {"scores": bytes(12)},
        {"integer_ids": bytes(15)},
        {"integer_ids": b""},
        {"integer_ids": b"", "string_ids": b"ab", "string_ends": b"\1\0\0\0"},
        {"integer_ids": b"", "string_ids": b"ab", "string_ends": b"\2\0\0\0\1\0\0\0"},
        {"integer_ids": b"", "string_ids": b"ab", "string_ends": b"\1\0\0\0\3\0\0\0"},
        {"integer_ids": b"", "string_ids": b"a\xff", "string_ends": b"\1\0\0\0\2\0\0\0"},
        {"integer_ids": b"", "string_ids": b"ab", "string_ends": b"\1\0\0\0\2\0\0"},
        {"count": 3},
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    assert batch_of(packed()).num_rows == 2
    with pytest.raises(errors.DataCorrupted):
        batch_of(packed(**changes))
