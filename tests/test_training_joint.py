"""Joint pre-training and campaigns' own weights: the fast forms are the plain ones, and the fit is the optimum."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lookalike.config import Config
from lookalike.dataset.layout import Dataset
from lookalike.errors import Cancelled, EmptySeeds, FailedPrecondition
from lookalike.evaluation.metrics import auc
from lookalike.model.features import FeatureEncoder
from lookalike.model.one_hot import one_hot
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns, FeatureSchema, Field, FieldKind
from lookalike.training.adapt import customise
from lookalike.training.campaign_head import Head, Judged, cross_entropy, fit_head, log_odds
from lookalike.training.checkpoint import Checkpoint, load_checkpoint
from lookalike.training.head_fit import CampaignSamples, OwnWeights, judge_all, with_own_weights
from lookalike.training.joint import UNASKED_ID_VARIANCE, JointTrainer, Knowledge, _some
from lookalike.training.pretraining import new_run
from lookalike.training.ridge import fit_ridge
from lookalike.training.tasks import Samples, Task, load_tasks

NO_SAMPLES = Samples(np.zeros(0, np.int64), np.zeros(0, np.float32))


@pytest.fixture
def checkpoint(sample_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(sample_checkpoint)


@pytest.fixture
def trainer(dataset: Dataset, pool: Pool, tasks: list[Task], small_config: Config) -> JointTrainer:
    settings = dataclasses.replace(small_config.training, campaign_id_dropout=0.0, user_id_dropout=0.0)
    config = dataclasses.replace(small_config, training=settings)
    made = new_run(pool, dataset.campaign_schema(), tasks, config).trainer
    assert isinstance(made, JointTrainer)
    return made


def test_knowledge_has_every_sample_once_under_its_user(tasks: list[Task]) -> None:
    knowledge = Knowledge.of(tasks)
    expected = {
        (row, number, label)
        for number, task in enumerate(tasks)
        for row, label in zip(task.samples.rows.tolist(), task.samples.labels.tolist(), strict=True)
    }
    index = np.random.default_rng(0).permutation(len(knowledge.users))
    which, campaign, labels = (part.numpy() for part in knowledge.take(index))
    rows = knowledge.users[index[which]]
    assert len(rows) == len(expected)
    assert set(zip(rows.tolist(), campaign.tolist(), labels.tolist(), strict=True)) == expected
    assert [len(part) for part in knowledge.take(index[:0])] == [0, 0, 0]


def test_an_epoch_sees_every_sample_once(trainer: JointTrainer, tasks: list[Task]) -> None:
    seen = sum(trainer.step(number, 0.0)[2] for number in range(trainer.steps_per_epoch))
    assert seen == sum(len(task.samples) for task in tasks)


@pytest.mark.parametrize(("min_steps", "batch"), [(1, 1000), (20, 1000), (50, 400)])
def test_a_batch_is_smaller_where_samples_are_few(
    dataset: Dataset, pool: Pool, tasks: list[Task], small_config: Config, min_steps: int, batch: int
) -> None:
    """Of 20,000 samples in all, at most 1,000 a step."""
    config = dataclasses.replace(small_config, joint=dataclasses.replace(small_config.joint, min_steps=min_steps))
    run = new_run(pool, dataset.campaign_schema(), tasks, config)
    samples = sum(len(task.samples) for task in tasks)
    assert run.total == 20_000
    assert run.validate_every == round(samples / batch)


@pytest.mark.parametrize("heavy", ["first", "last", "everybody"])
def test_no_step_is_without_users(
    dataset: Dataset, pool: Pool, tasks: list[Task], small_config: Config, heavy: str
) -> None:
    """Where steps are small and one user has more samples than a step should, whenever it is that user's turn."""
    config = dataclasses.replace(small_config, joint=dataclasses.replace(small_config.joint, min_steps=10**6))
    run = new_run(pool, dataset.campaign_schema(), tasks, config)
    trainer = run.trainer
    assert isinstance(trainer, JointTrainer)
    users = len(trainer.knowledge.users)
    assert trainer.steps_per_epoch == users
    order = np.random.default_rng([trainer.settings.seed, 0]).permutation(users)
    counts = np.full(users, 3 if heavy == "everybody" else 1)
    counts[order[0 if heavy == "first" else -1]] += 1000
    trainer.knowledge = dataclasses.replace(trainer.knowledge, starts=np.append(0, np.cumsum(counts)))
    turns = [trainer._turn(0, place) for place in range(users)]
    assert [len(turn) for turn in turns] == [1] * users
    trainer.steps_per_epoch = users // 7
    trainer._order = None
    turns = [trainer._turn(0, place) for place in range(users // 7)]
    assert min(len(turn) for turn in turns) >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(turns)), np.arange(users))


