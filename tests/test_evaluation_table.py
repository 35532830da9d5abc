"""The results table: its numbers by hand, and that each format says the same."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_results import IDENTITY, ORIGIN, made, summary
from rich.console import Console

from lookalike.evaluation.comparison import RESAMPLES, holm, paired_bootstrap, paired_t_test
from lookalike.evaluation.published import TENCENT, TENCENT_FIGURES, published_as
from lookalike.evaluation.summary import GROUPS, METRICS, Group, Metric, Row, Summary
from lookalike.evaluation.systems.system import Spent
from lookalike.evaluation.table import (
    FILES,
    as_csv,
    as_markdown,
    comparisons_as_csv,
    notes,
    print_to,
    sections,
    write_all,
)

LR = ([0.6, 0.7, 0.8, 0.5, 0.9, 0.7, 0.6, 0.8], [0.7, 0.6, 0.8, 0.6, 0.9, 0.7, 0.7, 0.8])
MLP = ([0.5] * 8, [0.55] * 8)
OURS = ([0.7, 0.8, 0.8, 0.6, 0.9, 0.8, 0.7, 0.9], [0.8, 0.7, 0.8, 0.7, 0.8, 0.9, 0.8, 0.9])
EVERYTHING = [
    made(key, run, aucs)
    for key, both in (("lr", LR), ("mlp", MLP), ("lookalike", OURS))
    for run, aucs in enumerate(both)
]


@pytest.fixture(scope="module")
def whole() -> Summary:
    return summary(EVERYTHING)


def spread(row: Row, group: Group, metric: Metric) -> tuple[float, float | None]:
    found = row.metrics[group][metric]
    assert found is not None
    return found.mean, found.deviation


def text_of(found: Summary) -> str:
    text = io.StringIO()
    print_to(Console(file=text, width=200), found)
    return text.getvalue()


def test_means_are_over_campaigns_then_over_runs(whole: Summary) -> None:
    lr = whole.rows[0]
    assert spread(lr, "all", "auc") == pytest.approx((0.7125, np.std([0.7, 0.725], ddof=1)))
    # T = 60: campaigns of 10 to 60 seeds, and of 70 and 80.
    assert spread(lr, "few", "auc") == pytest.approx(((4.2 / 6 + 4.3 / 6) / 2, 0.1 / 6 / 2**0.5))
    assert spread(lr, "many", "precision") == pytest.approx((0.725 / 4, 0.05 / 4 / 2**0.5))
    assert (lr.offline_seconds, lr.offline_samples, lr.online_seconds, lr.online_samples) == (4.0, 1000, 0.5, 300)


def test_ours_is_compared_with_every_other_row(whole: Summary) -> None:
    lr, _, ours = whole.rows
    assert ours.versus == {}
    differences = np.concatenate([np.subtract(o, t) for o, t in zip(OURS, LR, strict=True)])
    found = lr.versus["all"]["auc"]
    assert found.difference == paired_bootstrap(differences, np.tile(np.arange(8), 2))
    assert found.p_runs == paired_t_test([sum(o) / 8 for o in OURS], [sum(t) / 8 for t in LR])
    family = [lr.versus[group][metric] for group in GROUPS for metric in METRICS]
    assert [versus.p_holm for versus in family] == holm([versus.difference.p for versus in family])
    assert sum(getattr(found.difference, name) for name in ("wins", "ties", "losses")) == 8


def test_what_must_be_known_is_said(whole: Summary) -> None:
    said = "\n".join(notes(whole))
    assert "8 test campaigns a run (at most T = 60 seeds: 6, more: 2)" in said
    assert "Base rate, which P@5% is by chance: 5.0%" in said
    assert "1,000 samples" in said
    assert "2.0 test campaigns a run cannot be judged" in said
    assert "CPU of a test" in said
    assert said.endswith("Command: lookalike bench made")
    assert "Not finished" not in said
    assert "another version" not in said
    assert "quick look" not in said


def test_what_is_missing_is_said() -> None:
    partial = summary(EVERYTHING[:5], runs=2, asked=["lr", "mlp", "hubble", "lookalike"])
    assert "Not finished: Lookalike (1 of 2 runs), hubble (0 of 2 runs)." in "\n".join(notes(partial))
    assert [row[1].text for row in sections(partial)[0].rows] == ["2", "2", "1 of 2"]


def test_a_quick_look_and_groups_and_other_code_are_said() -> None:
    other = replace(ORIGIN, code="then")
    results = [made("lr", 0, LR[0]), made("mlp", 0, LR[0], origin=other)]
    said = "\n".join(notes(summary(results, identity=replace(IDENTITY, limit=8, grouped="author"))))
    assert "At most 8 test campaigns a run: a quick look" in said
    assert "Campaigns of one author" in said
    assert re.search(r"another version of the code, in part at least: MLP\.", said)


def test_a_limit_above_what_there_is_is_no_quick_look() -> None:
    said = "\n".join(notes(summary([made("lr", 0, LR[0])], identity=replace(IDENTITY, limit=9))))
    assert "The limit of 9 test campaigns a run left none out." in said
    assert "quick look" not in said


def test_who_saw_more_samples_is_named() -> None:
    plain, more = made("lr", 0, LR[0]), made("lookalike", 0, OURS[0])
    more = replace(more, grades=replace(more.grades, offline=Spent(9.0, 350_258)))
    none = made("mlp", 0, MLP[0])
    none = replace(none, grades=replace(none.grades, offline=Spent(0.0, 0)))
    said = "\n".join(notes(summary([plain, none, more])))
    assert "Pre-training: 1,000 samples for every system that has one but Lookalike (350,258). Rates" in said
    assert "for every system that has one. Rates" in "\n".join(notes(summary([plain, none])))


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [30, 60, 80, 120, 180])
def test_no_number_is_cut_where_the_console_is_narrow(whole: Summary, width: int, terminal: bool) -> None:
    """Every number is whole on a line; where a table is too wide, a terminal does without deviations, and says so."""
    text = io.StringIO()
    print_to(Console(file=text, width=width, force_terminal=terminal, color_system=None), whole)
    shown = text.getvalue()
    assert "…" not in shown
    for section in sections(whole):
        for row in section.rows:
            for cell in row[1:]:
                words = (re.sub(r" ± [\d.]+", "", cell.text) if terminal else cell.text).split()
                assert all(re.search(rf"(?m)(?<!\S){re.escape(word)}(?!\S)", shown) for word in words)
    assert ("Deviations are left out" in " ".join(shown.split())) == (terminal and width < 180)
    assert ("0.0177" in shown) == (width >= 120 or not terminal)
    if width >= 120:
        assert max(map(len, shown.splitlines())) <= width


def test_the_best_is_bold_and_the_second_underlined(whole: Summary) -> None:
    lines = [line for line in as_markdown(whole).splitlines() if line.startswith("| ")]
    first = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[2] for line in lines[2:5]}
    assert first == {"LR": "<u>0.7125 ± 0.0177</u>", "MLP": "0.5250 ± 0.0354", "Lookalike": "**0.7875 ± 0.0177**"}


def test_a_row_with_fewer_runs_is_not_the_best() -> None:
    marks = {row[0].text: row[2].mark for row in sections(summary(EVERYTHING[:5]))[0].rows}
    assert marks == {"LR": "best", "MLP": "second", "Lookalike": ""}


def test_alone_nobody_is_the_best() -> None:
    assert {cell.mark for row in sections(summary(EVERYTHING[:2]))[0].rows for cell in row} == {""}


def test_a_group_without_campaigns_is_empty() -> None:
    few = summary([made("lr", 0, LR[0][:3]), made("lookalike", 0, OURS[0][:3])], runs=1)
    assert few.rows[0].metrics["many"]["auc"] is None
    assert "many" not in few.rows[0].versus
    assert [cell.text for cell in sections(few)[1].rows[0][5:]] == ["-"] * 3
    assert as_csv(few).splitlines()[1].count(",,,") >= 1
    text_of(few)


def test_few_campaigns_are_compared_without_interval_and_p_and_every_format_says_why(
    whole: Summary, tmp_path: Path
) -> None:
    write_all(whole, tmp_path)
    for name in ("table.txt", "table.md", "table.json"):
        content = " ".join((tmp_path / name).read_text().split())
        assert "No interval and no p (-) of fewer than 20 campaigns" in content
        assert "bootstrap over campaigns" not in content
    assert sections(whole)[2].rows[0][2].text == "+.0750 [-] -"
    for line in csv.DictReader(io.StringIO((tmp_path / "comparisons.csv").read_text())):
        assert [line[name] for name in ("low", "high", "p", "p_holm")] == [""] * 4
        assert line["note"] == "fewer than 20 campaigns"
    versus = json.loads((tmp_path / "table.json").read_text())["rows"][0]["versus"]["all"]["auc"]
    assert (versus["difference"]["low"], versus["difference"]["p"], versus["p_holm"]) == (None, None, None)


def test_a_group_of_few_campaigns_is_no_part_of_the_correction() -> None:
    """T = 60: of 30 campaigns 6 have at most T seeds, and the family is the three metrics of all and of more."""
    rng = np.random.default_rng(0)
    found = summary(
        [made(key, 0, rng.uniform(low, low + 0.1, 30).tolist()) for key, low in (("lr", 0.5), ("lookalike", 0.6))]
    )
    lr = found.rows[0].versus
    assert {g: [v.p_holm is None for v in metrics.values()] for g, metrics in lr.items()} == {
        "all": [False] * 3,
        "few": [True] * 3,
        "many": [False] * 3,
    }
    family = [lr[group][metric] for group in ("all", "many") for metric in METRICS]
    assert [versus.p_holm for versus in family] == holm([versus.difference.p for versus in family])
    said = "\n".join(notes(found))
    assert f"cannot be below {6 * 2 / (RESAMPLES + 1):.4f}" in said
    assert "No interval and no p" in said
    assert [cell.text for cell in sections(found)[2].rows[1]][2].endswith("[-] -")
    assert next(csv.DictReader(io.StringIO(comparisons_as_csv(found))))["note"] == ""


def test_markdown_is_pipe_tables_of_as_many_cells_in_every_line(whole: Summary) -> None:
    tables = re.split(r"\n\n", as_markdown(whole))
    pipes = [table.splitlines() for table in tables if table.startswith("|")]
    assert len(pipes) == len(sections(whole)) == 4
    for lines in pipes:
        assert len({line.count(" | ") for line in lines}) == 1
        assert re.fullmatch(r"\| ---( \| ---:)+ \|", lines[1])


def test_text_has_every_cell_and_every_note(whole: Summary) -> None:
    shown = text_of(whole)
    for section in sections(whole):
        for row in section.rows:
            assert all(cell.text in shown for cell in row)
    # Notes are wrapped where the console ends.
    assert all(note.split()[-1] in shown for note in notes(whole))


def test_csv_has_a_line_a_system_and_the_numbers_in_full(whole: Summary) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(whole))))
    assert [line["system"] for line in lines] == ["lr", "mlp", "lookalike"]
    assert float(lines[0]["all_auc"]) == spread(whole.rows[0], "all", "auc")[0]
    assert lines[0]["few_auc_published"] == ""
    comparisons = list(csv.DictReader(io.StringIO(comparisons_as_csv(whole))))
    assert len(comparisons) == 2 * len(GROUPS) * len(METRICS)
    found = next(
        line for line in comparisons if (line["system"], line["group"], line["metric"]) == ("lr", "all", "auc")
    )
    assert float(found["difference"]) == whole.rows[0].versus["all"]["auc"].difference.mean


def test_files_of_every_format(whole: Summary, tmp_path: Path) -> None:
    write_all(whole, tmp_path)
    assert {*FILES} == {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "table.json").read_text())["notes"] == [*notes(whole)]
    data = json.loads((tmp_path / "table.json").read_text())
    assert data["command"] == "lookalike bench made"
    assert data["rows"][0]["metrics"]["all"]["auc"]["mean"] == pytest.approx(0.7125)
    assert data["identity"]["samples"] == 1000
    assert (tmp_path / "table.md").read_text() == as_markdown(whole)


# ---------------------------------------------------------------------------------------------------------- published


def test_published_figures_stand_beside_ours_on_their_data() -> None:
    both = [made("lr", 0, LR[0]), made("metaheac-no-hc", 0, OURS[0]), made("lookalike", 0, OURS[0])]
    found = summary(both, runs=1, identity=replace(IDENTITY, published=TENCENT))
    rows = sections(found)[1].rows
    assert rows[0][2].text.endswith("[0.5942]")
    assert [cell.text.partition(" ")[2] for cell in rows[1][2:]] == [
        "[0.7199]",
        "[0.2472]",
        "",
        "[0.7115]",
        "[0.2220]",
        "",
    ]
    assert all("[" not in cell.text for cell in rows[2])
    assert "In brackets: the paper's Tables 2 and 4" in "\n".join(notes(found))


def test_published_figures_are_the_paper_s() -> None:
    """P/R is about the base rate over 0.05, whatever the system: a slip in a leading digit would show."""
    for row in TENCENT_FIGURES.values():
        for (auc, precision, recall), ratio in ((row.few, 0.976), (row.many, 0.953)):
            assert 0.5 < auc < 0.75
            assert recall is None or precision / recall == pytest.approx(ratio, abs=0.007)
    ours = TENCENT_FIGURES["metaheac"]
    assert all(ours.few[0] >= row.few[0] and ours.many[0] >= row.many[0] for row in TENCENT_FIGURES.values())


def test_tencent_s_campaigns_are_known_by_their_fields_and_numbers() -> None:
    names = ("advertiserId", "adCategoryId", "campaignId", "productId", "productType", "creativeSize")
    numbers: dict[str, list[object]] = {name: [1, "22", None] for name in names}
    assert published_as(numbers) == TENCENT
    assert published_as(numbers | {"advertiserId": ["advertiser_1"]}) == ""  # as simulated ones are
    assert published_as(numbers | {"genre": [1]}) == ""
    assert published_as({"genre": ["drama"]}) == ""
