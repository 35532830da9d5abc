"""What both TorchServe handlers need: the archive's settings, errors as TorchServe carries them, a certain end.

Knows TorchServe's worker side; only handlers import it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ts.utils.util import PredictionException

from lookalike import errors, logs
from lookalike.config import Config, parse
from lookalike.runtime.wire import error_to_json

# TorchServe turns these into gRPC statuses, and counts them; the error itself travels as JSON in the message.
CODES: Mapping[type[errors.LookalikeError], int] = {
    errors.InvalidInput: 400,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.FailedPrecondition: 422,
    errors.ResourceExhausted: 429,
    errors.Cancelled: 499,
    errors.Unavailable: 503,
}

_log = logging.getLogger("lookalike.handler")


def begin(context: Any) -> Config:
    """What a handler does first: see to its end, read the archive's settings, log as they say.

    Raises:
        InvalidInput: as `configuration`.
    """
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    config = configuration(context.model_yaml_config, context.system_properties.get("gpu_id"))
    # To where TorchServe's frontend reads what its workers have to say; the root logger stays TorchServe's own.
    logs.configure(config.service.log_format, sys.stdout, logger="lookalike", level=logging.INFO)
    return config


@contextmanager
def errors_for_torchserve() -> Iterator[None]:
    """Within the block, what is raised is raised as TorchServe carries it; of a defect only where to read of it."""
    try:
        yield
    except errors.LookalikeError as error:
        raise prediction_exception(error) from error
    except Exception as error:
        incident = secrets.token_hex(4)
        _log.exception("incident %s", incident)
        message = f"{type(error).__name__} in the worker; its log tells more under incident {incident}"
        raise prediction_exception(errors.InternalError(message, reason="WORKER_ERROR")) from error


def configuration(settings: Mapping[str, Any] | None, gpu: int | None) -> Config:
    """The archive's settings as our configuration; TorchServe's choice of GPU counts where ours is "auto".

    Raises:
        InvalidInput: the archive was built by another version.
    """
    tree = {name: dict(section) for name, section in ((settings or {}).get("lookalike") or {}).items()}
    if gpu is not None and tree.get("scoring", {}).get("device", "auto") == "auto":
        tree.setdefault("scoring", {})["device"] = f"cuda:{gpu}"
    return parse(Config, tree, field_prefix="model-config.yaml:lookalike")


def prediction_exception(error: errors.LookalikeError) -> PredictionException:
    """The error as TorchServe carries it."""
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), 500)
    return PredictionException(json.dumps(error_to_json(error)), code)


def _end_with_parent(parent: int) -> None:
    """Ends this worker soon after TorchServe's frontend died: it would else notice only when it next speaks."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
