"""Algorithm 1 against a plain implementation, tasks, resumption, checkpoints, and adaptation by the seeds."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lookalike.config import Config
from lookalike.dataset.layout import Dataset
from lookalike.errors import AlreadyExists, Cancelled, DataCorrupted, EmptySeeds, InvalidInput, NotFound
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac, binary_cross_entropy
from lookalike.model.one_hot import one_hot
from lookalike.pool.snapshot import Pool
from lookalike.training import pretraining
from lookalike.training.adapt import adapt
from lookalike.training.checkpoint import FORMAT_VERSION, TrainingState, fingerprint, load_checkpoint
from lookalike.training.joint import MIN_RATE
from lookalike.training.meta import Trainer
from lookalike.training.pretraining import TrainingProgress, go, new_run, train
from lookalike.training.ridge import fit_ridge
from lookalike.training.tasks import MOST_HELD_OUT, Samples, Task, hold_out, sampling_weights


def plain_step(trainer: Trainer, number: int) -> dict[str, torch.Tensor]:
    """Algorithm 1's gradient as its authors compute it: whole tables copied for each task, autograd through it all."""
    settings, model = trainer.config, trainer.model
    rng = np.random.default_rng([settings.seed, number])
    drawn = rng.choice(len(trainer.tasks), settings.tasks_per_step, replace=False, p=trainer.weights)
    total = torch.zeros(())
    tasks = [trainer.tasks[index] for index in drawn]
    sets = [task.support_and_query(settings.support_size, settings.query_size, rng) for task in tasks]
    for task, (support, query) in zip(tasks, sets, strict=True):
        campaign = model.campaigns.with_unknown(model.campaigns.batch(task.features), settings.campaign_id_dropout, rng)
        users = [model.users.batch(trainer.pool.take(s.rows)) for s in (support, query)]
        users = [model.users.with_unknown(b, settings.user_id_dropout, rng) for b in users]
        parameters = dict(model.named_parameters())
        loss = binary_cross_entropy(model(users[0], campaign), torch.from_numpy(support.labels))
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=settings.second_order)
        moved = {name: p - settings.inner_lr * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
        prediction = torch.func.functional_call(model, moved, (users[1], campaign))
        total = total + binary_cross_entropy(prediction, torch.from_numpy(query.labels)) / len(drawn)
    names = list(dict(model.named_parameters()))
    return dict(zip(names, torch.autograd.grad(total, list(model.parameters())), strict=True))


def gradients(trainer: Trainer, number: int) -> dict[str, torch.Tensor]:
    """What `trainer` makes of it, by parameter."""
    tables = trainer.gradient(number)[0]
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad
    for name, (rows, leaf) in zip((USER_TABLE, CAMPAIGN_TABLE), tables, strict=True):
        assert leaf.grad is not None
        whole = torch.zeros_like(dict(trainer.model.named_parameters())[name])
        found[name] = whole.index_copy(0, rows, leaf.grad)
    assert set(found) >= {name for name, _ in trainer.model.named_parameters()}
    return found


@pytest.mark.parametrize("second_order", [True, False], ids=["second order", "first order"])
def test_a_step_has_the_gradient_of_algorithm_1(
    small_config: Config, dataset: Dataset, pool: Pool, tasks: list[Task], second_order: bool
) -> None:
    settings = dataclasses.replace(small_config.training, second_order=second_order, inner_lr=0.7)
    torch.manual_seed(3)
    model = MetaHeac(pool.schema, dataset.campaign_schema(), small_config.model)
    with torch.no_grad():
        model.user_embedding.normal_()
    trainer = Trainer(model, settings, pool, tasks)
    expected = plain_step(Trainer(copy.deepcopy(model), settings, pool, tasks), 0)
    for name, gradient in gradients(trainer, 0).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_every_parameter_is_trained(small_config: Config, dataset: Dataset, pool: Pool, tasks: list[Task]) -> None:
    """Inner and outer loop reach every tensor."""
    settings = dataclasses.replace(small_config.training, second_order=False)
    trainer = Trainer(MetaHeac(pool.schema, dataset.campaign_schema(), small_config.model), settings, pool, tasks)
    trainer.step(0)  # the linear weights start at zero and cost the embeddings nothing
    for name, gradient in gradients(trainer, 1).items():
        assert gradient.abs().sum() > 0, name


def test_the_two_orders_differ(small_config: Config, dataset: Dataset, pool: Pool, tasks: list[Task]) -> None:
    gradients = []
    for second_order in (True, False):
        settings = dataclasses.replace(small_config.training, second_order=second_order)
        torch.manual_seed(3)
        trainer = Trainer(MetaHeac(pool.schema, dataset.campaign_schema(), small_config.model), settings, pool, tasks)
        trainer.step(0)
        assert trainer.model.critics.weight.grad is not None
        gradients.append(trainer.model.critics.weight.grad)
    assert not torch.allclose(gradients[0], gradients[1])


def test_support_and_query_are_disjoint_and_of_one_campaign(tasks: list[Task]) -> None:
    for task in tasks:
        numbered = dataclasses.replace(
            task,
            seeds=Samples(np.arange(len(task.seeds)), task.seeds.labels),
            audience=Samples(np.arange(len(task.audience)) + len(task.seeds), task.audience.labels),
        )
        support, query = numbered.support_and_query(100, 60, np.random.default_rng(0))
        assert not set(support.rows) & set(query.rows)
        assert (len(support), len(query)) == (100, 60)
        small, rest = numbered.support_and_query(10**6, 10**6, np.random.default_rng(0))
        assert sorted([*small.rows, *rest.rows]) == list(range(len(task.samples)))


def test_only_training_campaigns_are_trained_on(dataset: Dataset, tasks: list[Task]) -> None:
    assert {task.campaign_id for task in tasks} <= set(dataset.campaign_ids("train"))
    kept, held = hold_out(tasks, 0.25, np.random.default_rng(0))
    ids = [t.campaign_id for t in kept + held]
    assert sorted(ids) == sorted(t.campaign_id for t in tasks)
    assert len(held) == round(0.25 * len(tasks))


def test_of_many_campaigns_no_more_are_held_out_than_can_tell(tasks: list[Task]) -> None:
    many = [dataclasses.replace(tasks[0], campaign_id=number) for number in range(10 * MOST_HELD_OUT + 50)]
    kept, held = hold_out(many, 0.1, np.random.default_rng(0))
    assert len(held) == MOST_HELD_OUT
    assert sorted(int(str(task.campaign_id)) for task in kept + held) == list(range(len(many)))
    for count, out in ((1, 0), (2, 1), (3, 1)):
        assert len(hold_out(many[:count], 0.1, np.random.default_rng(0))[1]) == out


def test_larger_campaigns_are_drawn_more_often_unless_uniform(tasks: list[Task]) -> None:
    sizes = np.array([len(task.samples) for task in tasks])
    np.testing.assert_allclose(sampling_weights(tasks, "size"), sizes / sizes.sum())
    ratio = sampling_weights(tasks, "sqrt") ** 2
    np.testing.assert_allclose(ratio / ratio.sum(), sizes / sizes.sum())
    np.testing.assert_allclose(sampling_weights(tasks, "uniform"), 1 / len(tasks))


@pytest.fixture
def meta_config(small_config: Config) -> Config:
    """As published: Algorithm 1, and all parameters adapted."""
    return dataclasses.replace(
        small_config,
        training=dataclasses.replace(small_config.training, method="meta"),
        adaptation=dataclasses.replace(small_config.adaptation, optimizer="adam"),
    )


@pytest.fixture(params=["joint", "meta"])
def config(request: pytest.FixtureRequest, small_config: Config, meta_config: Config) -> Config:
    return small_config if request.param == "joint" else meta_config


def test_training_learns_to_adapt_and_keeps_the_best(
    dataset: Dataset, pool: Pool, config: Config, tmp_path: Path
) -> None:
    reports: list[TrainingProgress] = []
    settings = dataclasses.replace(config.training, max_samples=60_000, patience=100)
    checkpoint = train(
        dataset, pool, tmp_path / "ck", dataclasses.replace(config, training=settings), progress=reports.append
    )
    assert [r.step for r in reports] == list(range(1, len(reports) + 1))
    assert reports[-1].samples >= 60_000
    assert checkpoint.metrics["best_validation_auc"] > 0.6
    assert checkpoint.metrics["best_validation_auc"] == max(
        r.validation_auc for r in reports if r.validation_auc is not None
    )
    assert not Path(f"{tmp_path / 'ck'}.training").exists()


def test_an_interrupted_training_continues_to_the_same_weights(
    dataset: Dataset, pool: Pool, config: Config, tmp_path: Path
) -> None:
    train(dataset, pool, tmp_path / "undisturbed", config)
    calls = iter(range(10**6))
    with pytest.raises(Cancelled, match="again to continue"):
        train(dataset, pool, tmp_path / "ck", config, cancelled=lambda: next(calls) == 7)
    assert not (tmp_path / "ck").exists()
    steps: list[int] = []
    train(dataset, pool, tmp_path / "ck", config, progress=lambda p: steps.append(p.step))
    assert steps[0] == 8
    ours, undisturbed = (load_file(tmp_path / name / "model.safetensors") for name in ("ck", "undisturbed"))
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)
    assert fingerprint(tmp_path / "ck") == fingerprint(tmp_path / "undisturbed")


