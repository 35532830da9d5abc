"""An `Insight` as one HTML page that needs nothing else: no scripts, no fonts, no network. For those who choose.

Knows the insight's plain data only; torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lookalike.files import write_whole
from lookalike.retrieval.estimate import Estimate
from lookalike.retrieval.insight import Insight
from lookalike.retrieval.insight_style import STYLE
from lookalike.retrieval.markup import Markup, Part, element, join
from lookalike.retrieval.plots import Axis, Band, Line, Mark, chart, pair_of_bars
from lookalike.retrieval.recall_curve import Point
from lookalike.retrieval.telling import Telling

# Nothing may be loaded, or run, even if an element should slip through.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_page(insight: Insight, path: Path) -> None:
    """Write the page, whole or not at all; a file that is there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(insight).encode(errors="replace"))


def render(insight: Insight) -> str:
    """The page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"Insight: {insight.campaign}"),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element(
            "main",
            _verdict(insight),
            _sizes(insight),
            _curves(insight),
            _telling(insight),
            _seeds(insight),
            _fine_tuning(insight),
            _caveats(insight),
            _details(insight),
        ),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _verdict(insight: Insight) -> Markup:
    verdict = insight.seed_quality.verdict
    return element(
        "header",
        element("p", "Before the audience is chosen", class_="above"),
        element("h1", insight.campaign),
        element("p", insight.headline, class_=f"headline {verdict}"),
        *(element("p", reason.text, class_="short") for reason in insight.seed_quality.reasons),
    )


def _sizes(insight: Insight) -> Markup:
    # What the curve chose has the interval of all sizes at once, what was asked for that of one size.
    rows = [
        (one.name.capitalize(), one.point, one.point.recall_band, one.point.lift_band) for one in insight.suggestions
    ]
    rows += [
        ("Asked for: all there are" if p.k == insight.eligible_users else "Asked for", p, p.recall, p.lift)
        for p in insight.asked
    ]
    if not rows:
        text = "None is suggested: no size of audience is sure to do better than users drawn at random."
        return _section("How large?", element("p", text))
    head = (
        "",
        "Users",
        "Of the eligible",
        "Finds, of people like the seeds",
        "Times chance",
        "Last user, times anybody",
    )
    body = [
        (name, f"{p.k:,}", f"{p.share:.2%}", _percent(recall), _times(lift), f"{p.marginal_lift:.2g}")
        for name, p, recall, lift in rows
    ]
    explained = ", ".join(f"{one.name} while that is {one.marginal_lift:g} or more" for one in insight.suggestions)
    text = (
        "The last user of an audience is so many times as likely as anybody in the pool to be like a seed"
        + (f". A suggested audience grows for so long: {explained}." if explained else ".")
        + " Below 1, users drawn by lot would do better. In brackets: 95% intervals, of all sizes at once for the "
        "suggested ones, which the same seeds chose, and of the one size for those asked for."
    )
    return _section("How large?", _table(head, body), element("p", text, class_="note"))


def _curves(insight: Insight) -> Markup:
    curve = insight.curve
    xs = [point.k for point in curve]
    users = Axis("Size of the audience, users", xs[0], max(xs[-1], xs[0] + 1), _short, log=True)
    share = Axis("Share of hidden seeds found", 0, 1, "{:.0%}".format)
    similar = Axis("Similarity", 0, 1, "{:.0%}".format)
    marks = [Mark(one.point.k, one.name) for one in insight.suggestions]
    recall = chart(
        "Share of hidden seeds that an audience finds, by its size",
        users,
        share,
        xs,
        bands=_bands([p.recall_band for p in curve], [p.recall for p in curve]),
        lines=(
            Line([p.share for p in curve], "chance", "chance"),
            Line([p.general_recall for p in curve], "general", "the general model"),
            Line([p.recall.value for p in curve], "ours", "this campaign's model"),
        ),
        marks=marks,
    )
    lift = chart(
        "How many times as many seeds as chance an audience finds, by its size",
        users,
        _lift_axis(curve),
        xs,
        bands=_bands([p.lift_band for p in curve], [p.lift for p in curve]),
        lines=(
            Line([1.0 for _ in curve], "chance", "chance"),
            Line([p.marginal_lift for p in curve], "general", "the last user in it"),
            Line([p.lift.value for p in curve], "ours", "the whole audience"),
        ),
        marks=marks,
    )
    reach = chart(
        "How similar the last user is, by the size of the audience",
        users,
        similar,
        xs,
        bands=_bands([_rest(p.recall_band) for p in curve], [_rest(p.recall) for p in curve]),
        lines=(Line([1 - p.recall.value for p in curve], "ours", "seeds that the last user is more similar than"),),
        marks=marks,
    )
    head = ("More similar than", "Users", "95% interval")
    rows = [
        (f"{one.similarity:.0%} of the seeds", f"{one.users:,}", f"{one.low:,} to {one.high:,}")
        for one in insight.reach
    ]
    return join(
        _section(
            "What does an audience find?",
            _figure(
                recall,
                f"{insight.held_out_seeds:,} seeds were hidden from the models that ranked them. Shaded: where the "
                "curve is at one size (dark) and at all sizes at once (light), with 95%.",
            ),
            _figure(
                lift, "A small audience is purer, a large one finds more. At 1 users might as well be drawn by lot."
            ),
        ),
        _section(
            "Reach against similarity",
            _figure(
                reach,
                "A user's similarity is the share of hidden seeds who look less like a seed than he does: at 50%, "
                "half of your own seeds are less typical than the last user.",
            ),
            _table(head, rows),
        ),
    )


def _bands(wide: list[Estimate], narrow: list[Estimate]) -> tuple[Band, Band]:
    return (
        Band([one.low for one in wide], [one.high for one in wide], "band wide"),
        Band([one.low for one in narrow], [one.high for one in narrow], "band"),
    )


def _rest(share: Estimate) -> Estimate:
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low)


def _lift_axis(curve: tuple[Point, ...]) -> Axis:
    """As high as the curve is sure to reach; the band may leave it at the top, where a size is tiny."""
    most = max([2.0, *(p.lift.value for p in curve), *(p.lift.low for p in curve)])
    return Axis("Times as many as chance", 0.5, 1.5 * most, "{:g}".format, log=True)


def _telling(insight: Insight) -> Markup:
    which = "the seeds that pass the filter" if insight.filter else "the seeds"
    if not insight.telling:
        text = f"Of no single value of a feature is it sure that {which} have it more, or less, often than others."
        return _section("What the seeds have in common", element("p", text))
    more = [one for one in insight.telling if one.z > 0]
    less = [one for one in insight.telling if one.z < 0]
    return _section(
        "What the seeds have in common",
        element(
            "p",
            f"Share of {which} (first bar) and of {insight.described_users:,} others (second), most telling first.",
        ),
        _bars("More often than others", more),
        _bars("Less often than others", less),
    )


def _bars(title: str, found: list[Telling]) -> Markup | None:
    if not found:
        return None
    most = max(max(one.seed_share, one.pool_share) for one in found)
    rows = [
        (
            one.name,
            pair_of_bars(one.seed_share, one.pool_share, most),
            f"{one.seed_share:.1%}",
            f"{one.pool_share:.1%}",
            "nobody else" if one.ratio is None else f"{one.ratio:.3g}",
        )
        for one in found
    ]
    return join(element("h3", title), _table(("Feature", "", "Seeds", "Others", "Ratio"), rows))


def _seeds(insight: Insight) -> Markup:
    quality, match = insight.seed_quality, insight.seeds
    words = {"good": "Good", "usable": "Usable", "poor": "Poor"}[quality.verdict]
    lines: list[Part] = [
        element(
            "p",
            element("strong", words, class_=quality.verdict),
            f": {match.given:,} ids were given, {match.matched:,} users of the pool matched, {match.duplicates:,} came "
            f"again, {match.not_in_pool:,} are not in the pool.",
        )
    ]
    if not quality.reasons:
        lines.append(element("p", "No fault was found with them."))
    lines += [
        element("p", reason.text, element("br"), element("em", f"What to do: {reason.fix}"), class_="reason")
        for reason in quality.reasons
    ]
    share = quality.random_share
    lines.append(
        element(
            "p",
            f"At most {share.value:.0%} of the hidden seeds ({share.low:.0%} to {share.high:.0%}) rank like users "
            "drawn at random.",
        )
    )
    return _section("The seeds", *lines)


def _fine_tuning(insight: Insight) -> Markup:
    tuning = insight.fine_tuning
    head = ("", "AUC on hidden seeds", "95% interval")
    rows = [
        (name, f"{auc.value:.3f}", f"{auc.low:.3f} to {auc.high:.3f}")
        for name, auc in (
            ("This campaign's model", tuning.auc),
            ("The general model", tuning.general_auc),
            ("Difference", tuning.difference),
        )
    ]
    note = "AUC is the chance that a hidden seed ranks before a random user: 0.5 is chance, 1 is perfect."
    return _section(
        "Did fitting the model to this campaign help?",
        element("p", tuning.text),
        _table(head, rows),
        element("p", note, class_="note"),
    )


def _caveats(insight: Insight) -> Markup:
    return _section("What these figures are not", element("ul", *(element("li", text) for text in insight.caveats)))


def _details(insight: Insight) -> Markup:
    head = ("Users", "Finds", "At all sizes", "Lift", "Last user, times anybody", "General model finds")
    rows = [
        (
            f"{p.k:,}",
            _percent(p.recall),
            f"{p.recall_band.low:.0%} to {p.recall_band.high:.0%}",
            _times(p.lift),
            f"{p.marginal_lift:.2f}",
            f"{p.general_recall:.1%}",
        )
        for p in insight.curve
    ]
    features = ", ".join(f"{name} = {value}" for name, value in insight.features.items()) or "none"
    facts = [
        ("Campaign's features", features),
        ("Filter", insight.filter or "none"),
        ("Excluded", f"{insight.exclusions.matched:,} users"),
        ("Eligible users", f"{insight.eligible_users:,} of {insight.pool_users:,}"),
        ("Hidden seeds were compared with", f"{insight.compared_users:,} users"),
        ("Models with hidden seeds", f"{insight.folds}"),
        ("Pool", f"{insight.pool} ({insight.pool_sha256[:12]})"),
        ("General model", insight.checkpoint_sha256[:12]),
        ("Seeds", insight.seeds_sha256[:12]),
        ("Made", f"{insight.created}, Lookalike {insight.code_version}, random seed {insight.random_seed}"),
    ]
    return join(
        element("details", element("summary", "All sizes"), _table(head, rows)),
        element("details", element("summary", "How this was made"), _table(("", ""), facts)),
    )


def _section(title: str, *parts: Part) -> Markup:
    return element("section", element("h2", title), *parts)


def _figure(drawing: Markup, caption: str) -> Markup:
    return element("figure", drawing, element("figcaption", caption))


def _table(head: tuple[str, ...], rows: Sequence[Sequence[Part]]) -> Markup:
    titles = element("thead", element("tr", *(element("th", title) for title in head))) if any(head) else None
    body = element("tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows))
    return element("div", element("table", titles, body), class_="table")


def _percent(share: Estimate) -> str:
    return f"{share.value:.1%} ({share.low:.0%} to {share.high:.0%})"


def _times(lift: Estimate) -> str:
    return f"{lift.value:.1f} ({lift.low:.1f} to {lift.high:.1f})"


def _short(users: float) -> str:
    for limit, letter in ((1e9, "B"), (1e6, "M")):
        if users >= limit:
            return f"{users / limit:g}{letter}"
    return f"{users:,.0f}"
