"""Whether seeds are fit to be expanded, with reasons and what to do; and whether customising the model helped.

Pure functions of counts and ranks; they know nothing of models or pools. Every limit is a policy, with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal, TypeAlias

import numpy as np

from lookalike.retrieval.estimate import Estimate, Floats, mean_of, share_of
from lookalike.retrieval.placements import UsersVariance
from lookalike.retrieval.receipt import SeedMatch

Verdict: TypeAlias = Literal["good", "usable", "poor"]
Severity: TypeAlias = Literal["note", "usable", "poor"]
Outcome: TypeAlias = Literal["helped", "no difference", "hurt", "not known"]

# Matched seeds. Of 100, a recall is known to 10 points; of 30 to 18, and a fifth of them, held out, is 6 people.
ENOUGH_SEEDS: Final = 100
LEAST_SEEDS: Final = 30
# Share of the given ids that the pool lacks. Some have always left; of a fifth on, who is left may be another kind of
# people; of four fifths on, the ids are more likely of another kind than the people gone.
SOME_LACKING: Final = 0.2
MOST_LACKING: Final = 0.8
# Share of the given ids that came before. They count once and do no harm; from here on the list is not what it seems.
MANY_DUPLICATES: Final = 0.05
# Lower end of the AUC on held-out seeds. 0.5 is chance, 0.55 is no use to anybody: of the best 5% it makes some 6 or 7%
# of the interested. Below 0.65 an audience finds them hardly more than twice as well as chance.
NOT_DISTINCTIVE: Final = 0.55
WEAK: Final = 0.65
# Lower end of the share of seeds that rank like random users, where it is not that the seeds are weak altogether.
# Genuine ones make it a fifth or so; more than a quarter dilutes what is learnt, more than half outweighs it.
SOME_RANDOM: Final = 0.25
MOST_RANDOM: Final = 0.5
# The best of the pool, where seeds of one kind and seeds with strangers among them differ most.
HEAD: Final = 0.05
# Fewer held-out seeds that pass a filter are too few to judge by them alone.
LEAST_ELIGIBLE: Final = 10
# Fewer users to compare held-out seeds with are too few to say whether customising helped. By 30, an AUC near chance is
# known to 10 points; in simulations (AUC 0.5 to 0.97) intervals of 95% hold in 93 of 100 cases or more from 20 users
# on, with 10 in as few as 90, with 4 in 84.
LEAST_COMPARED: Final = 30


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why seeds are not simply good.

    Attributes:
        code: stable UPPER_SNAKE identifier.
        severity: what it makes of the verdict; a note, nothing.
        value, limit: the number, and the policy it is beyond.
        text, fix: for a person.
    """

    code: str
    severity: Severity
    value: float
    limit: float
    text: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """The customised model against the general one, on the same held-out seeds and the same users.

    Attributes:
        outcome: "helped" or "hurt" if the interval of `difference` is above or below 0; "not known" if there were fewer
            than `LEAST_COMPARED` users to compare with.
        auc: chance that a held-out seed ranks before a random user, by models customised without it.
        general_auc: the same by the general model.
        difference: of the two, by pairs.
        epochs: of fine-tuning that the seeds were best served by.
        regression: whether the campaign's own regression is added to the network (adaptation.ridge).
        text: for a person.
    """

    outcome: Outcome
    auc: Estimate
    general_auc: Estimate
    difference: Estimate
    epochs: int
    regression: bool
    text: str

    @property
    def general_is_used(self) -> bool:
        """Whether nothing was customised, as the seeds were better served by the general model."""
        return self.epochs == 0 and not self.regression


