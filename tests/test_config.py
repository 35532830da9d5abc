from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lookalike.config import AdaptationConfig, Config, ScoringConfig, TrainingConfig, load_config, parse
from lookalike.errors import InvalidInput


def written(folder: Path, text: str) -> Path:
    path = folder / "lookalike.yaml"
    path.write_text(text)
    return path


def test_without_a_file_every_default_holds() -> None:
    assert load_config() == Config()


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "training:\n  outer_lr: 0.01\nservice:\n"))
    assert config == Config(training=TrainingConfig(outer_lr=0.01))


def test_overrides_go_before_the_file_and_the_file_before_the_base(tmp_path: Path) -> None:
    base = Config(adaptation=AdaptationConfig(max_epochs=3, lr=0.5, patience=7))
    path = written(tmp_path, "adaptation: {max_epochs: 4, lr: 0.25}\n")
    config = load_config(path, ["adaptation.max_epochs=5", "scoring.device=cpu"], base=base)
    assert (config.adaptation.max_epochs, config.adaptation.lr, config.adaptation.patience) == (5, 0.25, 7)
    assert config.scoring == ScoringConfig(device="cpu")


def test_the_tree_as_yaml_is_the_same_tree(tmp_path: Path) -> None:
    tree = {
        section: {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        for section, values in asdict(Config()).items()
    }
    tree["model"]["hidden"] = list(tree["model"]["hidden"])
    assert load_config(written(tmp_path, yaml.safe_dump(tree))) == Config()


@given(st.integers(min_value=0, max_value=2**31))
def test_an_override_is_read_as_the_key_s_type(value: int) -> None:
    assert load_config(None, [f"training.seed={value}"]).training.seed == value


def test_lists_and_paths_are_read_too() -> None:
    config = load_config(None, ["model.hidden=[32, 16]", "service.data_dir=/tmp/a"])
    assert config.model.hidden == (32, 16)
    assert config.service.data_dir == Path("/tmp/a")


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("training.no_such_key=1", "config.training.no_such_key"),
        ("nothing.seed=1", "config.nothing"),
        ("training.seed=many", "config.training.seed"),
        ("training.seed=-1", "config.training.seed"),
        ("training.validation_campaigns=1.5", "config.training.validation_campaigns"),
        ("model.hidden=[]", "config.model.hidden"),
        ("joint.lr=0", "config.joint.lr"),
        ("joint.lr=.inf", "config.joint.lr"),
        ("joint.l2=-1", "config.joint.l2"),
        ("joint.rank=0", "config.joint.rank"),
        ("adaptation.max_epochs=-1", "config.adaptation.max_epochs"),
        ("training.task_sampling=cube", "config.training.task_sampling"),
        ("training.seed", "training.seed"),
        ("seed=1", "seed"),
        ("training.seed=[", "training.seed"),
    ],
)
def test_a_wrong_override_is_named(override: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_config(None, [override])
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1\n", "mapping"), ("training: 3\n", "section of mappings|training"), ("a: [", "not YAML")],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_config(written(tmp_path, text), base=Config())


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="binary.yaml"):
        load_config(tmp_path / "binary.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_parse_names_the_dotted_path() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(Config, {"scoring": {"threads": "lots"}}, field_prefix="checkpoint")
    assert caught.value.field == "checkpoint.scoring.threads"
