"""What experts and critics make of campaigns they were not trained on (the paper's Figure 3c and 3d).

Knows the contract of systems of experts and critics. Categories of campaigns are nothing it uses.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.manifold import TSNE

from lookalike.errors import InternalError, InvalidInput
from lookalike.evaluation.observations import Mixtures, SeenBy, rounded
from lookalike.evaluation.studies.trained import RUN, Trained
from lookalike.evaluation.systems.registry import OURS
from lookalike.evaluation.systems.system import Mixed

SYSTEMS = ("metaheac", OURS)
# Neighbours that a point has in effect; the method's usual value, and less where there are few campaigns.
PERPLEXITY = 30.0
FEWEST = 5  # campaigns; fewer lie nowhere in particular
SETTINGS = {"perplexity": PERPLEXITY}

Floats = npt.NDArray[np.floating]


def measure(trained: Trained) -> Mixtures:
    """Every test campaign as the mean over its seeds, by the general models.

    Raises:
        InvalidInput: fewer than `FEWEST` campaigns. InternalError: a system has no experts. Cancelled. Whatever else
            systems raise.
    """
    campaigns = trained.exam.campaigns
    if len(campaigns) < FEWEST:
        raise InvalidInput(
            f"{len(campaigns)} test campaigns are too few to be drawn as a map: give {FEWEST} or more", field="limit"
        )
    return Mixtures(
        origin=trained.bench.origin(),
        settings=SETTINGS,
        campaigns=tuple(campaign.campaign_id for campaign in campaigns),
        systems=tuple(_seen_by(trained, key) for key in SYSTEMS),
    )


def _seen_by(trained: Trained, key: str) -> SeenBy:
    system, _ = trained.get(key)
    if not isinstance(system, Mixed):
        raise InternalError(f"{system.title} has no experts and critics")
    campaigns = trained.exam.campaigns
    tick = trained.tick(f"experts and critics, {key}")
    expertise, critics = [], []
    for number, campaign in enumerate(campaigns):
        tick(number, len(campaigns))
        seen = system.mixture(campaign, campaign.seeds.interested)
        expertise.append(seen.expertise.mean(0, dtype=np.float64))
        critics.append(seen.critics.mean(0, dtype=np.float64))
    tick(len(campaigns), len(campaigns))
    points = in_the_plane(np.array(expertise))
    (first, second) = points.T.tolist()
    return SeenBy(
        key=key,
        title=system.title,
        expertise=rounded(np.array(expertise)),
        points=tuple(zip(first, second, strict=True)),
        critics=rounded(np.array(critics)),
    )


def in_the_plane(vectors: Floats) -> Floats:
    """t-SNE (van der Maaten and Hinton 2008) of `[campaigns, h]`: `[campaigns, 2]`."""
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    points: Floats = TSNE(perplexity=perplexity, init="pca", random_state=RUN).fit_transform(vectors)
    return np.round(points.astype(np.float64), 3)
