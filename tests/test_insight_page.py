"""The page of an insight: whole, alone, and safe whatever campaigns and values are called."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import visible
from lookalike.retrieval.insight import FORMAT_VERSION, Insight, caveats, headline
from lookalike.retrieval.insight_page import render, write_page
from lookalike.retrieval.markup import Markup, element, join
from lookalike.retrieval.placements import UsersVariance
from lookalike.retrieval.plots import HEIGHT, WIDTH, Axis
from lookalike.retrieval.recall_curve import RecallCurve
from lookalike.retrieval.receipt import SeedMatch
from lookalike.retrieval.seed_quality import fine_tuning, judge
from lookalike.retrieval.telling import Telling

HOSTILE = """<script src="http://evil.example/x.js">alert('1')</script>" onload='x' &amp; ]]> \u202e"""
VOID = {"meta", "br", "hr"}
NOBODY = SeedMatch(given=0, matched=0, duplicates=0, not_in_pool=0)


class Page(HTMLParser):
    """The tags, attributes and text of a page whose every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def told(name: str, z: float, value: str | None = "x") -> Telling:
    what = "missing" if value is None else "value"
    return Telling(
        field="f",
        value=value,
        what=what,
        seeds=20,
        seed_share=0.2,
        pool_share=0.0 if z > 5 else 0.1,
        ratio=None if z > 5 else 2.0,
        log_odds=z,
        z=z,
        name=name,
        text=f"{name}: 20.0% of the seeds, 10.0% of the others; 2 times",
    )


def insight_of(count: int = 200, population: int = 100_000, sharp: float = 6.0, **change: Any) -> Insight:
    ranks = np.random.default_rng(count).beta(0.6, sharp, count)
    general = np.minimum(ranks * 1.5, 1)
    curve = RecallCurve(ranks, general, population, population)
    match = SeedMatch(given=count + 7, matched=count, duplicates=3, not_in_pool=4)
    everybody = UsersVariance(users=population, customised=0.0, general=0.0, difference=0.0)
    tuning = fine_tuning(ranks, general, everybody, epochs=2, regression=True)
    quality = judge(match, ranks, tuning, compared=population)
    suggestions = curve.suggestions()
    plain = Insight(
        format_version=FORMAT_VERSION,
        code_version="0",
        created="2026-01-01T00:00:00+00:00",
        campaign="spring",
        features={"category": "shoes"},
        headline=headline(quality, suggestions, population),
        seed_quality=quality,
        fine_tuning=tuning,
        suggestions=suggestions,
        curve=curve.points(curve.sizes()),
        asked=curve.points([500]),
        reach=curve.reach(),
        telling=(told("f is x", 4.0), told("f is y", 6.0), told("f is missing", -3.0, None)),
        caveats=caveats(eligible=population, described=population, compared=population, smallest=10, passing=False),
        seeds=match,
        seeds_sha256="a" * 64,
        held_out_seeds=count,
        folds=5,
        filter="",
        exclusions=NOBODY,
        exclusions_sha256="",
        eligible_users=population,
        compared_users=population,
        described_users=population,
        pool="/pools/today",
        pool_users=population + count,
        pool_sha256="b" * 64,
        checkpoint_sha256="c" * 64,
        adaptation_config={},
        random_seed=0,
        engine="native",
        device="cpu",
        seconds={},
    )
    return dataclasses.replace(plain, **change)


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    text = render(insight_of())
    page = Page(text)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use"})
    assert not any(
        name in {"src", "href", "srcset", "action", "style"} or name.startswith("on") for name, _ in page.attributes
    )
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_verdict_comes_first_and_every_part_is_there() -> None:
    insight = insight_of()
    text = render(insight)
    order = ["spring", insight.headline, "How large?", "What does an audience find?", "Reach against similarity"]
    order += ["What the seeds have in common", "The seeds", "Did fitting the model", "What these figures are not"]
    places = [text.index(part, text.index("<body>")) for part in order]
    assert places == sorted(places)
    words = " ".join(Page(text).text)
    for suggestion in insight.suggestions:
        assert f"{suggestion.point.k:,}" in words
    for point in insight.curve:
        assert f"{point.k:,}" in words
    assert "nobody else" in words
    assert all(caveat in words for caveat in insight.caveats)


@pytest.mark.parametrize("name", [HOSTILE, "Ünïcode 春"])
def test_names_and_values_are_text_and_nothing_else(name: str) -> None:
    telling = (told(name, 4.0, name), told(name, -4.0, name))
    plain = Page(render(insight_of(telling=telling)))
    page = Page(render(insight_of(campaign=name, features={name: [name]}, filter=name, pool=name, telling=telling)))
    assert page.tags == plain.tags
    assert len(page.attributes) == len(plain.attributes)
    assert visible(name) in "".join(page.text)


@pytest.mark.parametrize(
    "insight",
    [
        insight_of(10, 3),
        insight_of(12, 1),
        insight_of(40, 10**9),
        insight_of(300, 5000, sharp=0.6),
        insight_of(asked=(), telling=(), suggestions=()),
    ],
    ids=["three users", "one user", "a billion", "random seeds", "nothing to tell"],
)
def test_any_insight_makes_a_page_whose_drawings_stay_within_their_frame(insight: Insight) -> None:
    text = render(insight)
    Page(text)
    assert not re.search(r"\b(nan|inf)\b", text)
    for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)(?=[ \"])", "".join(re.findall(r'points="[^"]*"', text))):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_the_page_says_what_is_wrong_and_what_to_do() -> None:
    insight = insight_of(40)
    words = " ".join(Page(render(insight)).text)
    assert insight.seed_quality.reasons
    for reason in insight.seed_quality.reasons:
        assert reason.text in words
        assert f"What to do: {reason.fix}" in words
    assert "None is suggested" in " ".join(Page(render(insight_of(asked=(), suggestions=()))).text)


def test_a_suggested_size_has_the_interval_of_all_sizes_and_one_asked_for_its_own() -> None:
    insight = insight_of()
    table = render(insight)
    table = table[table.index("How large?") : table.index("What does an audience find?")]
    for point, recall in (
        *((one.point, one.point.recall_band) for one in insight.suggestions),
        *((point, point.recall) for point in insight.asked),
    ):
        assert f"<td>{point.k:,}</td>" in table
        assert f"{recall.value:.1%} ({recall.low:.0%} to {recall.high:.0%})" in table
    chosen = next(one.point for one in insight.suggestions if one.name == "balanced").recall_band
    assert f"({chosen.low:.0%} to {chosen.high:.0%})" in insight.headline
    assert "balanced while that is 2 or more" in table


def test_more_users_than_there_are_is_told() -> None:
    insight = insight_of()
    whole = RecallCurve(np.array([0.1, 0.2]), np.array([0.1, 0.2]), 100_000, 100_000).points([10**9])
    assert "Asked for: all there are" in render(dataclasses.replace(insight, asked=whole))
    assert "all there are" not in render(insight)
    settings: dict[str, Any] = {"eligible": 4947, "described": 4947, "compared": 4947, "smallest": 10, "passing": False}
    assert any(
        "1,000,000,000 users were asked for, and only 4,947" in one for one in caveats(**settings, sizes=[10**9])
    )
    assert not any("asked for" in one for one in caveats(**settings, sizes=[4947]))


def test_with_a_filter_it_is_the_seeds_who_pass_that_have_something_in_common() -> None:
    assert "Share of the seeds (first bar)" in render(insight_of())
    assert "Share of the seeds that pass the filter (first bar)" in render(insight_of(filter="age > 3"))


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write_page(insight_of(campaign="old"), path)
    assert path.read_text(encoding="utf-8") == render(insight_of(campaign="old"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_page(insight_of(campaign="new"), path)
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    assert "old" in path.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------- elements and axes


@given(st.text(), st.text())
def test_text_is_escaped_and_markup_is_not(text: str, value: str) -> None:
    page = Page(element("p", text, element("b", text), title=value))
    assert page.tags == {"p", "b"}
    assert page.attributes == [("title", visible(value))]


def test_elements() -> None:
    assert (
        element("line", x1=1.0, stroke_width=2.5, class_="a", id=None)
        == '<line x1="1" stroke-width="2.5" class="a"></line>'
    )
    assert element("br") == "<br>"
    assert join("a<", None, Markup("<b>")) == "a&lt;<b>"


def test_an_axis_has_round_ticks_within_its_ends() -> None:
    wide = Axis("users", 10, 2_000_000, str, log=True)
    assert wide.ticks() == [10, 100, 1000, 10_000, 100_000, 1_000_000]
    narrow = Axis("users", 110, 2500, str, log=True)
    assert narrow.ticks() == [200, 500, 1000, 2000]
    assert (narrow.place(110), narrow.place(2500), narrow.place(1), narrow.place(10**9)) == (0, 1, 0, 1)
    share = Axis("share", 0, 1, str)
    assert share.ticks() == [0, 0.25, 0.5, 0.75, 1]
    assert share.place(0.25) == 0.25