@dataclass(frozen=True, kw_only=True)
class SeedQuality:
    """The verdict is that of the worst reason.

    Attributes:
        random_share: share of the seeds that rank like random users, at most: genuine ones at the bottom count as such.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...]
    random_share: Estimate


def fine_tuning(
    customised: Floats, general: Floats, variance: UsersVariance, *, epochs: int, regression: bool
) -> FineTuning:
    """Compare the ranks of the same held-out seeds `[seeds]` under the two models.

    The intervals have both sources of variance that DeLong's has: the seeds are a sample of the people like them, and
    the users whom they were compared with one of the eligible, `variance`.
    """
    # One seed more could move a mean by 1 / seeds: it is never known better, even if all seeds are ranked alike.
    least, users = 1 / len(customised), variance.users
    auc = _clipped(
        mean_of(1 - customised, least_error=least, other_variance=variance.customised, other_count=users), 0.0
    )
    general_auc = _clipped(
        mean_of(1 - general, least_error=least, other_variance=variance.general, other_count=users), 0.0
    )
    difference = _clipped(mean_of(general - customised, other_variance=variance.difference, other_count=users), -1.0)
    outcome: Outcome = "helped" if difference.low > 0 else "hurt" if difference.high < 0 else "no difference"
    if users < LEAST_COMPARED:
        outcome = "not known"
    numbers = f"AUC {auc.value:.3f}, {general_auc.value:.3f} by the general model"
    texts = {
        "helped": f"Fitting the model to this campaign helped on the hidden seeds ({numbers}).",
        "no difference": f"Fitting the model to this campaign made no sure difference on the hidden seeds ({numbers}).",
        "hurt": f"Fitting the model to this campaign did harm on the hidden seeds ({numbers}): use the general model "
        "instead, by the settings adaptation.max_epochs=0 and adaptation.ridge=0.",
        "not known": "Whether fitting the model to this campaign helped is not known: hidden seeds could be compared "
        f"with {users:,} users only.",
    }
    text = texts[outcome]
    if epochs == 0 and regression:
        text += " No epoch of it helped the network: the general one is used, with the campaign's own regression added."
    elif epochs == 0:
        text = f"Fine-tuning did not help on the hidden seeds, so the general model is used ({numbers})."
    return FineTuning(
        outcome=outcome,
        auc=auc,
        general_auc=general_auc,
        difference=difference,
        epochs=epochs,
        regression=regression,
        text=text,
    )


def _clipped(estimate: Estimate, least: float) -> Estimate:
    return Estimate(estimate.value, max(estimate.low, least), min(estimate.high, 1.0))


def random_share(ranks: Floats) -> Estimate:
    """The share of seeds that are like random users, or rather a bound of it.

    Random users are spread evenly over the ranks, genuine seeds hardly over the lower half: twice the share of seeds
    there, as Storey (2002) estimates the share of true null hypotheses.
    """
    below = share_of(int(np.count_nonzero(ranks > 0.5)), len(ranks))
    return Estimate(*(min(1.0, 2 * end) for end in (below.value, below.low, below.high)))


def is_mixed(ranks: Floats) -> bool:
    """Whether more seeds are at the head than seeds of one kind would have there, who have so many in the lower half.

    Seeds of one kind: scores as normal as the pool's, shifted. Strangers fill the lower half and leave the head of the
    others as it is.
    """
    normal = NormalDist()
    tail = min(max(float(np.mean(ranks > 0.5)), 1 / len(ranks)), 0.5)
    expected = normal.cdf(-normal.inv_cdf(tail) + normal.inv_cdf(HEAD))
    return share_of(int(np.count_nonzero(ranks <= HEAD)), len(ranks)).low > expected


def judge(
    match: SeedMatch,
    ranks: Floats,
    tuning: FineTuning,
    *,
    compared: int,
    passing: int | None = None,
    trained_on: bool = False,
) -> SeedQuality:
    """The verdict on seeds.

    Args:
        match: what became of the given ids.
        ranks: of the held-out seeds, under models customised without them.
        compared: users with whom the held-out seeds were compared.
        passing: held-out seeds that pass the filter, if there is one.
        trained_on: whether the general model was, or may have been, trained on this campaign.
    """
    share = random_share(ranks)
    found = [
        _number(match.matched),
        _lacking(match),
        _duplicates(match),
        _compared(compared),
        *(
            [_distinctive(tuning), _contaminated(share, tuning, mixed=is_mixed(ranks))]
            if compared >= LEAST_COMPARED
            else []
        ),
        _passing(passing, len(ranks)),
        _trained_on(trained_on),
    ]
    reasons = tuple(reason for reason in found if reason is not None)
    worst: list[Verdict] = [v for v in ("poor", "usable") if any(reason.severity == v for reason in reasons)]
    return SeedQuality(verdict=worst[0] if worst else "good", reasons=reasons, random_share=share)


def _number(matched: int) -> Reason | None:
    if matched >= ENOUGH_SEEDS:
        return None
    poor = matched < LEAST_SEEDS
    return Reason(
        code="TOO_FEW_SEEDS",
        severity="poor" if poor else "usable",
        value=matched,
        limit=LEAST_SEEDS if poor else ENOUGH_SEEDS,
        text=f"Only {matched:,} seeds are in the pool: "
        + ("too few to learn from or to measure by." if poor else "all figures here are rough."),
        fix=f"Give {ENOUGH_SEEDS} or more: a longer period, or a weaker sign of interest (a visit, not a purchase).",
    )


def _lacking(match: SeedMatch) -> Reason | None:
    share = match.not_in_pool / match.given
    if share <= SOME_LACKING:
        return None
    poor = share > MOST_LACKING
    return Reason(
        code="NOT_IN_POOL",
        severity="poor" if poor else "usable",
        value=share,
        limit=MOST_LACKING if poor else SOME_LACKING,
        text=f"{share:.0%} of the given ids ({match.not_in_pool:,} of {match.given:,}) are not in the pool.",
        fix="Check that the ids are of the pool's kind, and that the pool is recent.",
    )


def _duplicates(match: SeedMatch) -> Reason | None:
    share = match.duplicates / match.given
    if share <= MANY_DUPLICATES:
        return None
    return Reason(
        code="DUPLICATES",
        severity="note",
        value=share,
        limit=MANY_DUPLICATES,
        text=f"{share:.0%} of the given ids ({match.duplicates:,} of {match.given:,}) came more than once; "
        "each user counts once.",
        fix="Give each user once: a list of events (purchases, say) is no list of users.",
    )


def _compared(users: int) -> Reason | None:
    if users >= LEAST_COMPARED:
        return None
    return Reason(
        code="FEW_USERS_TO_COMPARE_WITH",
        severity="usable",
        value=users,
        limit=LEAST_COMPARED,
        text=f"Hidden seeds could be compared with only {users:,} users who are no seeds and whom the models did not "
        "learn from: too few to tell whether the seeds are distinctive.",
        fix="Use a larger pool, a wider filter or fewer exclusions; or give fewer seeds.",
    )


def _trained_on(trained: bool) -> Reason | None:
    if not trained:
        return None
    return Reason(
        code="GENERAL_MODEL_KNOWS_THE_CAMPAIGN",
        severity="usable",
        value=1,
        limit=0,
        text="The general model was, or may have been, trained on this very campaign: then it has seen the hidden "
        "seeds, and recall, lift and AUC are higher here than for a new campaign.",
        fix="Do not quote these figures. Try a campaign that the general model was not trained on (of the split test).",
    )


def _distinctive(tuning: FineTuning) -> Reason | None:
    auc = tuning.auc
    if auc.low >= WEAK:
        return None
    poor = auc.low < NOT_DISTINCTIVE
    shown = f"AUC {auc.value:.2f}, perhaps only {auc.low:.2f}; chance is 0.50"
    return Reason(
        code="NOT_DISTINCTIVE" if poor else "WEAKLY_DISTINCTIVE",
        severity="poor" if poor else "usable",
        value=auc.low,
        limit=NOT_DISTINCTIVE if poor else WEAK,
        text=f"The seeds cannot be told from random users for sure ({shown})."
        if poor
        else f"The seeds are only a little unlike random users ({shown}).",
        fix="Choose seeds who share one clear interest, or give the pool features that tell of it; more seeds help.",
    )


def _contaminated(share: Estimate, tuning: FineTuning, *, mixed: bool) -> Reason | None:
    # Of seeds that are not distinctive every one ranks like a random user: that is said already.
    if share.low <= SOME_RANDOM or tuning.auc.low < NOT_DISTINCTIVE or not mixed:
        return None
    poor = share.low > MOST_RANDOM
    return Reason(
        code="CONTAMINATED",
        severity="poor" if poor else "usable",
        value=share.low,
        limit=MOST_RANDOM if poor else SOME_RANDOM,
        text=f"Some seeds are clearly alike, but up to {share.value:.0%} ({share.low:.0%} to {share.high:.0%}) "
        "rank like random users.",
        fix="Look for a second source in the list (staff, tests, bots, a prize draw, a wrong join), and leave it out.",
    )


def _passing(passing: int | None, judged: int) -> Reason | None:
    if passing is None or passing >= LEAST_ELIGIBLE:
        return None
    return Reason(
        code="FEW_SEEDS_PASS_THE_FILTER",
        severity="note",
        value=passing,
        limit=LEAST_ELIGIBLE,
        text=f"Only {passing:,} hidden seeds pass the filter; all {judged:,} were ranked among the users who do.",
        fix="Check the filter, or give seeds from among the eligible.",
    )
