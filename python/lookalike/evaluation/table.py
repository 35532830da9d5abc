"""The summary as text for a terminal, Markdown, CSV and JSON.

Knows the summary; computes nothing but which cell is the best.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lookalike.evaluation.comparison import FEWEST_CAMPAIGNS, RESAMPLES
from lookalike.evaluation.published import PublishedRow
from lookalike.evaluation.summary import GROUPS, METRICS, Group, Metric, Row, Summary, Versus
from lookalike.files import write_whole

Mark = Literal["", "best", "second"]

METRIC_TITLES: Mapping[Metric, str] = {"auc": "AUC", "precision": "P@5%", "recall": "R@5%"}
FILES = ("table.txt", "table.md", "table.csv", "comparisons.csv", "table.json")
# Where no terminal says otherwise: no cell is wrapped.
TEXT_WIDTH = 180
# Of the column of systems: a name of several words can still be told.
_NARROWEST_NAME = 12
_NONE = "-"


@dataclass(frozen=True)
class Cell:
    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Section:
    """One table: the title, column heads, and rows of as many cells."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def write_all(summary: Summary, folder: Path) -> None:
    """`FILES`, each whole."""
    text = io.StringIO()
    print_to(Console(file=text, width=TEXT_WIDTH), summary)
    data = asdict(summary) | {"notes": [*notes(summary)]}
    contents = (
        text.getvalue(),
        as_markdown(summary),
        as_csv(summary),
        comparisons_as_csv(summary),
        json.dumps(data, indent=1, ensure_ascii=False) + "\n",
    )
    for name, content in zip(FILES, contents, strict=True):
        write_whole(folder / name, content.encode())


def print_to(console: Console, summary: Summary) -> None:
    """Tables with the best in bold and the second underlined, then the notes.

    A terminal that is too narrow for a table is not shown the deviations. What is still too wide is wrapped between
    words, names of systems within them; a number is never cut, so that a table may be wider than the console.
    """
    styles = {"": "", "best": "bold", "second": "underline"}
    narrow = False
    for whole in sections(summary):
        section = whole
        if console.is_terminal and sum(map(max, _lengths(whole))) + _frame(whole) > console.width:
            rows = [[replace(cell, text=_without_deviation(cell.text)) for cell in row] for row in whole.rows]
            section = replace(whole, rows=rows)
        narrow |= section != whole
        table = Table(title=section.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        widths = _widths(section, console.width)
        table.width = sum(widths) + _frame(section)  # of the console's, rich would cut columns to fit
        for number, (head, width) in enumerate(zip(section.heads, widths, strict=True)):
            table.add_column(head, justify="right" if number else "left", width=width, overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(cell.text, styles[cell.mark]) for cell in row))
        console.print(table, soft_wrap=True)
    if narrow:
        console.print(Text(f"Deviations are left out where the terminal is too narrow; {FILES[0]} has them."))
    for note in notes(summary):
        console.print(Text(note))


def _widths(section: Section, console_width: int) -> list[int]:
    """Of its columns: none narrower than its longest word, but for the first; what room is left goes to the first."""
    lengths = _lengths(section)
    widths = [min(pair) for pair in lengths]
    room = console_width - _frame(section)
    lacking = sum(widths) - room
    if lacking > 0:
        widths[0] = max(min(_NARROWEST_NAME, widths[0]), widths[0] - lacking)
    for number, pair in enumerate(lengths):
        widths[number] += max(0, min(max(pair) - widths[number], room - sum(widths)))
    return widths


def _lengths(section: Section) -> list[tuple[int, int]]:
    """Of each column, the longest word and the longest text."""
    columns = [[head, *(row[number].text for row in section.rows)] for number, head in enumerate(section.heads)]
    return [
        (max(cell_len(word) for text in texts for word in text.split()), max(map(cell_len, texts))) for texts in columns
    ]


def _frame(section: Section) -> int:
    """Blanks in a line: one on either side of what is in a column, and one between columns and around them."""
    return 3 * len(section.heads) + 1


def _without_deviation(text: str) -> str:
    return re.sub(r" ± [\d.]+", "", text)


def as_markdown(summary: Summary) -> str:
    """Pipe tables with the best in bold and the second underlined, then the notes as a list."""
    marked = {"": "{}", "best": "**{}**", "second": "<u>{}</u>"}
    lines = [f"# {summary.name}", ""]
    for section in sections(summary):
        lines += [
            f"## {section.title}",
            "",
            _pipes(section.heads),
            _pipes(["---"] + ["---:"] * (len(section.heads) - 1)),
        ]
        lines += [_pipes([marked[cell.mark].format(_escaped(cell.text)) for cell in row]) for row in section.rows]
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes(summary)), ""])


def as_csv(summary: Summary) -> str:
    """One line a system."""
    return _csv([dict(_flat(row)) for row in summary.rows])


