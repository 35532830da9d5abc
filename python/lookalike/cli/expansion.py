"""`lookalike expand` and `verify`: an audience made and checked in this process, without a service.

Knows the expander and retrieval.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike.cli import display
from lookalike.cli.options import (
    AsJson,
    CampaignName,
    CheckpointFolder,
    ConfigFile,
    DatasetFolder,
    Exclude,
    Features,
    Filter,
    IncludeSeeds,
    Overrides,
    PoolFolder,
    RandomSeed,
    SeedsFile,
    Size,
    configuration,
)

if TYPE_CHECKING:
    from lookalike.retrieval.receipt import Progress, Receipt

_GENERAL = "0: fine-tuning did not help on held-out seeds, so the network is the general one"


def expand(
    checkpoint: CheckpointFolder,
    pool: PoolFolder,
    campaign: CampaignName,
    size: Size,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Default: audiences/CAMPAIGN-...")
    ] = None,
    seeds: SeedsFile = None,
    features: Features = None,
    dataset: DatasetFolder = None,
    include_seeds: IncludeSeeds = False,
    filter: Filter = "",  # noqa: A002
    exclude: Exclude = None,
    random_seed: RandomSeed = 0,
    reserve: Annotated[int, typer.Option(help="Keep so many of those who come next in reserve.parquet.")] = 0,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Find the users of a pool who are most like a campaign's seeds, in this process.

    Writes a folder: audience.parquet (rank, user_id, score), manifest.json (the receipt), model.pt (the customised
    model), seeds.parquet and, with --exclude, exclusions.parquet. If the folder holds this very audience already,
    nothing is done; if the command was killed or stopped by Ctrl-C, the same command goes on where it was.

    --filter compares fields of the pool with values by = != < <= > >=, IN, BETWEEN, LIKE and IS NULL, and multi-valued
    ones by contains(field, 'value'); AND, OR, NOT join. Numeric fields are kept in bins: >= and < at their edges.

    \b
    Examples:
      lookalike expand --checkpoint general --pool pool --dataset ml1m --campaign 11 -k 500
      lookalike expand --checkpoint general --pool pool --campaign spring --seeds seeds.txt \\
          --feature category=shoes -k 100000 --output audiences/spring \\
          --filter "country in ('DE', 'AT') and age >= 3" --exclude opted-out.txt --exclude customers.parquet
    """
    from lookalike.cli.seeds import gather
    from lookalike.expander import Expander
    from lookalike.pool.snapshot import Pool

    user_ids, values = gather(campaign, seeds, features, dataset, id_type=Pool.open(pool).id_type)
    expander = Expander.open(checkpoint, pool, configuration(config, overrides, checkpoint=checkpoint))
    with display.progress() as report:

        def show(step: Progress) -> None:
            report(step.stage.value.lower(), step.done, step.total, "")

        audience = expander.expand(
            campaign=campaign,
            features=values,
            seeds=user_ids,
            k=size,
            output=output,
            include_seeds=include_seeds,
            filter=filter,
            exclude=exclude or (),
            random_seed=random_seed,
            reserve=reserve,
            progress=show,
        )
    if as_json:
        display.print_json({"audience": str(audience.path), **audience.receipt.to_json()})
    else:
        _show(audience.path, audience.receipt)


def verify(
    audience: Annotated[Path, typer.Argument(metavar="AUDIENCE", help="The audience's folder.")],
    pool: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where its pool is now, if it has moved.")] = None,
    sample: Annotated[int, typer.Option(help="Users to score again, at least.")] = 100_000,
    random_seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    opted_out: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Who had opted out, of whom no ids are kept; files as of --exclude."),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Check that an audience is what its receipt says: hashes, order, completeness, and a sample scored again.

    \b
    Examples:
      lookalike verify audience
      lookalike verify audience --sample 1000000 --set scoring.threads=2
    """
    from lookalike.retrieval.verify import require_passed
    from lookalike.retrieval.verify import verify as check

    settings = configuration(config, overrides)
    with display.progress() as report:
        verification = check(
            audience,
            pool=pool,
            sample_users=sample,
            random_seed=random_seed,
            threads=settings.scoring.threads,
            opted_out=opted_out or (),
            progress=lambda done, total: report("users", done, total, ""),
        )
    if as_json:
        display.print_json({"passed": verification.passed, **asdict(verification)})
    else:
        display.table((("ok  " if one.passed else "FAIL") + f"  {one.name}", one.detail) for one in verification.checks)
    require_passed(verification)


def _show(path: Path, receipt: Receipt) -> None:
    seeds, adaptation = receipt.seeds, receipt.adaptation
    skipped: list[tuple[str, object]] = []
    if receipt.filter:
        skipped.append(("users filtered", receipt.users_filtered))
    if (excluded := receipt.exclusions).given:
        matched = f"{excluded.given:,} given, {excluded.matched:,} matched, {excluded.not_in_pool:,} not in the pool"
        skipped.append(("exclusions", matched))
    rescored: list[tuple[str, object]] = []
    if (again := receipt.rescoring) is not None:
        rescored.append(
            ("scored again", f"{again.users:,}, in float32; epsilon {again.epsilon:.2g} ({again.epsilon_kind})")
        )
    rows: list[tuple[str, object]] = [
        ("audience", path),
        ("members", receipt.k),
        ("seeds", f"{seeds.given:,} given, {seeds.matched:,} matched, {seeds.not_in_pool:,} not in the pool"),
        ("users scored", f"{receipt.users_scored:,}, by the engine {receipt.engine}"),
        *skipped,
        ("cut-off", f"{receipt.cutoff_score}, {receipt.ties_at_cutoff:,} users on it, {receipt.ties_selected:,} in"),
        *rescored,
        ("AUC on held-out seeds", f"{adaptation.held_out_auc:.4f}, {adaptation.general_auc:.4f} before adapting"),
        ("epochs", adaptation.best_epoch or _GENERAL),
        ("seconds", ", ".join(f"{name} {seconds:.2f}" for name, seconds in receipt.seconds.items())),
    ]
    display.table(rows)
