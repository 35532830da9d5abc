"""Builds the TorchServe archive: handler, its configuration and the general checkpoint, by torch-model-archiver.

Knows files and names only; imports neither torch nor the handler.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml

from lookalike import __version__
from lookalike.config import Config
from lookalike.errors import InternalError, NotFound
from lookalike.files import file_digest

MODEL_NAME = "lookalike"
SCORING_NAME = "lookalike-scoring"
CHECKPOINT_FILES = ("model.safetensors", "checkpoint.json")
CONFIG_NAME = "model-config.yaml"
# TorchServe ends a worker that takes longer for one request, be it to load a large model.
SCORE_SECONDS = 30
FINGERPRINT_NAME = "lookalike-inputs.json"


def build_archive(checkpoint: Path, output: Path, config: Config, *, handler: Path | None = None) -> Path:
    """Write `output` (a .mar) from a checkpoint folder, unless it was made of these very inputs already.

    Args:
        checkpoint: folder with `model.safetensors` and `checkpoint.json`.
        config: `torchserve` decides workers and time-outs; `adaptation`, `scoring` and how to log and trace reach the
            handler.
        handler: the handler's file; the project's own by default.

    Raises:
        NotFound: the checkpoint or the handler is missing. InternalError: torch-model-archiver failed.
    """
    handler = handler or handler_file()
    return _build(output, MODEL_NAME, handler, _settings(config), _checkpoint_files(checkpoint))


def scoring_archive(archive: Path) -> Path:
    """Where the archive for real-time scores lies: beside the other, for TorchServe knows one folder of them."""
    return archive.with_stem(f"{archive.stem}-scoring")


def build_scoring_archive(config: Config) -> Path:
    """Write `scoring_archive`, unless it was made of these very inputs already: a handler and settings, no model.

    Raises:
        NotFound: the handler is missing. InternalError: torch-model-archiver failed.
    """
    output = scoring_archive(config.torchserve.archive)
    settings = yaml.safe_dump(scoring_config(config), sort_keys=False)
    return _build(output, SCORING_NAME, handler_file("scoring.py"), settings, {})


def _build(output: Path, name: str, handler: Path, settings: str, files: dict[str, Path]) -> Path:
    inputs = _inputs(settings, handler, files)
    if _inputs_of(output) == inputs:
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    # The archiver empties and fills <TMPDIR>/<model name>: two at once must not share it.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        folder = Path(scratch).resolve()  # the archiver runs inside it
        (folder / CONFIG_NAME).write_text(settings)
        (folder / FINGERPRINT_NAME).write_text(inputs)
        built = _package(folder, name, handler, files)
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.rename(output)
    return output


def archive_state(checkpoint: Path, archive: Path, config: Config) -> Literal["current", "stale", "foreign", "missing"]:
    """Whether `build_archive` would leave the archive as it is, or why not.

    Raises:
        NotFound: the checkpoint or the handler is missing.
    """
    if not archive.exists():
        return "missing"
    inputs = _inputs_of(archive)
    if inputs is None:
        return "foreign"
    current = _inputs(_settings(config), handler_file(), _checkpoint_files(checkpoint))
    return "current" if inputs == current else "stale"


def model_config(config: Config) -> dict[str, Any]:
    """What `model-config.yaml` says: TorchServe's own keys, then ours, which the handler reads."""
    served = config.torchserve
    service = {"log_format": config.service.log_format, "otlp_endpoint": config.service.otlp_endpoint}
    ours = {"adaptation": asdict(config.adaptation), "scoring": asdict(config.scoring), "service": service}
    return {
        "minWorkers": served.workers,
        "maxWorkers": served.workers,
        "batchSize": 1,
        "responseTimeout": served.response_timeout_seconds,
        "startupTimeout": served.startup_timeout_seconds,
        # The front service never has more in flight than workers; the rest is for pings and re-runs.
        "jobQueueSize": 2 * served.workers + 8,
        "lookalike": json.loads(json.dumps(ours)),
    }


def scoring_config(config: Config) -> dict[str, Any]:
    """The same for real-time scores."""
    realtime = config.realtime
    service = {"log_format": config.service.log_format}
    return {
        "minWorkers": realtime.workers,
        "maxWorkers": realtime.workers,
        "batchSize": 1,  # a second one would wait for the first, and both are done sooner one after another
        "responseTimeout": SCORE_SECONDS,
        "startupTimeout": config.torchserve.startup_timeout_seconds,
        "jobQueueSize": realtime.workers * realtime.max_waiting + 8,
        "lookalike": {"realtime": asdict(realtime), "service": service},
    }


def handler_file(name: str = "expansion.py") -> Path:
    """A handler of the project's own, installed or in the source tree.

    Raises:
        NotFound: it is in neither.
    """
    spec = importlib.util.find_spec("lookalike_handlers")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    folders.append(str(Path(__file__).resolve().parents[3] / "handlers"))
    for folder in folders:
        path = Path(folder) / name
        if path.is_file():
            return path
    raise NotFound(f"no {name} in {' or '.join(folders)}: install the package again", field="handler")


def _checkpoint_files(checkpoint: Path) -> dict[str, Path]:
    files = {name: checkpoint / name for name in CHECKPOINT_FILES}
    for path in files.values():
        if not path.is_file():
            raise NotFound(f"{path} is missing; a checkpoint has {' and '.join(CHECKPOINT_FILES)}", field="checkpoint")
    return files


def _settings(config: Config) -> str:
    return yaml.safe_dump(model_config(config), sort_keys=False)


def _inputs(settings: str, handler: Path, files: Mapping[str, Path]) -> str:
    return json.dumps(
        {
            "version": __version__,
            "handler": file_digest(handler),
            "config": hashlib.sha256(settings.encode()).hexdigest(),
            **{name: file_digest(path) for name, path in files.items()},
        }
    )


def _inputs_of(archive: Path) -> str | None:
    try:
        with zipfile.ZipFile(archive) as file:
            return file.read(FINGERPRINT_NAME).decode()
    except (OSError, KeyError, zipfile.BadZipFile):
        return None


def _package(folder: Path, name: str, handler: Path, files: dict[str, Path]) -> Path:
    entry = "scoring.py" if name == SCORING_NAME else "expansion.py"
    # By name from within the folder: the archiver splits paths at commas and expands wildcards in them.
    links = {entry: handler, **files}
    for link, path in links.items():
        (folder / link).symlink_to(path.resolve())
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += ["--model-name", name, "--version", "1.0", "--handler", entry]
    command += ["--config-file", CONFIG_NAME, "--extra-files", ",".join([*files, FINGERPRINT_NAME])]
    command += ["--export-path", str(folder), "--archive-format", "zip-store"]  # weights do not compress
    environment = {**os.environ, "TMPDIR": str(folder)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    built = folder / f"{name}.mar"
    if result.returncode != 0 or not built.is_file():
        raise InternalError(f"torch-model-archiver failed: {result.stderr.strip()[-1000:]}", reason="ARCHIVER_FAILED")
    return built
