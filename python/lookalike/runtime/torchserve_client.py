"""What the front says to one TorchServe: describe, ping, run a job; and what its answers mean in our error tree.

Torch-free. Knows TorchServe's gRPC paths, tokens and ways to fail; knows nothing of processes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
import httpx

from lookalike.errors import InternalError, LookalikeError, Unauthenticated, Unavailable
from lookalike.retrieval.receipt import Progress
from lookalike.runtime.archive import MODEL_NAME, SCORE_SECONDS, SCORING_NAME
from lookalike.runtime.job import ExpansionJob
from lookalike.runtime.torchserve_process import Keys
from lookalike.runtime.v1 import torchserve_pb2 as pb
from lookalike.runtime.wire import error_from_text, job_to_json, progress_from_json

_INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"
_MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"

# Keys last 60 minutes. A call is checked when it begins, so only new calls need a fresh one.
REFRESH_SECONDS = 600.0
CALL_SECONDS = 10.0

_DENIED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


class TorchServeClient:
    """Calls to one TorchServe on loopback. Close it at the end."""

    def __init__(self, ports: dict[str, int], read_keys: Callable[[], Keys | None]) -> None:
        self._management_http = f"http://127.0.0.1:{ports['management']}"
        self._read_keys = read_keys
        self._keys = read_keys()
        self._refreshing = asyncio.Lock()
        # One hop on loopback: a proxy named in the environment is not for us.
        options = [("grpc.enable_http_proxy", 0)]
        self._channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{ports[name]}", options=options)
            for name in ("grpc_inference", "grpc_management")
        ]
        inference, management = self._channels
        self._predict: Any = inference.unary_unary(
            _INFERENCE + "Predictions",
            request_serializer=pb.PredictionsRequest.SerializeToString,
            response_deserializer=pb.PredictionResponse.FromString,
        )
        self._stream: Any = inference.unary_stream(
            _INFERENCE + "StreamPredictions",
            request_serializer=pb.PredictionsRequest.SerializeToString,
            response_deserializer=pb.PredictionResponse.FromString,
        )
        self._describe: Any = management.unary_unary(
            _MANAGEMENT + "DescribeModel",
            request_serializer=pb.DescribeModelRequest.SerializeToString,
            response_deserializer=pb.ManagementResponse.FromString,
        )

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def ready_workers(self, model: str = MODEL_NAME) -> frozenset[int]:
        """Process ids of the workers that have loaded a model and live.

        Raises:
            Unavailable: TorchServe does not answer. InternalError: it answers something else.
        """
        request = pb.DescribeModelRequest(model_name=model)
        answer = await self._unary(self._describe, request, "management")
        try:
            workers = json.loads(answer.msg)[0]["workers"]
            return frozenset(int(worker["pid"]) for worker in workers if worker["status"] == "READY")
        except (ValueError, LookupError, TypeError) as error:
            raise InternalError(f"TorchServe describes the model so: {answer.msg[:200]}") from error

    async def ping(self, model: str = MODEL_NAME) -> dict[str, Any]:
        """A prediction that does nothing: what the handler says of itself (`version`, `checkpoint`).

        Raises:
            Unavailable: no worker answers.
        """
        request = pb.PredictionsRequest(model_name=model, input={"ping": b"1"})
        answer = await self._unary(self._predict, request, "inference")
        said: dict[str, Any] = json.loads(answer.prediction)
        return said

    async def score(self, job: bytes) -> bytes:
        """Have users scored: both as `score_wire` writes them.

        Raises:
            LookalikeError: whatever the handler raised. Unavailable: the worker or TorchServe died.
        """
        request = pb.PredictionsRequest(model_name=SCORING_NAME, input={"job": job})
        answer = await self._unary(self._predict, request, "inference", SCORE_SECONDS)
        scores: bytes = answer.prediction
        return scores

    async def run(self, job: ExpansionJob, progress: Callable[[Progress], None], *, silence: float) -> None:
        """Run the job to its end.

        Args:
            silence: seconds without a message after which the worker counts as lost.

        Raises:
            LookalikeError: whatever the job raised. Unavailable: the worker or TorchServe died.
        """
        message = json.dumps(job_to_json(job)).encode()
        request = pb.PredictionsRequest(model_name=MODEL_NAME, input={"job": message, "stream": b"1"})
        for attempt in (1, 2):
            call = self._stream(request, metadata=await self._authorization("inference"))
            try:
                await _follow(call, progress, silence)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() in _DENIED and attempt == 1:
                    await self._renew("inference")
                    continue
                raise to_error(error) from error
            finally:
                call.cancel()

    async def _unary(self, method: Any, request: Any, kind: str, seconds: float = CALL_SECONDS) -> Any:
        for attempt in (1, 2):
            try:
                return await method(request, metadata=await self._authorization(kind), timeout=seconds)
            except grpc.aio.AioRpcError as error:
                if error.code() in _DENIED and attempt == 1:
                    await self._renew(kind)
                    continue
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise Unavailable(f"TorchServe did not answer in {seconds:.0f} s") from error
                raise to_error(error) from error
        raise AssertionError("unreachable")

    async def _authorization(self, kind: str) -> tuple[tuple[str, str], ...]:
        key = getattr(self._keys, kind, None)
        if key is None or key.expires - time.time() < REFRESH_SECONDS:
            await self._renew(kind)
            key = getattr(self._keys, kind)
        return (("authorization", f"Bearer {key.token}"),)

    async def _renew(self, kind: str) -> None:
        """Read the key file again and, where it holds nothing fresher, have a new key made."""
        async with self._refreshing:
            known = self._keys
            self._keys = self._read_keys() or known
            if self._keys is None:
                raise Unavailable("TorchServe has not written its keys yet")
            if self._keys == known:
                await self._make_key(kind, self._keys.api)
                self._keys = self._read_keys() or known

    async def _make_key(self, kind: str, api_key: str) -> None:
        url = f"{self._management_http}/token"
        headers = {"Authorization": f"Bearer {api_key}"}
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=CALL_SECONDS) as http:
                response = await http.get(url, params={"type": kind}, headers=headers)
                response.raise_for_status()
        except httpx.HTTPError as error:
            raise Unavailable(f"TorchServe gives no new {kind} key: {error}") from error


async def _follow(call: Any, progress: Callable[[Progress], None], silence: float) -> None:
    while True:
        try:
            message = await asyncio.wait_for(call.read(), silence)
        except TimeoutError as error:
            raise Unavailable(f"the worker said nothing for {silence:.0f} s", reason="WORKER_SILENT") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we were cancelled but the call: its channel was closed, for TorchServe is being restarted.
            raise Unavailable("TorchServe is being restarted", reason="WORKER_DIED") from None
        if message is grpc.aio.EOF:
            raise Unavailable("the stream ended before the job did", reason="WORKER_DIED")
        said = json.loads(message.prediction)
        if said.get("finished"):
            return
        progress(progress_from_json(said))


def to_error(error: grpc.aio.AioRpcError) -> LookalikeError:
    """What a failed call means: the handler's own error, a dead worker or server, or a defect."""
    details = error.details() or ""
    text = details.split("\n", 1)[0]  # TorchServe appends the name of a Java class
    ours = error_from_text(text)
    if ours is not None:
        return ours
    code = error.code()
    if code in _DENIED:
        return Unauthenticated(f"TorchServe refuses our key: {text}")
    # "Worker died." comes as RESOURCE_EXHAUSTED (killed) or INTERNAL (exited, or silent); "has no worker" as INTERNAL
    # both when there is none and when the queue is full. Neither says anything of the job.
    if "Worker died" in text or "no worker" in text:
        return Unavailable(f"TorchServe: {text}", reason="WORKER_DIED")
    if code is grpc.StatusCode.UNAVAILABLE and text != "Prediction failed":
        return Unavailable(f"TorchServe: {text}")
    # By the JVM as it ends, or here, when the channel is closed for a restart; who stops a job cancels its task.
    if code is grpc.StatusCode.CANCELLED:
        return Unavailable(f"TorchServe is being restarted: {text}", reason="WORKER_DIED")
    # RST_STREAM and the like, when the JVM dies in the middle of an answer.
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and "stream" in text.lower():
        return Unavailable(f"TorchServe: {text}")
    return InternalError(f"TorchServe: {code.name}: {text}", reason="TORCHSERVE_ERROR")