def test_the_loss_is_that_of_each_campaigns_customised_model(trainer: JointTrainer, tasks: list[Task]) -> None:
    """A campaign's own weights put into critics and linear term, and users scored one campaign at a time."""
    torch.manual_seed(1)
    for tensor in (trainer.own.shift, trainer.own.coefficients, trainer.own.intercept, trainer.prior.basis):
        tensor.data.normal_()
    trainer.model.user_embedding.data[:, :-1].normal_()
    total = 0.0
    for number, task in enumerate(tasks):
        own = trainer.own
        weights = torch.cat([own.shift[number], own.coefficients[number]]).detach()
        head = Head(weights, own.intercept[number].detach())
        model = with_own_weights(trainer.model, trainer.prior, OwnWeights(head, None))
        users = model.users.batch(trainer.pool.take(task.samples.rows))
        with torch.no_grad():
            log_p, log_not_p = model(users, model.campaigns.batch(task.features))
        labels = torch.from_numpy(task.samples.labels)
        total -= float((labels * log_p + (1 - labels) * log_not_p).sum())
    everyone = np.arange(len(trainer.knowledge.users))
    which, campaign, labels = trainer.knowledge.take(everyone)
    loss = trainer._loss(
        trainer.model.users.batch(trainer.users),
        trainer.campaigns,
        which,
        campaign,
        labels,
        trainer.model.user_embedding,
        trainer.prior.basis,
    )
    assert loss.item() * len(labels) == pytest.approx(total, rel=1e-4)


def test_every_parameter_is_trained(trainer: JointTrainer) -> None:
    before = {
        n: p.detach().clone() for m in (trainer.model, trainer.prior, trainer.own) for n, p in m.named_parameters()
    }
    for number in range(3):
        trainer.step(number, 0.0)
    after = {n: p for m in (trainer.model, trainer.prior, trainer.own) for n, p in m.named_parameters()}
    for name, tensor in before.items():
        if not name.endswith(("_std", "id_variance")):
            assert not torch.equal(after[name], tensor), name
    assert not trainer.model.user_embedding[:, -1].any()  # the linear term is the campaigns' own


