"""SIGHUP to `lookalike serve`: the configuration is read again, and TorchServe is scaled while the service serves.

Knows the runtimes and the archive; knows nothing of the front, which only sees another capacity.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.errors import FailedPrecondition, LookalikeError

if TYPE_CHECKING:
    from lookalike.config import Config
    from lookalike.runtime.inprocess import InProcessRuntime
    from lookalike.runtime.torchserve import TorchServeRuntime

_log = logging.getLogger(__name__)


class Reloading:
    """Does what it is asked for one after another; a request while it is at one makes it look once more."""

    def __init__(
        self,
        config: Config,
        runtime: InProcessRuntime | TorchServeRuntime,
        checkpoint: Path,
        read_again: Callable[[], Config],
        fingerprint: str,
    ) -> None:
        """`fingerprint`: of the checkpoint that is served, whatever is in its folder by now."""
        self._fingerprint = fingerprint
        self._config = config
        self._runtime = runtime
        self._checkpoint = checkpoint
        self._read_again = read_again
        self._asked = asyncio.Event()
        self._task = asyncio.create_task(self._attend(), name="reloading")

    def request(self) -> None:
        """The file may have changed."""
        self._asked.set()

    async def close(self) -> None:
        """Stop, also in the middle of it."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _attend(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._reload()
            except LookalikeError as error:
                _log.error("the configuration stays as it was: %s", error)
            except Exception:
                _log.exception("the configuration stays as it was")

    async def _reload(self) -> None:
        from lookalike.runtime.archive import build_archive
        from lookalike.runtime.torchserve import TorchServeRuntime
        from lookalike.training.checkpoint import fingerprint as checkpoint_fingerprint

        read = await asyncio.to_thread(self._read_again)
        instances, workers = read.torchserve.instances, read.torchserve.workers
        served = replace(self._config.torchserve, instances=instances, workers=workers)
        fresh = replace(self._config, torchserve=served)
        if fresh != read:
            _log.warning("of the configuration only torchserve.instances and torchserve.workers are taken up now")
        if fresh == self._config:
            _log.info("the configuration has no other torchserve.instances or torchserve.workers")
        elif not isinstance(self._runtime, TorchServeRuntime):
            _log.warning("there is no TorchServe to scale: service.runtime is %s", self._config.service.runtime)
        else:
            if await asyncio.to_thread(checkpoint_fingerprint, self._checkpoint) != self._fingerprint:
                raise FailedPrecondition(
                    f"{self._checkpoint} holds another checkpoint than the one that is served: restart the service",
                    field="checkpoint",
                    reason="CHECKPOINT_MISMATCH",
                )
            await asyncio.to_thread(build_archive, self._checkpoint, served.archive, fresh)
            await self._runtime.scale(served)
            self._config = fresh
            _log.info("torchserve.instances is now %d, torchserve.workers %d", instances, workers)
