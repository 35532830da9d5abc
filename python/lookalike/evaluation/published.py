"""Figures of the paper (Zhu et al., KDD 2021, doi:10.1145/3447548.3467093), to be printed beside ours on its data.

Knows numbers, and the contest's fields by which its data are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lookalike.dataset.tencent2018_files import AD_FIELDS

TENCENT = "tencent2018"


@dataclass(frozen=True)
class PublishedRow:
    """Of campaigns with at most T seeds, and of those with more; None: not given."""

    few: tuple[float, float, float | None]  # AUC, P@5%, R@5%
    many: tuple[float, float, float | None]


_MLP_EMB = PublishedRow((0.6624, 0.1881, 0.1930), (0.7060, 0.2118, 0.2224))
_SHARED_BOTTOM = PublishedRow((0.6936, 0.2198, 0.2258), (0.7089, 0.2144, 0.2250))
_MMOE = PublishedRow((0.6977, 0.2224, 0.2280), (0.7088, 0.2150, 0.2257))

# Table 2 and, of the ablations, Table 4: Tencent, means over five runs, T = 4,000. Where the paper does not say which
# of two variants it means, both have its row.
TENCENT_FIGURES: Mapping[str, PublishedRow] = {
    "lr": PublishedRow((0.5942, 0.1015, 0.1044), (0.6824, 0.1910, 0.2006)),
    "mlp": PublishedRow((0.5928, 0.1048, 0.1081), (0.6910, 0.1797, 0.1888)),
    "mlp-emb-frozen": _MLP_EMB,
    "mlp-emb-tuned": _MLP_EMB,
    "pinterest": PublishedRow((0.6245, 0.1635, 0.1665), (0.6802, 0.1687, 0.1770)),
    "hubble": PublishedRow((0.6797, 0.2056, 0.2110), (0.7085, 0.2171, 0.2279)),
    "mlp-pre": PublishedRow((0.7117, 0.2325, 0.2384), (0.7082, 0.2136, 0.2242)),
    "shared-bottom-frozen": _SHARED_BOTTOM,
    "shared-bottom-tuned": _SHARED_BOTTOM,
    "mmoe": _MMOE,
    "mmoe-random": _MMOE,
    "metaheac": PublishedRow((0.7239, 0.2489, 0.2554), (0.7142, 0.2244, 0.2356)),
    "metaheac-no-hc": PublishedRow((0.7199, 0.2472, None), (0.7115, 0.2220, None)),
    "metaheac-no-he": PublishedRow((0.7181, 0.2419, None), (0.7112, 0.2193, None)),
    "metaheac-no-meta": PublishedRow((0.7173, 0.2431, None), (0.7107, 0.2180, None)),
}

FIGURES: Mapping[str, Mapping[str, PublishedRow]] = {TENCENT: TENCENT_FIGURES}


def published_as(fields: Mapping[str, Sequence[object]]) -> str:
    """Which publication's data these campaigns are, by their features' columns; "" if none's.

    Tencent's are the six fields of its contest of 2018, each value a number; simulated ones have words.
    """
    values = (value for column in fields.values() for value in column)
    is_tencent = set(fields) == set(AD_FIELDS) and all(value is None or str(value).isdecimal() for value in values)
    return TENCENT if is_tencent else ""