def random_case(users: int, critics: int, seed: int) -> tuple[Judged, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(users, 6, generator=rng)
    opinions = torch.randn(users, critics, generator=rng) - 2
    log_weights = torch.randn(users, critics, generator=rng).log_softmax(1)
    chance = (features[:, 0] - 1.5).sigmoid()
    return Judged(features, opinions, log_weights), (torch.rand(users, generator=rng) < chance).float()


@pytest.mark.parametrize("critics", [1, 3])
def test_the_head_is_the_most_probable_one(critics: int) -> None:
    """No step away from it raises the posterior; a step is as wide as the prior."""
    judged, labels = random_case(400, critics, 0)
    deviations = torch.tensor([1.0, 0.5, 0.5, 0.1, 2.0, 0.3])
    head = fit_head(judged, labels, deviations)

    def objective(weights: torch.Tensor, intercept: torch.Tensor) -> float:
        shift = (judged.features @ weights).double() + intercept
        fit = cross_entropy(judged.opinions.double(), judged.log_weights.double(), shift, labels.double()).sum()
        return float(fit + 0.5 * (weights / deviations).square().sum())

    best = objective(head.weights, head.intercept)
    rng = torch.Generator().manual_seed(1)
    for scale in (1e-2, 1e-1, 1.0):
        for _ in range(50):
            step = scale * deviations * torch.randn(6, generator=rng)
            shift = scale * torch.randn((), generator=rng)
            assert objective(head.weights + step, head.intercept + shift) > best - 1e-4


def test_a_narrow_prior_leaves_the_general_model() -> None:
    judged, labels = random_case(300, 2, 3)
    narrow, wide = (fit_head(judged, labels, torch.full((6,), std)) for std in (1e-4, 10.0))
    assert narrow.weights.abs().max() < 1e-3
    assert wide.weights.abs().max() > 0.1


@pytest.mark.parametrize("case", ["all alike", "separable"])
def test_odd_labels_end_in_finite_weights(case: str) -> None:
    judged, labels = random_case(200, 2, 4)
    labels = torch.zeros(200) if case == "all alike" else (judged.features[:, 0] > 0).float()
    head = fit_head(judged, labels, torch.full((6,), 3.0))
    assert torch.isfinite(head.weights).all()
    assert torch.isfinite(head.intercept)


def test_the_customised_model_computes_what_was_fitted(checkpoint: Checkpoint, pool: Pool, tasks: list[Task]) -> None:
    assert checkpoint.prior is not None
    checkpoint.prior.id_variance.data.fill_(0.05)
    task = tasks[0]
    model, users = checkpoint.model, pool.take(task.seeds.rows)
    campaign = model.campaigns.batch(task.features)
    samples = CampaignSamples(model, checkpoint.prior, users, campaign, task.seeds.labels)
    own = samples.fit(slice(None), lambda: None)
    assert own.ids is not None
    assert np.abs(own.ids).max() > 0
    customised = with_own_weights(model, checkpoint.prior, own)
    with torch.no_grad():
        log_p, log_not_p = customised(customised.users.batch(users), campaign)
    judged = judge_all(model, checkpoint.prior, users, campaign)
    expected = log_odds(judged, own.head.shift(judged) + torch.from_numpy(samples.ids @ own.ids))
    torch.testing.assert_close((log_p - log_not_p).double(), expected, rtol=1e-3, atol=1e-3)


def test_the_fit_can_be_looked_at_while_it_goes_on(checkpoint: Checkpoint, pool: Pool, tasks: list[Task]) -> None:
    """Its steps never fit worse, end with what it returns, and are the same when nobody looks."""
    assert checkpoint.prior is not None
    checkpoint.prior.id_variance.data.fill_(0.05)
    task = tasks[0]
    model, users = checkpoint.model, pool.take(task.seeds.rows)
    samples = CampaignSamples(model, checkpoint.prior, users, model.campaigns.batch(task.features), task.seeds.labels)
    steps: list[OwnWeights] = []
    own = samples.fit(slice(None), lambda: None, steps.append)
    unseen = samples.fit(slice(None), lambda: None)
    assert len(steps) >= 2
    for end in (steps[-1], unseen):
        assert torch.equal(end.head.weights, own.head.weights)
        assert torch.equal(end.head.intercept, own.head.intercept)
        np.testing.assert_array_equal(end.ids, own.ids)
    assert steps[-2].ids is None
    assert torch.equal(steps[-2].head.weights, own.head.weights)

    def objective(head: Head) -> float:
        shift = head.shift(samples.judged)
        labels = torch.from_numpy(samples.labels).double()
        fit = cross_entropy(samples.judged.opinions.double(), samples.judged.log_weights.double(), shift, labels)
        assert checkpoint.prior is not None
        return float(fit.sum() + 0.5 * (head.weights / checkpoint.prior.deviations()).square().sum())

    values = [objective(step.head) for step in steps[:-1]]
    assert all(after <= before + 1e-3 for before, after in pairwise(values))


def test_held_out_seeds_do_not_train_the_model_that_they_judge(
    checkpoint: Checkpoint, pool: Pool, tasks: list[Task]
) -> None:
    """Random labels are learnt by heart and tell nothing of the fold that was kept back."""
    rng = np.random.default_rng(0)
    rows = rng.choice(pool.num_users, 1500, replace=False)
    labels = np.concatenate([np.ones(300, np.float32), np.zeros(1200, np.float32)])
    samples = Samples(rows, labels).shuffled(rng)
    assert checkpoint.prior is not None
    checkpoint.prior.id_variance.data.fill_(10.0)
    adapted = customise(checkpoint, pool, tasks[0].features, samples, checkpoint.config.adaptation, keep_folds=True)
    assert adapted.history[1]["held_out_auc"] < 0.6
    for fold in adapted.held_out:
        assert not set(fold.seeds) & set(fold.trained)


def test_seeds_that_tell_nothing_are_left_to_the_general_model(
    checkpoint: Checkpoint, pool: Pool, tasks: list[Task]
) -> None:
    """Where own weights rank held-out seeds no better, the customised model is the general one, bit for bit."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = rng.choice(pool.num_users, 420, replace=False)
        samples = Samples(rows, np.repeat([1.0, 0.0], [20, 400]).astype(np.float32)).shuffled(rng)
        adapted = customise(checkpoint, pool, tasks[0].features, samples, checkpoint.config.adaptation)
        assert adapted.held_out_auc == max(adapted.general_auc, adapted.history[1]["held_out_auc"])
        if adapted.best_epoch == 0:
            for name, tensor in checkpoint.model.state_dict().items():
                assert torch.equal(adapted.model.state_dict()[name], tensor)
            return
    pytest.fail("own weights never lost, on twenty random sets of seeds")


def test_joint_training_helps_a_campaign_with_few_seeds(checkpoint: Checkpoint, dataset: Dataset, pool: Pool) -> None:
    """Fitted to a dozen seeds, own weights rank the later audience better under the learnt prior than a ridge alone."""
    ours, alone = [], []
    for task in load_tasks(dataset, pool, dataset.campaign_schema(), "test"):
        positive, negative = (task.seeds.take(np.flatnonzero(task.seeds.labels == label)) for label in (1, 0))
        few = Samples.concat(positive.take(np.arange(12)), negative.take(np.arange(240)))
        users = EncodedColumns.concat([pool.take(few.rows), pool.take(task.audience.rows)])
        campaign = checkpoint.model.campaigns.batch(task.features)
        assert checkpoint.prior is not None
        labels = np.concatenate([few.labels, task.audience.labels])
        samples = CampaignSamples(checkpoint.model, checkpoint.prior, users, campaign, labels)
        later = np.arange(len(few), len(labels))
        own = samples.fit(np.arange(len(few)), lambda: None)
        ours.append(samples.held_out_auc(later, own))
        weights = fit_ridge(samples.ids[: len(few)], few.labels, np.zeros(len(few)), 0.1)
        alone.append(auc(task.audience.labels.astype(np.int8), samples.ids[len(few) :] @ weights))
    assert np.mean(ours) > np.mean(alone)


def test_a_general_model_without_a_prior_says_what_to_set(
    checkpoint: Checkpoint, pool: Pool, tasks: list[Task]
) -> None:
    without = dataclasses.replace(checkpoint, prior=None)
    with pytest.raises(FailedPrecondition, match=r"adaptation\.optimizer"):
        customise(without, pool, tasks[0].features, tasks[0].seeds, checkpoint.config.adaptation)


@pytest.mark.parametrize("critics", [1, 3])
def test_a_general_model_that_is_sure_and_wrong_does_not_stop_the_fit(critics: int) -> None:
    """Opinions of -200 of everybody are for the intercept to undo; the weights are as without them."""
    judged, labels = random_case(300, critics, 5)
    shifted = dataclasses.replace(judged, opinions=judged.opinions - 200)
    plain, far = (fit_head(case, labels, torch.ones(6)) for case in (judged, shifted))
    torch.testing.assert_close(far.weights, plain.weights, atol=1e-3, rtol=0)
    assert float(far.intercept) == pytest.approx(float(plain.intercept) + 200, abs=1e-2)


def test_the_fit_stops_when_asked() -> None:
    def stop() -> None:
        raise Cancelled("stop")

    judged, labels = random_case(50, 1, 6)
    with pytest.raises(Cancelled):
        fit_head(judged, labels, torch.ones(6), stop)


@pytest.mark.parametrize(("single", "multi"), [(0, 3), (2, 0), (2, 3)])
def test_ids_are_summed_whatever_kinds_of_fields_there_are(single: int, multi: int) -> None:
    """As the sparse matrix that the ridge is fitted to, which numbers ids in the schema's order."""
    rng = np.random.default_rng(0)
    values = tuple("abcdefgh")
    kinds = [FieldKind.CATEGORICAL] * single + [FieldKind.MULTI] * multi
    fields = tuple(Field(f"field{number}", kind, values) for number, kind in enumerate(kinds))
    ids, offsets = {}, {}
    for field in fields:
        lengths = rng.integers(0, 4, 5) if field.kind is FieldKind.MULTI else np.ones(5, np.int64)
        ids[field.name] = rng.integers(0, field.size, lengths.sum()).astype(field.dtype)
        if field.kind is FieldKind.MULTI:
            offsets[field.name] = np.append(0, np.cumsum(lengths))
    schema, users = FeatureSchema(fields), EncodedColumns(5, ids, offsets)
    encoder = FeatureEncoder(schema)
    table = torch.randn(encoder.table_rows, 3)
    expected = one_hot(schema, users) @ table.double().numpy()
    summed = encoder.batch(users).sum_ids(table).double()
    torch.testing.assert_close(summed, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_a_huge_audience_is_judged_by_both_labels(trainer: JointTrainer, pool: Pool, tasks: list[Task]) -> None:
    """However rare the interested are: a random few of such an audience would hold none."""
    rows = np.resize(np.arange(pool.num_users), 50_000)
    labels = np.zeros(len(rows), np.float32)
    labels[:3] = 1
    task = dataclasses.replace(tasks[0], audience=Samples(rows, labels))
    assert 0 <= trainer.validate([task]) <= 1
    few = _some(task.audience, 1000)
    assert (len(few), int(few.labels.sum())) == (1000, 3)
    even = _some(Samples(rows, np.resize(np.array([1, 0], np.float32), len(rows))), 1000)
    assert (len(even), int(even.labels.sum())) == (1000, 500)


def test_the_users_that_validate_are_read_once(
    trainer: JointTrainer, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And seen anew by the model each time, which changes between two validations."""
    seen: list[int] = []
    take = Pool.take

    def counted(pool: Pool, rows: np.ndarray) -> EncodedColumns:
        seen.append(len(rows))
        return take(pool, rows)

    monkeypatch.setattr(Pool, "take", counted)
    held_out = [*tasks[:3], dataclasses.replace(tasks[3], audience=NO_SAMPLES)]
    before = trainer.validate(held_out)
    assert seen == [len(task.seeds) + len(task.audience) for task in tasks[:3]]  # the last cannot be judged
    with torch.no_grad():
        kept = trainer.prior.basis.clone()
        trainer.prior.basis.normal_()
        assert trainer.validate(held_out) != before
        trainer.prior.basis.copy_(kept)
    assert trainer.validate(held_out) == before
    assert len(seen) == 3
    trainer.validate(tasks[:2])
    assert len(seen) == 5


def test_where_no_campaign_can_be_asked_single_ids_count(
    dataset: Dataset, pool: Pool, tasks: list[Task], small_config: Config
) -> None:
    """A campaign for what the general model knows nothing of, one id of the users: without weights of ids, a guess."""
    run = new_run(pool, dataset.campaign_schema(), tasks, small_config)
    assert isinstance(run.trainer, JointTrainer)
    with torch.no_grad():  # untrained, and a basis in which nothing can be said
        run.trainer.prior.basis.zero_()
    no_audience = [dataclasses.replace(task, audience=NO_SAMPLES) for task in tasks]
    run.trainer.finish(no_audience, lambda: None)
    assert float(run.trainer.prior.id_variance) == pytest.approx(UNASKED_ID_VARIANCE)
    cities = pool.take(np.arange(pool.num_users)).ids["city"]
    labels = (cities == np.bincount(cities).argmax()).astype(np.float32)
    samples = Samples(np.arange(400), labels[:400])
    checkpoint = run.checkpoint({})
    assert checkpoint.prior is not None
    aucs = {}
    for variance in (0.0, UNASKED_ID_VARIANCE):
        checkpoint.prior.id_variance.fill_(variance)
        adapted = customise(checkpoint, pool, tasks[0].features, samples, checkpoint.config.adaptation)
        aucs[variance] = adapted.history[1]["held_out_auc"]
    assert aucs[UNASKED_ID_VARIANCE] > 0.99
    assert aucs[0.0] < 0.9


def test_choosing_the_prior_stops_when_asked(trainer: JointTrainer, tasks: list[Task]) -> None:
    def stop() -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        trainer.finish(tasks[:2], stop)


def test_the_prior_is_a_gradient_towards_zero(
    dataset: Dataset, pool: Pool, tasks: list[Task], small_config: Config
) -> None:
    """Of own weights and of the rows that a step touches, and of nothing else: here it outweighs all labels."""
    config = dataclasses.replace(small_config, joint=dataclasses.replace(small_config.joint, l2=100.0))
    trainer = new_run(pool, dataset.campaign_schema(), tasks, config).trainer
    assert isinstance(trainer, JointTrainer)
    tables = {"basis": trainer.prior.basis, "embedding": trainer.model.user_embedding}
    before = {name: table.detach().clone() for name, table in tables.items()}
    shift, network = trainer.own.shift.detach().clone(), trainer.model.critics.weight.detach().clone()
    index = trainer._turn(0, 0)
    touched = trainer.model.users.occurring(trainer.model.users.batch(trainer.users.take(index)))
    trainer.step(0, 0.0)
    for name, table in tables.items():
        assert table.detach()[touched].abs().mean() < before[name][touched].abs().mean()
    assert trainer.own.shift.detach().abs().mean() < shift.abs().mean()
    moved = (trainer.model.critics.weight.detach() - network).sign()
    assert not torch.equal(moved, -network.sign())
    unknown = torch.from_numpy(np.unique(trainer.model.users._unknown_of.numpy()))  # which id dropout brings in
    others = ~torch.isin(torch.arange(len(trainer.prior.basis)), torch.cat([touched, unknown]))
    assert others.any()
    for name, table in tables.items():
        assert torch.equal(table.detach()[others], before[name][others])


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_a_campaign_of_fewer_seeds_than_parts_is_split_less(
    checkpoint: Checkpoint, pool: Pool, tasks: list[Task], seeds: int
) -> None:
    samples = few_seeds(tasks[0], seeds)
    adapted = customise(checkpoint, pool, tasks[0].features, samples, checkpoint.config.adaptation, keep_folds=True)
    assert adapted.folds == seeds
    assert sorted(row for fold in adapted.held_out for row in fold.seeds) == sorted(samples.rows[samples.labels == 1])


def test_a_campaign_of_one_seed_is_refused(checkpoint: Checkpoint, pool: Pool, tasks: list[Task]) -> None:
    with pytest.raises(EmptySeeds, match="at least 2"):
        customise(checkpoint, pool, tasks[0].features, few_seeds(tasks[0], 1), checkpoint.config.adaptation)


def few_seeds(task: Task, seeds: int) -> Samples:
    index = [np.flatnonzero(task.seeds.labels == label) for label in (1, 0)]
    return task.seeds.take(np.concatenate([index[0][:seeds], index[1]]))
