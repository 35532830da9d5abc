"""The main job, end to end, on real data, as a team would run it: `make demo [DATA=DIR] [K=500] [FRESH=1]`.

    python examples/demo.py [--data DIR] [--k 500] [--fresh] [--serve]

Pool, general model and archive are made by the command line, audiences by a client of a real `lookalike serve`. Then
each customised model is judged on who turned out to be interested, which the service never sees, beside a logistic
regression. Everything lies in `.demo/<data set>/`; what is there and still fits its inputs is used again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lookalike import __version__
from lookalike.cli import display, exits
from lookalike.cli.child import ServerProcess
from lookalike.cli.remote import report_step
from lookalike.client import Client
from lookalike.dataset.layout import CampaignId, Dataset
from lookalike.dataset.published import get as get_published
from lookalike.dataset.synthetic import simulate
from lookalike.errors import LookalikeError, Unavailable
from lookalike.evaluation.metrics import Metrics, evaluate
from lookalike.files import file_digest
from lookalike.pool.snapshot import Pool
from lookalike.v1.audience_pb2 import Audience

ROOT = Path(__file__).resolve().parents[1]
# Leaves time for set-up, three expansions and their evaluation within a quarter of an hour on two cores.
TRAINING_SECONDS = 300
PERCENTILES = (25, 50, 75)
DEFAULT_SHARE = 0.05  # of the pool, where no K is given


@dataclass(frozen=True)
class Work:
    """What the demo keeps of one data set."""

    folder: Path
    archive: Path

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "general"

    @property
    def service(self) -> Path:
        return self.folder / "service"

    def serve_arguments(self, data_dir: Path) -> list[str]:
        """What follows `lookalike serve`."""
        settings = (f"service.data_dir={data_dir}", f"torchserve.archive={self.archive}")
        folders = ["--checkpoint", str(self.checkpoint), "--pool", str(self.pool)]
        return [*folders, "--insecure", *itertools.chain.from_iterable(("--set", setting) for setting in settings)]


@dataclass(frozen=True)
class Result:
    """One campaign: what the service answered, and how good it and the regression were on its later audience."""

    campaign: CampaignId
    audience: Audience
    ours: Metrics
    regression: Metrics


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="dataset folder; default: MovieLens-1M from its publisher")
    parser.add_argument("--k", type=int, help="users to find; default: 5%% of the pool")
    parser.add_argument(
        "--seconds", type=int, default=TRAINING_SECONDS, help="of training, at most; default: %(default)s"
    )
    parser.add_argument("--fresh", action="store_true", help="make everything anew")
    parser.add_argument("--work", type=Path, default=ROOT, help="where .demo and model_store are; default: the clone")
    parser.add_argument("--serve", action="store_true", help="prepare, then serve on 127.0.0.1:8500 until Ctrl-C")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    try:
        dataset, work = prepare(
            arguments.data, arguments.work.resolve(), seconds=arguments.seconds, fresh=arguments.fresh
        )
        if arguments.serve:
            # Its own data, which a later demo does not clear.
            os.execv(sys.executable, [*_lookalike("serve"), *work.serve_arguments(work.folder / "serve")])
        results = expand_and_judge(dataset, work, arguments.k)
    except LookalikeError as error:
        print(exits.describe(error), file=sys.stderr)
        return exits.exit_code(error)
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    show(results, work)
    print(f"\n{time.monotonic() - started:.0f} seconds in all; everything is in {_short(work.folder)}")
    return 0


def prepare(data: Path | None, root: Path, *, seconds: int, fresh: bool) -> tuple[Dataset, Work]:
    """Dataset, pool, general model and archive, made or found."""
    name, data = (data.resolve().name, data) if data is not None else _published_or_synthetic(root)
    work = Work(root / ".demo" / name, archive=root / "model_store" / "lookalike.mar")
    if fresh:
        for folder in (work.pool, work.checkpoint, Path(f"{work.checkpoint}.training")):
            shutil.rmtree(folder, ignore_errors=True)
        work.archive.unlink(missing_ok=True)
    work.folder.mkdir(parents=True, exist_ok=True)
    dataset = Dataset.open(data)
    say(f"data: {data} ({len(dataset.campaign_ids('train'))} training campaigns)")
    users = dataset.users_path
    make(work.pool, [file_digest(users)], "ingest", str(users), "--output", str(work.pool))
    budget = ("--set", f"training.max_seconds={seconds}")
    history = [file_digest(data / name) for name in ("campaigns.parquet", "samples.parquet")]
    make(
        work.checkpoint,
        [*history, Pool.open(work.pool).fingerprint, *budget],
        *("train", str(data), "--pool", str(work.pool), "--output", str(work.checkpoint), *budget),
    )
    # Decides for itself whether the archive still fits the checkpoint.
    run("archive", "--checkpoint", str(work.checkpoint), "--output", str(work.archive))
    return dataset, work


def make(target: Path, inputs: list[str], *command: str) -> None:
    """Run a `lookalike` command that writes `target`, unless it was written of these very inputs."""
    fingerprint = hashlib.sha256(json.dumps([__version__, *inputs]).encode()).hexdigest()
    note = target.with_name(f"{target.name}.inputs")
    if target.exists() and note.exists() and note.read_text() == fingerprint:
        say(f"using {_short(target)} again")
        return
    shutil.rmtree(target, ignore_errors=True)
    run(*command)
    note.write_text(fingerprint)


def run(*command: str) -> None:
    """Run a `lookalike` command, showing it as one would type it; end with its exit code if it fails."""
    say(f"\n$ lookalike {' '.join(_short(word) for word in command)}")
    code = subprocess.run([*_lookalike(), *command], check=False).returncode
    if code:
        sys.exit(code)


def expand_and_judge(dataset: Dataset, work: Work, k: int | None) -> list[Result]:
    """Serve, expand three test campaigns as a client would, stop serving, and judge the audiences' models."""
    shutil.rmtree(work.service, ignore_errors=True)
    pool = Pool.open(work.pool)
    k = k or max(1, round(DEFAULT_SHARE * pool.num_users))
    campaigns = choose(dataset)
    say(f"\n$ lookalike serve {' '.join(_short(word) for word in work.serve_arguments(work.service))}")
    answers: dict[CampaignId, Audience] = {}
    with (
        ServerProcess(work.serve_arguments(work.service), work.folder / "serve.log") as server,
        Client(server.address) as client,
    ):
        say(f"serving on {server.address}; log in {_short(work.folder / 'serve.log')}")
        for campaign in campaigns:
            say(f"\ncampaign {campaign}: ExpandAudience, k = {k:,}")
            answers[campaign] = order(client, dataset, campaign, k)
    return [
        Result(campaign, audience, *judge(dataset, pool, campaign, audience)) for campaign, audience in answers.items()
    ]