@pytest.mark.parametrize("stopped_at", ["a later epoch", "the choice of the prior"])
def test_a_joint_training_that_was_stopped_late_continues_to_the_same_weights(
    dataset: Dataset,
    pool: Pool,
    small_config: Config,
    tmp_path: Path,
    stopped_at: str,
) -> None:
    """With a best validation behind it, which must survive; the last is made not to be the best."""
    settings = dataclasses.replace(small_config.training, max_samples=60_000)
    config = dataclasses.replace(small_config, training=settings, joint=dataclasses.replace(small_config.joint, lr=0.2))
    reports: list[TrainingProgress] = []
    train(dataset, pool, tmp_path / "undisturbed", config, progress=reports.append)
    aucs = [r.validation_auc for r in reports if r.validation_auc is not None]
    assert aucs[-1] < max(aucs)
    calls = iter(range(10**6))
    stop = len(reports) - 2 if stopped_at == "a later epoch" else len(reports)
    with pytest.raises(Cancelled, match="again to continue"):
        train(dataset, pool, tmp_path / "ck", config, cancelled=lambda: next(calls) >= stop)
    steps: list[int] = []
    train(dataset, pool, tmp_path / "ck", config, progress=lambda p: steps.append(p.step))
    assert len(steps) == len(reports) - stop
    ours, undisturbed = (load_file(tmp_path / name / "model.safetensors") for name in ("ck", "undisturbed"))
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_a_joint_training_that_crashed_goes_on_from_between_two_validations(
    dataset: Dataset, pool: Pool, small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(progress: TrainingProgress) -> None:
        if progress.step == 5:
            raise RuntimeError("crash")

    monkeypatch.setattr(pretraining, "SAVE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="crash"):
        train(dataset, pool, tmp_path / "ck", small_config, progress=crash)
    steps: list[int] = []
    train(dataset, pool, tmp_path / "ck", small_config, progress=lambda p: steps.append(p.step))
    assert steps[0] == 6


def test_the_rate_falls_by_the_time_that_there_is(
    dataset: Dataset, pool: Pool, small_config: Config, tasks: list[Task], tmp_path: Path
) -> None:
    """A run that stops by the clock must not stop at full rate."""
    settings = dataclasses.replace(small_config.training, max_samples=10**9, max_seconds=1000.0)
    run = new_run(pool, dataset.campaign_schema(), tasks, dataclasses.replace(small_config, training=settings))
    state = TrainingState(tmp_path, "", run.modules, run.trainer.optimizers)
    state.seconds = 1000.0
    go(run, state, [])
    assert state.step == 1
    for optimizer in run.trainer.optimizers.values():
        assert optimizer.param_groups[0]["lr"] == pytest.approx(MIN_RATE * small_config.joint.lr)


def test_a_run_of_another_configuration_is_not_continued(
    dataset: Dataset, pool: Pool, small_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        train(dataset, pool, tmp_path / "ck", small_config, cancelled=lambda: True)
    other = dataclasses.replace(small_config, joint=dataclasses.replace(small_config.joint, lr=0.1))
    with pytest.raises(InvalidInput, match="other data or another configuration"):
        train(dataset, pool, tmp_path / "ck", other)


@pytest.mark.parametrize(
    ("training", "adaptation", "model", "field"),
    [
        ({"method": "meta"}, {"optimizer": "head"}, {}, "adaptation.optimizer"),
        ({"method": "joint"}, {"optimizer": "head"}, {"wide": False}, "training.method"),
        ({"method": "joint"}, {"optimizer": "head"}, {"literal_average": True}, "training.method"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused_before_training(
    dataset: Dataset,
    pool: Pool,
    small_config: Config,
    tmp_path: Path,
    training: dict[str, Any],
    adaptation: dict[str, Any],
    model: dict[str, Any],
    field: str,
) -> None:
    config = dataclasses.replace(
        small_config,
        training=dataclasses.replace(small_config.training, **training),
        adaptation=dataclasses.replace(small_config.adaptation, **adaptation),
        model=dataclasses.replace(small_config.model, **model),
    )
    with pytest.raises(InvalidInput) as raised:
        train(dataset, pool, tmp_path / "ck", config)
    assert raised.value.field == field
    assert not (tmp_path / "ck").exists()


def test_a_checkpoint_is_not_overwritten(
    dataset: Dataset, pool: Pool, small_config: Config, sample_checkpoint: Path
) -> None:
    with pytest.raises(AlreadyExists):
        train(dataset, pool, sample_checkpoint, small_config)


def test_a_damaged_checkpoint_is_refused(sample_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"checkpoint\.json is missing"):
        load_checkpoint(tmp_path)
    for name in ("checkpoint.json", "model.safetensors"):
        (tmp_path / name).write_bytes((sample_checkpoint / name).read_bytes())
    assert load_checkpoint(tmp_path).fingerprint == fingerprint(sample_checkpoint)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(DataCorrupted, match="checksum"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_a_checkpoint_of_another_format_is_refused(sample_checkpoint: Path, tmp_path: Path, version: int) -> None:
    """By its number, before anything in it is read: sections of the configuration have lost and won keys."""
    description = json.loads((sample_checkpoint / "checkpoint.json").read_text())
    description |= {"format_version": version, "adaptation": {"no such key": 1}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(description))
    (tmp_path / "model.safetensors").write_bytes((sample_checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(DataCorrupted, match=f"format {version}; .*: train again"):
        load_checkpoint(tmp_path)


def seeds_of(task: Task) -> np.ndarray:
    return np.sort(task.seeds.rows[task.seeds.labels == 1])


@pytest.fixture(scope="module")
def meta_checkpoint(
    dataset: Dataset, pool: Pool, small_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A general model of Algorithm 1."""
    path = tmp_path_factory.mktemp("meta") / "checkpoint"
    config = dataclasses.replace(
        small_config,
        training=dataclasses.replace(small_config.training, method="meta"),
        adaptation=dataclasses.replace(small_config.adaptation, optimizer="adam"),
    )
    train(dataset, pool, path, config)
    return path


@pytest.mark.parametrize("optimizer", ["head", "adam"])
def test_adaptation_fits_the_seeds(
    sample_checkpoint: Path,
    meta_checkpoint: Path,
    pool: Pool,
    tasks: list[Task],
    optimizer: Literal["head", "adam"],
) -> None:
    checkpoint = load_checkpoint(sample_checkpoint if optimizer == "head" else meta_checkpoint)
    task = max(tasks, key=lambda t: int(t.seeds.labels.sum()))
    config = dataclasses.replace(checkpoint.config.adaptation, optimizer=optimizer, embedding_lr=0.01, ridge=0)
    adapted = adapt(checkpoint, pool, task.features, seeds_of(task), config)
    assert adapted.best_epoch >= 1
    assert adapted.held_out_auc is not None
    assert adapted.general_auc is not None
    assert adapted.held_out_auc > max(adapted.general_auc, 0.6)
    assert adapted.held_out_auc == adapted.history[adapted.best_epoch]["held_out_auc"]
    again = adapt(checkpoint, pool, task.features, seeds_of(task), config)
    for name, tensor in adapted.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_general_model_is_left_as_it_was(sample_checkpoint: Path, pool: Pool, tasks: list[Task]) -> None:
    checkpoint = load_checkpoint(sample_checkpoint)
    before = {n: t.clone() for n, t in checkpoint.model.state_dict().items()}
    adapt(checkpoint, pool, tasks[0].features, seeds_of(tasks[0]), checkpoint.config.adaptation)
    for name, tensor in checkpoint.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_seeds_that_tell_nothing_keep_the_general_model_nearly(sample_checkpoint: Path, pool: Pool) -> None:
    """Random users have nothing in common: adapting must not claim to have found it."""
    checkpoint = load_checkpoint(sample_checkpoint)
    features = checkpoint.campaign_schema.encode_features({}, where="features")
    rows = np.sort(np.random.default_rng(5).choice(pool.num_users, 400, replace=False))
    adapted = adapt(checkpoint, pool, features, rows, checkpoint.config.adaptation)
    assert adapted.held_out_auc is not None
    assert adapted.held_out_auc < 0.58


def test_too_few_seeds_and_no_negatives_are_refused(sample_checkpoint: Path, pool: Pool) -> None:
    checkpoint = load_checkpoint(sample_checkpoint)
    features = checkpoint.campaign_schema.encode_features({}, where="features")
    with pytest.raises(EmptySeeds, match="give at least 10"):
        adapt(checkpoint, pool, features, np.arange(9), checkpoint.config.adaptation)
    with pytest.raises(EmptySeeds, match="every user of the pool"):
        adapt(checkpoint, pool, features, np.arange(pool.num_users), checkpoint.config.adaptation)


def test_adaptation_stops_when_asked(sample_checkpoint: Path, pool: Pool, tasks: list[Task]) -> None:
    checkpoint = load_checkpoint(sample_checkpoint)
    seen: list[tuple[int, int]] = []
    with pytest.raises(Cancelled):
        adapt(
            checkpoint,
            pool,
            tasks[0].features,
            seeds_of(tasks[0]),
            checkpoint.config.adaptation,
            progress=lambda done, total: seen.append((done, total)),
            cancelled=lambda: len(seen) == 5,
        )
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5]


def test_the_ridge_is_the_logistic_regression(pool: Pool, tasks: list[Task]) -> None:
    """Against scikit-learn's solver on the same one-hot features and penalty."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    samples = tasks[0].seeds
    ids = one_hot(pool.schema, pool.take(samples.rows))
    weights = fit_ridge(ids, samples.labels, np.zeros(len(samples)), 0.1)
    expected = linear_model.LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(ids, samples.labels)
    np.testing.assert_allclose(weights, expected.coef_[0], atol=2e-3)


def test_the_ridge_finds_nothing_where_all_is_known(pool: Pool, tasks: list[Task]) -> None:
    """Log-odds that explain the labels already leave it little to add; an offset of nothing leaves it much."""
    samples = tasks[0].seeds
    ids = one_hot(pool.schema, pool.take(samples.rows))
    known = fit_ridge(ids, samples.labels, np.where(samples.labels > 0, 6.0, -6.0), 0.1)
    unknown = fit_ridge(ids, samples.labels, np.zeros(len(samples)), 0.1)
    assert np.abs(known).max() < 0.1 * np.abs(unknown).max()
