"""The archive holds what the handler needs, and is built again only when that changed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import yaml

from lookalike import errors
from lookalike.config import AdaptationConfig, Config, ScoringConfig, TorchServeConfig
from lookalike.runtime.archive import build_archive, handler_file


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "a, check*point [1]"  # the archiver splits at commas and expands wildcards
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "checkpoint.json").write_text("{}")
    (folder / "something-else").write_text("not for the archive")
    return folder


def test_what_is_inside(checkpoint: Path, tmp_path: Path) -> None:
    config = Config(
        torchserve=TorchServeConfig(workers=3, response_timeout_seconds=77, startup_timeout_seconds=88),
        adaptation=AdaptationConfig(negatives_per_seed=7),
        scoring=ScoringConfig(device="cpu"),
    )
    path = build_archive(checkpoint, tmp_path / "store" / "x.mar", config)
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        assert archive.read("model.safetensors") == b"weights"
        assert archive.read("expansion.py") == handler_file().read_bytes()
        settings = yaml.safe_load(archive.read("model-config.yaml"))
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
    expected = {"model.safetensors", "checkpoint.json", "expansion.py", "model-config.yaml"}
    assert names == expected | {"lookalike-inputs.json", "MAR-INF/MANIFEST.json"}
    assert manifest["model"]["handler"] == "expansion.py"
    assert (settings["minWorkers"], settings["maxWorkers"], settings["batchSize"]) == (3, 3, 1)
    assert (settings["responseTimeout"], settings["startupTimeout"]) == (77, 88)
    assert settings["lookalike"]["adaptation"]["negatives_per_seed"] == 7
    assert settings["lookalike"]["scoring"]["device"] == "cpu"
    assert [child.name for child in path.parent.iterdir()] == ["x.mar"]  # and no scratch


def test_it_is_built_again_only_when_an_input_changed(checkpoint: Path, tmp_path: Path) -> None:
    output, config = tmp_path / "x.mar", Config()

    def built() -> bool:
        before = output.stat().st_ino if output.exists() else None
        assert build_archive(checkpoint, output, config) == output
        return output.stat().st_ino != before

    assert built()
    assert not built()
    (checkpoint / "something-else").write_text("changed")
    assert not built()
    (checkpoint / "model.safetensors").write_bytes(b"others")
    assert built()
    config = Config(torchserve=TorchServeConfig(workers=2))
    assert built()
    config = Config(torchserve=TorchServeConfig(workers=2), adaptation=AdaptationConfig(min_seeds=3))
    assert built()
    output.write_text("cut off")
    assert built()
    assert not built()


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="model.safetensors") as caught:
        build_archive(tmp_path, tmp_path / "x.mar", Config())
    assert caught.value.field == "checkpoint"
    assert not (tmp_path / "x.mar").exists()


def test_the_archiver_fails(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(errors.InternalError) as caught:
        build_archive(checkpoint, tmp_path / "x.mar", Config())
    assert caught.value.reason == "ARCHIVER_FAILED"
    assert not (tmp_path / "x.mar").exists()