def choose(dataset: Dataset) -> list[CampaignId]:
    """The test campaigns at the 25th, 50th and 75th percentile of seed count: fixed before anything is scored."""
    by_seeds = sorted(dataset.campaign_ids("test"), key=lambda c: (int(dataset.samples(c, "seed")[1].sum()), str(c)))
    return [by_seeds[len(by_seeds) * percentile // 100] for percentile in PERCENTILES]


def order(client: Client, dataset: Dataset, campaign: CampaignId, k: int) -> Audience:
    """Hand a campaign's features and seeds to the service, and nothing else of it; follow it to its end."""
    users, labels = dataset.samples(campaign, "seed")
    expansion = client.expand(
        campaign=str(campaign), features=dataset.campaign_features(campaign), seeds=users.filter(labels == 1), k=k
    )
    with display.progress() as report:
        for step in expansion.progress():
            report_step(report, step)
    audience = expansion.result()
    members = sum(batch.num_rows for batch in client.members(audience.name))
    say(f"{expansion.name}: read {members:,} members of {audience.name}")
    return audience


def judge(dataset: Dataset, pool: Pool, campaign: CampaignId, audience: Audience) -> tuple[Metrics, Metrics]:
    """The customised model's and a logistic regression's metrics on the campaign's real later audience."""
    from lookalike.model.baselines.logistic_regression import LogisticRegression
    from lookalike.retrieval.receipt import MODEL_NAME
    from lookalike.scoring.compiled import TorchScriptEngine

    seeds, seed_labels = dataset.samples(campaign, "seed")
    regression = LogisticRegression(pool.schema).fit(pool.take(pool.find(seeds)), seed_labels)
    later, labels = dataset.samples(campaign, "audience")
    users = pool.take(pool.find(later))
    ours = TorchScriptEngine(Path(audience.receipt_path).parent / MODEL_NAME).score(users)
    user_ids = later.to_pylist()
    return evaluate(labels, ours, user_ids), evaluate(labels, regression.score(users), user_ids)


def show(results: list[Result], work: Work) -> None:
    """Print two tables and where the audiences are, and keep the figures as JSON."""
    names = [str(result.campaign) for result in results]
    rows = []
    for result in results:
        audience, seconds = result.audience, result.audience.stage_seconds
        seeds = f"{audience.seeds.given:,} / {audience.seeds.matched:,}"
        timed = [f"{seconds[stage]:.3f}" for stage in ("adapting", "compiling", "scoring", "rescoring")]
        rows.append([seeds, *timed, f"{audience.users_scored:,}", f"{audience.size:,}"])
    stages = ["seeds given / matched", "adapting", "compiling", "scoring", "scoring again", "users scored", "K"]
    _print_table("What the service did (stages in seconds)", stages, names, rows)
    quality = [[*_quality([result.ours]), *_quality([result.regression])] for result in results]
    quality.append([*_quality([result.ours for result in results]), *_quality([r.regression for r in results])])
    measures = ["AUC", "P@5%", "R@5%", "regression: AUC", "P@5%", "R@5%"]
    title = "How good it was, on who turned out to be interested, beside a logistic regression"
    _print_table(title, measures, [*names, "mean"], quality)
    for result in results:
        print(f"{result.campaign}: {_short(result.audience.parquet_path)}")
        print(f"{' ' * len(str(result.campaign))}  {_short(result.audience.receipt_path)}")
    figures = [
        {
            "campaign": result.campaign,
            "seconds": dict(result.audience.stage_seconds),
            "lookalike": asdict(result.ours),
            "logistic_regression": asdict(result.regression),
        }
        for result in results
    ]
    (work.folder / "result.json").write_text(json.dumps(figures, indent=1) + "\n")


def say(text: str) -> None:
    """A line at once, in order with what child processes print."""
    print(text, flush=True)


def _published_or_synthetic(root: Path) -> tuple[str, Path]:
    """Name and folder of MovieLens-1M, from the last time or from its publisher, or else of a synthetic sample."""
    folder = root / ".demo" / "ml1m" / "dataset"
    if folder.is_dir():
        return "ml1m", folder
    try:
        with display.progress() as report:
            get_published("ml1m", folder, progress=lambda done, total: report("bytes", done, total, ""), notice=say)
            return "ml1m", folder
    except Unavailable as error:
        say(f"no network ({error.message.splitlines()[0]}): running on a synthetic sample instead")
    folder = root / ".demo" / "synthetic" / "dataset"
    if not folder.is_dir():
        simulate(folder)
    return "synthetic", folder


def _quality(metrics: list[Metrics]) -> list[str]:
    mean = np.mean([(m.auc, m.precision, m.recall) for m in metrics], axis=0)
    return [f"{value:.3f}" for value in mean]


def _print_table(title: str, headings: list[str], names: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}")
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("campaign", *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in zip(names, rows, strict=True):
        table.add_row(name, *row)
    # Not cut to the window: a log has none.
    Console(width=120).print(table)


def _lookalike(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lookalike.cli", *arguments]


def _short(path: str | Path) -> str:
    """As seen from the clone."""
    return str(path).replace(f"{ROOT}{os.sep}", "")


if __name__ == "__main__":
    sys.exit(main())
