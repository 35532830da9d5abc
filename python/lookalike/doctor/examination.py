"""All checks of an installation, in the order in which their failures are worth mending. Knows the checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lookalike.config import Config
from lookalike.doctor import machine, parts, software
from lookalike.doctor.finding import Finding


def examine(
    config: Config, *, checkpoint: Path | None, pool: Path | None, configured: bool = True
) -> Iterator[Finding]:
    """Findings one by one, as they are made. Without checkpoint and pool, what is about them is left out.

    `configured`: whether the configuration is somebody's, and not only the defaults.
    """
    service = config.service
    yield software.python()
    yield software.extension()
    yield software.torch()
    if service.runtime == "torchserve":
        yield software.torchserve()
        yield software.java()
    if checkpoint is not None:
        yield parts.checkpoint(checkpoint)
        if service.runtime == "torchserve":
            yield parts.archive(config.torchserve.archive, checkpoint, config)
    if pool is not None:
        yield parts.pool(pool)
    if checkpoint is not None and pool is not None:
        yield parts.fit(checkpoint, pool, config)
    yield parts.data_dir(service.data_dir)
    if pool is not None:
        yield parts.disk(service.data_dir, pool, config.torchserve.instances * config.torchserve.workers)
    yield machine.open_files()
    yield machine.port("service.listen", service.listen, service.data_dir)
    yield machine.port("service.metrics_listen", service.metrics_listen, service.data_dir)
    yield machine.database(service)
    yield machine.access(service, configured=configured)
    for key in ("tls_certificate", "tls_client_ca"):
        path: Path | None = getattr(service, key)
        if path is not None:
            yield machine.certificate(f"service.{key}", path)
    yield machine.clock(service, checkpoint)
