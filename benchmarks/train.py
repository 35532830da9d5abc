"""`make bench-train`: training of the general model, beside Algorithm 1 written plainly on the same samples.

    make bench-train [ARGS='--data DIR --steps 20 --json results.json']

A meta-training step (second order, 8 experts, 5 critics, k = 16, 5 tasks of 512 + 512) by ours and by the plain
implementation in `plain_meta.py`, which copies whole embedding tables for every task, in turn; gradients are compared
first. Then steps of joint training, the default. Without --data on simulated users with the fields and the vocabulary
of the paper's data.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plain_meta import PlainTrainer, same_gradients
from rich import box
from rich.console import Console
from rich.table import Table
from topk import machine, version, write_json

from lookalike.config import Config, ModelConfig, TrainingConfig
from lookalike.dataset.layout import Dataset
from lookalike.dataset.profiles import find_profile
from lookalike.dataset.synthetic import simulate
from lookalike.model.metaheac import MetaHeac
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool
from lookalike.training.meta import Trainer
from lookalike.training.pretraining import GeneralTrainer, new_run
from lookalike.training.tasks import Task, load_tasks

GOAL = 3.0
PUBLISHED = ModelConfig(wide=False, num_experts=8, num_critics=5)
META = TrainingConfig(method="meta", second_order=True)


def main() -> int:
    """The command line; 1 if the two gradients differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset folder; default: simulated, with tencent's fields")
    parser.add_argument("--users", type=int, default=50_000, help="to simulate (50,000)")
    parser.add_argument("--steps", type=int, default=15, help="of each (15)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (all)")
    parser.add_argument("--json", metavar="FILE", help="write everything there; - is stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(stderr=arguments.json == "-", width=120, highlight=False)
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        dataset, pool = _data(arguments, Path(folder))
        tasks = load_tasks(dataset, pool, dataset.campaign_schema(), "train")
        document = measure(dataset, pool, tasks, arguments.steps)
    document |= {
        "machine": machine() | {"threads": arguments.threads, "python": platform.python_version()},
        "versions": {name: version(name) for name in ("lookalike", "numpy", "torch")},
        "command": shlex.join(sys.argv),
        "data": str(arguments.data or f"simulated, tencent, {arguments.users} users"),
    }
    show(console, document)
    if arguments.json:
        write_json(document, arguments.json)
    return 0 if document["same_gradients"] else 1


def _data(arguments: argparse.Namespace, folder: Path) -> tuple[Dataset, Pool]:
    if arguments.data is not None:
        dataset = Dataset.open(arguments.data)
        return dataset, ingest([str(dataset.users_path)], folder / "pool")
    profile = "tencent"
    dataset = simulate(folder / "dataset", users=arguments.users, campaigns=60, profile=profile)
    # The whole vocabulary, as with all users of the published data, not what occurs among a few.
    return dataset, ingest([str(dataset.users_path)], folder / "pool", schema=find_profile(profile).schema)


def measure(dataset: Dataset, pool: Pool, tasks: list[Task], steps: int) -> dict[str, Any]:
    """Both meta-training steps in turn, and then joint training; medians over `steps`."""
    torch.manual_seed(0)
    model = MetaHeac(pool.schema, dataset.campaign_schema(), PUBLISHED)
    ours = Trainer(model, META, pool, tasks)
    plain = PlainTrainer(ours)
    same = same_gradients(plain, ours, 0)
    figures: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for number in range(1, steps + 1):
        figures["ours"].append(_timed(partial(_step, ours, number), list(ours.optimizers.values())))
        figures["plain"].append(_timed(partial(_plain_step, plain, number), [plain.optimizer]))
    samples = figures["ours"][0]["samples"]
    joint = new_run(pool, dataset.campaign_schema(), tasks, replace(Config(), model=ModelConfig()))
    joint_steps = [
        _timed(partial(_step, joint.trainer, number), list(joint.trainer.optimizers.values()))
        for number in range(steps)
    ]
    rows = {name: _summary(of) for name, of in figures.items()} | {"joint": _summary(joint_steps[1:])}
    return {
        "table_rows": model.users.table_rows,
        "samples_a_step": samples,
        "same_gradients": same,
        "steps": rows,
        "plain_to_ours": rows["plain"]["milliseconds"] / rows["ours"]["milliseconds"],
        "goal": GOAL,
    }


def _step(trainer: GeneralTrainer, number: int) -> int:
    return trainer.step(number, 0.0)[2]


def _plain_step(plain: PlainTrainer, number: int) -> int:
    plain.gradient(number)
    plain.optimizer.step()
    settings = plain.trainer.config
    return settings.tasks_per_step * (settings.support_size + settings.query_size)


def _timed(step: Callable[[], int], optimizers: list[torch.optim.Optimizer]) -> dict[str, float]:
    """Seconds of a step, and of them in optimisers."""
    spent = 0.0
    restore: list[tuple[Any, str, Any]] = []

    def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
        def clock(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                spent += time.perf_counter() - began

        return clock

    for optimizer in optimizers:
        name = "update" if hasattr(optimizer, "update") else "step"
        restore.append((optimizer, name, getattr(optimizer, name)))
        setattr(optimizer, name, clocked(getattr(optimizer, name)))
    began = time.perf_counter()
    samples = step()
    seconds = time.perf_counter() - began
    for optimizer, name, call in restore:
        setattr(optimizer, name, call)
    return {"seconds": seconds, "optimizer": spent, "samples": float(samples)}


def _summary(steps: list[dict[str, float]]) -> dict[str, float]:
    seconds = statistics.median(step["seconds"] for step in steps)
    return {
        "milliseconds": 1000 * seconds,
        "samples_per_second": statistics.median(step["samples"] / step["seconds"] for step in steps),
        "optimizer_share": statistics.median(step["optimizer"] / step["seconds"] for step in steps),
    }


def show(console: Console, document: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table(box=box.SIMPLE, title=f"{document['data']}: {document['table_rows']:,} ids")
    for heading in ("step", "ms", "samples/s", "in the optimiser"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    titles = {
        "ours": "Algorithm 1",
        "plain": "Algorithm 1, whole tables copied",
        "joint": "joint training, the default",
    }
    for name, title in titles.items():
        row = document["steps"][name]
        table.add_row(
            title,
            f"{row['milliseconds']:.1f}",
            f"{row['samples_per_second']:,.0f}",
            f"{row['optimizer_share']:.0%}",
        )
    console.print(table)
    met = "met" if document["plain_to_ours"] >= GOAL else "missed"
    console.print(f"plain / ours: {document['plain_to_ours']:.1f} (goal {GOAL:g}, {met})")
    console.print(f"same gradients: {document['same_gradients']}")


if __name__ == "__main__":
    sys.exit(main())
