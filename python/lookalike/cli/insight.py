"""`lookalike insight`: what to expect of an audience before it is made, as text, JSON, or a page.

Knows the expander and retrieval.
"""

from __future__ import annotations

import tempfile
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
    Overrides,
    PoolFolder,
    RandomSeed,
    SeedsFile,
    configuration,
)
from lookalike.errors import InvalidInput, visible

if TYPE_CHECKING:
    from lookalike.retrieval.estimate import Estimate
    from lookalike.retrieval.insight import Insight
    from lookalike.retrieval.recall_curve import Point
    from lookalike.retrieval.receipt import Progress

# A terminal's worth; the page and the JSON have more.
_TELLING = 5


def insight(
    checkpoint: CheckpointFolder,
    pool: PoolFolder,
    campaign: CampaignName,
    sizes: Annotated[
        list[int] | None, typer.Option("-k", "--size", help="A size to tell of, besides the suggested; repeatable.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts, to open in a browser.")
    ] = None,
    seeds: SeedsFile = None,
    features: Features = None,
    dataset: DatasetFolder = None,
    filter: Filter = "",  # noqa: A002
    exclude: Exclude = None,
    random_seed: RandomSeed = 0,
    sample_users: Annotated[
        int | None, typer.Option("--sample", help="Users to rank of a pool with more who are eligible.")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Tell what an audience of any size would find, before it is made: are the seeds good, and how large should it be.

    Hides some of the seeds, ranks them among the users of the pool by models fitted to the others, and tells what share
    of them an audience of each size would find, how many times as many as chance, whether fitting the model to the
    campaign helped, what the seeds have in common, and what is wrong with them. Makes no audience. The general model
    must not have been trained on the campaign, or the figures are too high: of a dataset, try campaigns of split test.

    \b
    Examples:
      lookalike insight --checkpoint general --pool pool --campaign spring --seeds seeds.txt --html spring.html
      lookalike insight --checkpoint general --pool pool --dataset ml1m --campaign 11 -k 500 -k 1000 --json
    """
    from lookalike.cli.seeds import gather
    from lookalike.dataset.layout import Dataset
    from lookalike.expander import Expander
    from lookalike.pool.snapshot import Pool
    from lookalike.retrieval.insight_page import write_page
    from lookalike.retrieval.preview import MOST_USERS

    if html is not None:
        _require_place(html)
    user_ids, values = gather(campaign, seeds, features, dataset, id_type=Pool.open(pool).id_type)
    expander = Expander.open(checkpoint, pool, configuration(config, overrides, checkpoint=checkpoint))
    with display.progress() as report:

        def show(step: Progress) -> None:
            report(step.stage.value.lower(), step.done, step.total, "")

        found = expander.insight(
            campaign=campaign,
            features=values,
            seeds=user_ids,
            sizes=sizes or (),
            filter=filter,
            exclude=exclude or (),
            random_seed=random_seed,
            sample_users=MOST_USERS if sample_users is None else sample_users,
            trained_on=dataset is not None and Dataset.open(dataset).split(campaign) == "train",
            progress=show,
        )
    if as_json:
        display.print_json(found.to_json())
    else:
        _show(found)
    if html is not None:  # last: what was found is told, also where the disk is full
        write_page(found, html)
        display.say(str(html))


def _require_place(html: Path) -> None:
    """Before any work.

    Raises:
        InvalidInput: no file can be written there.
    """
    try:
        if html.exists() and not html.is_file():
            raise InvalidInput(f"{html} is a folder or a device: give the name of a file", field="html")
        there = next(folder for folder in html.absolute().parents if folder.exists())
        # Tried, not asked: of root the system says that it may write where nobody can.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InvalidInput(f"{html} cannot be written ({error.strerror}): give another", field="html") from error


def _show(found: Insight) -> None:
    typer.echo(visible(found.headline) + "\n")
    rows: list[tuple[str, object]] = [(reason.code.lower(), reason.text) for reason in found.seed_quality.reasons]
    rows += [("what to do", reason.fix) for reason in found.seed_quality.reasons]
    rows += [(one.name, _told(one.point, one.point.recall_band, one.point.lift_band)) for one in found.suggestions]
    rows += [
        ("asked for", _told(p, p.recall, p.lift, ", all there are," if p.k == found.eligible_users else ""))
        for p in found.asked
    ]
    rows.append(("fine-tuning", found.fine_tuning.text))
    rows += [("telling", one.text) for one in found.telling[:_TELLING]]
    rows.append(("hidden seeds", f"{found.held_out_seeds:,}, ranked among {found.compared_users:,} users"))
    display.table(rows)


def _told(point: Point, recall: Estimate, lift: Estimate, remark: str = "") -> str:
    """`recall` and `lift`: with the interval of one size, or of all at once for a size that the curve chose."""
    return (
        f"{point.k:,} users{remark} find {recall.value:.1%} of hidden seeds ({recall.low:.0%} to {recall.high:.0%}), "
        f"{lift.value:.1f} times chance ({lift.low:.1f} to {lift.high:.1f})"
    )
