"""The engines against each other: TorchScript is the reference, and must deserve it; the others are near it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lookalike import _core
from lookalike.config import ModelConfig, ScoringConfig
from lookalike.errors import DataCorrupted, InternalError, InvalidInput, NotFound
from lookalike.model.metaheac import MetaHeac
from lookalike.retrieval.topk import TopK
from lookalike.schema import EncodedColumns, FeatureSchema, Field, FieldKind
from lookalike.scoring import native
from lookalike.scoring.bfloat16 import Bfloat16Engine
from lookalike.scoring.compiled import TorchScriptEngine, compile_model, load_compiled
from lookalike.scoring.engine import Engine, is_exact, open_engine, resolve
from lookalike.scoring.native import NativeEngine

USERS = 3000
SIZES = {"age": 7, "city": 300, "tags": 40, "device": 5, "topics": 9}
USER_SCHEMA = FeatureSchema(
    tuple(
        Field(name, FieldKind.MULTI if name in {"tags", "topics"} else FieldKind.CATEGORICAL, tuple(map(str, range(n))))
        for name, n in SIZES.items()
    )
)
CAMPAIGN_SCHEMA = FeatureSchema((Field("kind", FieldKind.CATEGORICAL, ("a", "b")),))
MODELS = {
    "default": ModelConfig(),
    "published": ModelConfig(wide=False, literal_average=True),
    "odd": ModelConfig(num_experts=3, num_critics=7, hidden=(33, 20, 9), gate_hidden=10, embedding_dim=5),
    "shallow": ModelConfig(num_experts=2, num_critics=1, hidden=(24,), gate_hidden=8, embedding_dim=3),
}


@pytest.fixture(params=MODELS)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(2)
    model = MetaHeac(USER_SCHEMA, CAMPAIGN_SCHEMA, MODELS[request.param])
    with torch.no_grad():  # large enough for every part to matter
        model.user_embedding.normal_()
        model.campaign_embedding.normal_()
        model.critics.weight.normal_(std=5)
    campaign = CAMPAIGN_SCHEMA.encode_features({"kind": "a"}, where="features")
    compile_model(model, campaign, tmp_path / "model.pt", {"a": 1})
    return tmp_path / "model.pt"


def users(count: int = USERS) -> EncodedColumns:
    rng = np.random.default_rng(3)
    ids, offsets = {}, {}
    for field in USER_SCHEMA.fields:
        lengths = np.ones(count, np.int64)
        if field.kind is FieldKind.MULTI:
            lengths = rng.integers(0, 6, count)
            offsets[field.name] = np.concatenate(([0], np.cumsum(lengths)))
        ids[field.name] = rng.integers(0, field.size, lengths.sum()).astype(field.dtype)
    return EncodedColumns(count, ids, offsets)


@pytest.mark.parametrize("level", _core.simd_levels())
def test_scores_as_torchscript_does(archive: Path, level: str) -> None:
    _core.set_simd_level(level)
    try:
        native = NativeEngine(archive, ScoringConfig(threads=2))
        scores = native.score(users())
    finally:
        _core.set_simd_level(None)
    expected = TorchScriptEngine(archive, ScoringConfig(device="cpu", threads=1)).score(users())
    assert native.provenance == {"a": 1}
    assert expected.std() > 0.001  # users differ, or agreement would tell nothing
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert np.corrcoef(scores, expected)[0, 1] > 0.999999


@pytest.mark.parametrize("threads", [1, 3])
def test_the_references_score_is_the_users_own(archive: Path, threads: int) -> None:
    """To the bit, whoever else is in the batch, wherever in it, however large it is."""
    everyone = users(20_000)
    alone = TorchScriptEngine(archive, ScoringConfig(device="cpu", threads=1)).score(everyone)
    assert len(np.unique(alone)) > 10_000
    engine = TorchScriptEngine(archive, ScoringConfig(device="cpu", threads=threads, batch_size=5_000))
    order = np.random.default_rng(5).permutation(20_000)
    np.testing.assert_array_equal(engine.score(everyone.take(order)), alone[order])
    for start, stop in ((0, 1), (1, 8), (17, 200), (300, 1577), (0, 20_000)):
        np.testing.assert_array_equal(engine.score(everyone.slice(start, stop)), alone[start:stop])


def test_bfloat16_scores_as_torchscript_does(archive: Path) -> None:
    engine = Bfloat16Engine(archive, ScoringConfig(device="cpu", threads=1, batch_size=700))
    scores = engine.score(users())
    expected = TorchScriptEngine(archive, ScoringConfig(device="cpu", threads=1)).score(users())
    np.testing.assert_allclose(scores, expected, atol=0.1)
    assert np.corrcoef(scores, expected)[0, 1] > 0.999
    assert engine.provenance == {"a": 1}


@pytest.mark.parametrize("kind", [NativeEngine, TorchScriptEngine, Bfloat16Engine])
def test_scoring_into_a_selection_selects_what_is_scored(kind: type[Engine], archive: Path) -> None:
    engine = kind(archive, ScoringConfig(device="cpu", threads=2, batch_size=500))  # type: ignore[call-arg]
    scores = engine.score(users())
    skip = np.packbits(np.arange(USERS) % 3 == 0, bitorder="little")
    top = TopK(100, num_rows=USERS, skip=skip)
    for start in range(0, USERS, 1100):
        engine.score_into(top.core, users().slice(start, min(start + 1100, USERS)), start)
    rows, best = top.finish(sorted=True)
    allowed = np.flatnonzero(np.arange(USERS) % 3 != 0)
    expected = allowed[np.lexsort((allowed, -scores[allowed]))[:100]]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(best, scores[expected])
    assert top.rows_seen == USERS


def test_engines_are_chosen_by_the_configuration(archive: Path) -> None:
    chosen = resolve(ScoringConfig())
    assert chosen.engine == ("bfloat16" if torch.cuda.is_available() else "native")
    assert chosen.threads >= 1
    assert resolve(ScoringConfig(device="cpu", engine="torchscript")).batch_size == 8192
    assert resolve(ScoringConfig(device="cpu", batch_size=77)).batch_size == 77
    engines = {"native": NativeEngine, "torchscript": TorchScriptEngine, "bfloat16": Bfloat16Engine}
    for name, kind in engines.items():
        assert isinstance(open_engine(archive, resolve(ScoringConfig(engine=name, device="cpu"))), kind)  # type: ignore[arg-type]
    assert resolve(ScoringConfig(device="cpu:0")).device == "cpu"
    assert [is_exact(resolve(ScoringConfig(engine=e, device="cpu:0"))) for e in engines] == [False, True, False]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"engine": "fast"}, "scoring.engine"),
        ({"device": "meta"}, "scoring.device"),
        ({"device": "abacus"}, "scoring.device"),
        ({"batch_size": -1}, "scoring.batch_size"),
        ({"threads": -1}, "scoring.threads"),
    ],
)
def test_what_cannot_score_is_refused_at_the_door(wrong: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(ScoringConfig(**wrong))
    assert caught.value.field == field


def test_the_native_engine_is_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.scoring.engine.choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(InvalidInput, match="set scoring.device=cpu") as caught:
        resolve(ScoringConfig(engine="native"))
    assert caught.value.field == "scoring.engine"
    assert resolve(ScoringConfig()).engine == "bfloat16"


@pytest.mark.parametrize("kind", [NativeEngine, TorchScriptEngine, Bfloat16Engine])
def test_multi_valued_fields_alone(kind: type[Engine], tmp_path: Path) -> None:
    schema = FeatureSchema(tuple(f for f in USER_SCHEMA.fields if f.kind is FieldKind.MULTI))
    compile_model(
        MetaHeac(schema, CAMPAIGN_SCHEMA, ModelConfig()),
        CAMPAIGN_SCHEMA.encode_features({}, where="features"),
        tmp_path / "model.pt",
        {},
    )
    everyone = users()
    columns = EncodedColumns(USERS, {f.name: everyone.ids[f.name] for f in schema.fields}, everyone.offsets)
    expected = TorchScriptEngine(tmp_path / "model.pt", ScoringConfig(device="cpu", threads=1)).score(columns)
    scores = kind(tmp_path / "model.pt", ScoringConfig(device="cpu", threads=1)).score(columns)  # type: ignore[call-arg]
    np.testing.assert_allclose(scores, expected, atol=2e-2)


def test_a_model_compiled_by_an_earlier_version_is_said_to_be(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.scoring.compiled.FORMAT_VERSION", 3)
    for kind in (NativeEngine, TorchScriptEngine, Bfloat16Engine):
        with pytest.raises(DataCorrupted, match="format 2; this version reads 3: expand again"):
            kind(archive, ScoringConfig(device="cpu"))


def test_probabilities_near_one_stay_near_in_half_precision(tmp_path: Path) -> None:
    """Where all critics are sure, what is off is the sum of their weights."""
    torch.manual_seed(2)
    model = MetaHeac(USER_SCHEMA, CAMPAIGN_SCHEMA, ModelConfig())
    with torch.no_grad():
        model.user_embedding.normal_(std=0.1)
        model.critics.bias.fill_(9.0)
    compile_model(model, CAMPAIGN_SCHEMA.encode_features({}, where="features"), tmp_path / "model.pt", {})
    near = Bfloat16Engine(tmp_path / "model.pt", ScoringConfig(device="cpu", threads=1)).score(users())
    exact = TorchScriptEngine(tmp_path / "model.pt", ScoringConfig(device="cpu", threads=1)).score(users())
    assert exact.min() > 0.99
    assert exact.max() <= 1
    rest = 1 - exact.astype(np.float64)
    assert np.max(np.abs(near - exact) - 2.0**-20) < 0.2 * rest.max()


def test_a_diverged_model_is_the_models_fault(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, schema, provenance = load_compiled(archive, torch.device("cpu"))
    script.critics_bias.fill_(float("nan"))
    monkeypatch.setattr(native, "load_compiled", lambda *_: (script, schema, provenance))
    with pytest.raises(InternalError, match="critics_bias holds a number that is not finite"):
        open_engine(archive, resolve(ScoringConfig(engine="native", device="cpu")))


def test_models_without_multi_valued_fields(tmp_path: Path) -> None:
    schema = FeatureSchema(tuple(f for f in USER_SCHEMA.fields if f.kind is not FieldKind.MULTI))
    model = MetaHeac(schema, CAMPAIGN_SCHEMA, ModelConfig())
    campaign = CAMPAIGN_SCHEMA.encode_features({}, where="features")
    compile_model(model, campaign, tmp_path / "model.pt", {})
    columns = EncodedColumns(USERS, {f.name: users().ids[f.name] for f in schema.fields}, {})
    expected = TorchScriptEngine(tmp_path / "model.pt", ScoringConfig(device="cpu", threads=1)).score(columns)
    np.testing.assert_allclose(NativeEngine(tmp_path / "model.pt").score(columns), expected, atol=1e-3)


def test_a_slice_scores_as_the_whole(archive: Path) -> None:
    engine = NativeEngine(archive)
    whole = engine.score(users())
    np.testing.assert_array_equal(engine.score(users().slice(1000, 2100)), whole[1000:2100])


def test_refuses_ids_beyond_the_vocabulary(archive: Path) -> None:
    wrong = users()
    wrong.ids["age"][17] = SIZES["age"] + 2
    with pytest.raises(InvalidInput, match="user 17 has id 9 of field 0"):
        NativeEngine(archive).score(wrong)


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no customised model"):
        NativeEngine(tmp_path / "model.pt")