def comparisons_as_csv(summary: Summary) -> str:
    """Ours minus each row: one line for each system, group and metric; `note` says why interval and p are missing."""
    return _csv(
        [
            {
                "system": row.key,
                "group": group,
                "metric": metric,
                **{
                    ("difference" if name == "mean" else name): value
                    for name, value in asdict(versus.difference).items()
                },
                "p_holm": versus.p_holm,
                "p_runs": versus.p_runs,
                "note": "" if _tested(versus) else f"fewer than {FEWEST_CAMPAIGNS} campaigns",
            }
            for row in summary.rows
            for group, metrics in row.versus.items()
            for metric, versus in metrics.items()
        ]
    )


def sections(summary: Summary) -> list[Section]:
    """The tables in order; a comparison only where there is something to compare."""
    threshold = summary.identity.threshold
    found = [
        _metric_section(summary, "All test campaigns", ("all",), pooled=True),
        _metric_section(summary, f"By seeds: at most T = {threshold:,}, and more", ("few", "many"), pooled=False),
    ]
    if any(row.versus for row in summary.rows):
        found.append(_versus_section(summary))
    return [*found, _cost_section(summary)]


def _metric_section(summary: Summary, title: str, groups: Sequence[Group], *, pooled: bool) -> Section:
    short = {"all": "", "few": "≤ T ", "many": "> T "}
    columns = [(group, metric) for group in groups for metric in METRICS]
    marks = {column: _marks(summary, *column) for column in columns}
    heads = ["System", "Runs", *(short[group] + METRIC_TITLES[metric] for group, metric in columns)]
    rows = []
    for row in summary.rows:
        cells = [Cell(row.title), Cell(_runs(row, summary))]
        for group, metric in columns:
            text = _spread(row, group, metric)
            figure = _published(row.published, group, metric)
            cells.append(
                Cell(text if figure is None else f"{text} [{figure:.4f}]", marks[group, metric].get(row.key, ""))
            )
        if pooled:
            deviation = row.pooled_auc.deviation
            cells.append(Cell(f"{row.pooled_auc.mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")))
        rows.append(cells)
    return Section(title, [*heads, "AUC, pooled"] if pooled else heads, rows)


def _versus_section(summary: Summary) -> Section:
    ours = next(row.title for row in summary.rows if row.key == summary.ours)
    names = {"all": "all", "few": "≤ T", "many": "> T"}
    rows = [
        [
            Cell(row.title if group == next(iter(row.versus)) else ""),
            Cell(names[group]),
            *(Cell(_difference(versus)) for versus in metrics.values()),
            Cell(" / ".join(str(getattr(metrics["auc"].difference, n)) for n in ("wins", "ties", "losses"))),
            Cell(" / ".join(_p(versus.p_runs) for versus in metrics.values())),
        ]
        for row in summary.rows
        for group, metrics in row.versus.items()
    ]
    heads = ["System", "Seeds", *METRIC_TITLES.values(), "AUC: won / tied / lost", "t-test, p"]
    return Section(f"{ours} minus each: difference, 95% interval, p after Holm", heads, rows)


def _cost_section(summary: Summary) -> Section:
    heads = ["System", "Rate, offline", "Rate, online", "Pre-training, s", "Samples"]
    rows = [
        [
            Cell(row.title),
            Cell(f"{row.rates.offline:g}" if row.offline_samples else _NONE),
            Cell(f"{row.rates.online:g}"),
            Cell(f"{row.offline_seconds:,.1f}"),
            Cell(f"{row.offline_samples:,.0f}"),
            Cell(f"{row.online_seconds:,.3f}"),
            Cell(f"{row.online_samples:,.0f}"),
        ]
        for row in summary.rows
    ]
    return Section("Cost", [*heads, "Adaptation, s a campaign", "Samples a campaign"], rows)


def notes(summary: Summary) -> Iterator[str]:
    """What must be known to read the tables."""
    facts, identity = summary.facts, summary.identity
    counts = facts.campaigns
    yield (
        f"{summary.name}: {counts['all']:,.0f} test campaigns a run (at most T = {identity.threshold:,} seeds: "
        f"{counts['few']:,.0f}, more: {counts['many']:,.0f}); means over campaigns, then over runs, ± standard "
        "deviation over runs. Runs differ in seed and split."
    )
    yield from _notes_on_differences(summary)
    yield "Pooled AUC: over the users of all campaigns at once, each by rank within the campaign."
    rates = [_NONE if facts.base_rates[group] is None else f"{facts.base_rates[group]:.1%}" for group in GROUPS]
    yield f"Base rate, which P@5% is by chance: {rates[0]} (≤ T: {rates[1]}, > T: {rates[2]})."
    yield (
        f"Pre-training: {identity.samples:,} samples for every system that has one{_other_budgets(summary)}. Rates are "
        "tuned once, on held-out training campaigns of run 0 that are test campaigns in no run."
    )
    if identity.limit is not None and facts.most < identity.limit:
        yield f"The limit of {identity.limit:,} test campaigns a run left none out."
    elif identity.limit is not None:
        yield f"At most {identity.limit:,} test campaigns a run: a quick look, where there are more."
    if identity.grouped is not None:
        yield f"Campaigns of one {identity.grouped} are all for training or all for testing."
    if facts.left_out:
        yield f"{facts.left_out:,.1f} test campaigns a run cannot be judged: one label only, or under 20 candidates."
    if facts.repeated:
        yield (
            f"In {facts.repeated:.1%} of the campaigns, more than a tenth of the candidates are among the campaign's "
            "own training samples: whoever remembers them has an advantage there."
        )
    if any(row.published for row in summary.rows):
        yield "In brackets: the paper's Tables 2 and 4, on its own split."
    incomplete = [
        f"{row.title} ({len(row.runs)} of {summary.runs} runs)" for row in summary.rows if _lacks(row, summary)
    ]
    incomplete += [f"{key} (0 of {summary.runs} runs)" for key in summary.absent]
    if incomplete:
        yield f"Not finished: {', '.join(incomplete)}."
    other = [row.title for row in summary.rows if row.other_code]
    if other:
        yield f"Measured by another version of the code, in part at least: {', '.join(other)}."
    for machine in summary.machines:
        yield "Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."
    yield f"Command: {summary.command}"


