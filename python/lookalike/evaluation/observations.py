"""What the studies behind the figures found, as plain data, and the folder it is kept in.

Knows files and numbers; knows nothing of how they were found or are drawn. Numbers are rounded: a figure shows fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from lookalike.dataset.layout import CampaignId
from lookalike.evaluation.results import STRICT, Origin, dump, read
from lookalike.files import write_whole
from lookalike.retrieval.estimate import Estimate

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Where a study's findings are from, and its settings: `origin.protocol` and these say whether they are wanted."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    origin: Origin
    settings: Mapping[str, float]


_Study = TypeVar("_Study", bound=Observation)


@dataclass(frozen=True)
class Followed:
    """One system's online stage.

    Attributes:
        losses: mean training loss of each campaign at each of the steps, `[campaigns][steps]`; after its end the last.
        aucs: AUC of its later audience, the same way. Looked at only: nothing is chosen by it.
        stopped: AUC of each campaign where held-out seeds stop it: as the table has it.
        ended: the step each campaign's fit ended with; None: it went on to the last.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    key: str
    title: str
    losses: tuple[tuple[float, ...], ...]
    aucs: tuple[tuple[float, ...], ...]
    stopped: tuple[float, ...]
    ended: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Convergence(Observation):
    """Systems adapting to the same campaigns. `steps` are those that were looked at, from 0, before the first."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    campaigns: tuple[CampaignId, ...]
    steps: tuple[int, ...]
    systems: tuple[Followed, ...]


@dataclass(frozen=True)
class SeenBy:
    """Campaigns as one system sees them, each as the mean over its seeds.

    Attributes:
        expertise: mixed expertise, Eq. 6, `[campaigns][h]`.
        points: the same in the plane, by t-SNE, `[campaigns][2]`.
        critics: weights of the critics, Eq. 5, `[campaigns][m]`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    key: str
    title: str
    expertise: tuple[tuple[float, ...], ...]
    points: tuple[tuple[float, float], ...]
    critics: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Mixtures(Observation):
    """Campaigns that no system was trained on, as the general models see them."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    campaigns: tuple[CampaignId, ...]
    systems: tuple[SeenBy, ...]


@dataclass(frozen=True)
class Forecast:
    """What was foretold of an audience of the best `k` of the `eligible` users, and what it came to.

    Attributes:
        held_out: seeds that foretold it.
        foretold: share of the held-out seeds within the best k.
        later: users who turned out to be interested, no seed among them.
        found: share of these in the audience.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    campaign_id: CampaignId
    eligible: int
    k: int
    held_out: int
    foretold: Estimate
    later: int
    found: Estimate


@dataclass(frozen=True, kw_only=True)
class Calibration(Observation):
    """Forecasts for audiences of a `share` of the eligible users; `left_out`: campaigns of too few seeds."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    share: float
    forecasts: tuple[Forecast, ...]
    left_out: int


class Observations:
    """`NAME.json` for each study, in one folder; every file appears whole."""

    def __init__(self, path: Path, protocol: str) -> None:
        """`protocol`: the digest of the identity that all of them are to have."""
        self.path = path
        self._protocol = protocol

    def kept(self, name: str, kind: type[_Study], settings: Mapping[str, float]) -> _Study | None:
        """What was found under the same protocol with the same settings.

        Raises:
            DataCorrupted: the file is damaged.
        """
        file = self.path / f"{name}.json"
        if not file.is_file():
            return None
        found = read(file, kind)
        same = found.origin.protocol == self._protocol and dict(found.settings) == dict(settings)
        return found if same else None

    def keep(self, name: str, found: _Study) -> _Study:
        """Write it in place of what there was; returns it."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / f"{name}.json", dump(type(found), found))
        return found


def rounded(values: Floats) -> tuple[tuple[float, ...], ...]:
    """A table of numbers to six digits behind the point, as files have them."""
    return tuple(tuple(row) for row in np.round(np.asarray(values, np.float64), 6).tolist())