def _other_budgets(summary: Summary) -> str:
    """Those that saw another number: a budget of their own, or whole batches."""
    others = [
        f"{row.title} ({row.offline_samples:,.0f})"
        for row in summary.rows
        if row.offline_samples and round(row.offline_samples) != summary.identity.samples
    ]
    return f" but {', '.join(others)}" if others else ""


def _notes_on_differences(summary: Summary) -> Iterator[str]:
    families = [[v for metrics in row.versus.values() for v in metrics.values()] for row in summary.rows if row.versus]
    tested = [size for size in (sum(map(_tested, family)) for family in families) if size]
    if tested:
        yield (
            "Differences: bootstrap over campaigns, each with all its runs; p is corrected for the metrics and groups "
            f"of the row and cannot be below {min(tested) * 2 / (RESAMPLES + 1):.4f}."
        )
    if not all(_tested(versus) for family in families for versus in family):
        yield (
            f"No interval and no p ({_NONE}) of fewer than {FEWEST_CAMPAIGNS} campaigns: without a difference, a "
            "bootstrap of so few finds one too often. A larger --limit has more, if there are any."
        )
    if families:
        yield "The t-test is over runs, as the paper has it (AUC / P@5% / R@5%)."


def _tested(versus: Versus) -> bool:
    return versus.p_holm is not None


def _marks(summary: Summary, group: Group, metric: Metric) -> dict[str, Mark]:
    """The best and the second of the rows with the most runs: others were asked less."""
    most = max(len(row.runs) for row in summary.rows)
    found = [(row.metrics[group][metric], row.key) for row in summary.rows if len(row.runs) == most]
    means = sorted({spread.mean for spread, _ in found if spread is not None}, reverse=True)
    marks: dict[float, Mark] = dict(zip(means, ("best", "second"), strict=False))
    if len(found) < 2:
        return {}
    return {key: marks.get(spread.mean, "") for spread, key in found if spread is not None}


def _lacks(row: Row, summary: Summary) -> bool:
    return len(row.runs) < summary.runs


def _runs(row: Row, summary: Summary) -> str:
    return f"{len(row.runs)} of {summary.runs}" if _lacks(row, summary) else str(len(row.runs))


def _spread(row: Row, group: Group, metric: Metric) -> str:
    spread = row.metrics[group][metric]
    if spread is None:
        return _NONE
    return f"{spread.mean:.4f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.4f}")


def _published(row: PublishedRow | None, group: Group, metric: Metric) -> float | None:
    if row is None or group == "all":
        return None
    return (row.few if group == "few" else row.many)[METRICS.index(metric)]


def _difference(versus: Versus) -> str:
    found = versus.difference
    interval = _NONE if found.low is None or found.high is None else f"{_signed(found.low)}, {_signed(found.high)}"
    return f"{_signed(found.mean)} [{interval}] {_p(versus.p_holm)}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def _p(value: float | None) -> str:
    if value is None:
        return _NONE
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _flat(row: Row) -> Iterator[tuple[str, object]]:
    yield from (("system", row.key), ("title", row.title), ("runs", len(row.runs)))
    for group in GROUPS:
        for metric in METRICS:
            spread = row.metrics[group][metric]
            yield f"{group}_{metric}", None if spread is None else spread.mean
            yield f"{group}_{metric}_sd", None if spread is None else spread.deviation
            if group != "all":
                yield f"{group}_{metric}_published", _published(row.published, group, metric)
    yield from (("pooled_auc", row.pooled_auc.mean), ("pooled_auc_sd", row.pooled_auc.deviation))
    yield from (("offline_rate", row.rates.offline), ("online_rate", row.rates.online))
    for name in ("offline_seconds", "offline_samples", "online_seconds", "online_samples"):
        yield name, getattr(row, name)


def _csv(lines: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
