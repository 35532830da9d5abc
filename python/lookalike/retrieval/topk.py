"""Exact top-K of a stream of scores, by the C++ core. Knows rows and scores; nothing of users, pools or models.

The selection is a law: higher score first, equal scores by lower row, the same for every cutting into pushes, order of
pushes, number of threads, merge and instruction set. Memory, whatever the number of threads: 48 bytes a member and
64 MiB at most.
"""

from __future__ import annotations

import operator
from typing import Final, Literal, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from lookalike import _core
from lookalike.errors import InvalidInput

MAX_ROWS: Final = 2**32

NanPolicy: TypeAlias = Literal["raise", "skip"]


class Cutoff(NamedTuple):
    """Where a selection ends.

    Attributes:
        score: of the last row selected.
        tied: rows with exactly this score among all that were pushed and not skipped.
        selected: of these, in the selection: the lowest rows.
    """

    score: float
    tied: int
    selected: int


class Distribution(NamedTuple):
    """How all scores are spread, by a sample that is the same for every way of pushing.

    Of each stretch of `ceil(num_rows / 2**23)` rows one is in the sample, chosen by a hash; up to 2**23 rows, all are.

    Attributes:
        scores: float32 `[sample]`, best first.
        population: rows they stand for: pushed, not skipped, not NaN.
    """

    scores: npt.NDArray[np.float32]
    population: int

    def score_at(self, rank: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """About the scores of the rank-th best rows, 1 the best: within 0.1% of ``num_rows`` of the true rank.

        Raises:
            InvalidInput: a rank is not in 1 .. population, or no row of the sample was pushed yet.
        """
        ranks = np.asarray(rank, np.float64)
        last = self.population if len(self.scores) else 0
        if not np.all((ranks >= 1) & (ranks <= last)):  # so that NaN is refused too
            raise InvalidInput(f"ranks are from 1 to {last}", field="rank")
        # The sample cuts the population into equal parts; a score stands for the middle of its part.
        places = ((ranks - 0.5) / max(last, 1) * len(self.scores)).astype(np.int64)
        return self.scores[np.minimum(places, len(self.scores) - 1)]


class TopK:
    """The k best rows of all that are pushed. Every method may be called from many threads at once.

    -0 and +0 are equal and come back as +0. NaN is never selected. A call that raises leaves the selection as it was.

    Args:
        k: rows to select; 0, or more than there are, is fine.
        num_rows: rows there are, where known (2**32 at most); a push beyond is then an error.
        skip: packed bitmap, uint8 `[ceil(rows / 8)]`: row r is bit `r & 7` of byte `r >> 3`
            (`np.packbits(mask, bitorder="little")`). Its rows are never selected and their scores not looked at. Not
            copied: leave it unchanged while pushing.
        nan: `"raise"` refuses a push that holds a NaN outside skipped rows; `"skip"` counts it and goes on.
        distribution: keep what `distribution` needs: 32 MiB at most, and a tenth of the time. Wants `num_rows`.

    Raises:
        InvalidInput: k is negative, num_rows exceeds 2**32 or is missing, `skip` is of another type or too short, or
            `nan` unknown.
    """

    __slots__ = ("_core",)

    def __init__(
        self,
        k: int,
        *,
        num_rows: int | None = None,
        skip: npt.NDArray[np.uint8] | None = None,
        nan: NanPolicy = "raise",
        distribution: bool = False,
    ) -> None:
        # No selection holds more than MAX_ROWS: a larger k is the same selection, and fits the core's integers.
        k = min(_count(k, "k"), MAX_ROWS)
        self._core: _core.TopK = _core.TopK(k, _rows(num_rows), skip, _skips(nan), distribution)

    @classmethod
    def load(
        cls,
        partial: bytes | bytearray | memoryview,
        *,
        num_rows: int | None = None,
        skip: npt.NDArray[np.uint8] | None = None,
        nan: NanPolicy = "raise",
        distribution: bool = False,
    ) -> TopK:
        """The selection as it was when `save` gave `partial`, to be gone on with or merged.

        Args:
            partial: what `save` returned, in any process, on any machine.
            num_rows: as for the saved one, like `distribution`.
            skip: as for the saved one: the bitmap is not in `partial`.
            nan: as above.
            distribution: as above.

        Raises:
            DataCorrupted: `partial` is truncated, changed, foreign, or of a format this version does not know.
            InvalidInput: `num_rows` or `distribution` are others.
        """
        top = cls.__new__(cls)
        top._core = _core.TopK.load(partial, _rows(num_rows), skip, _skips(nan), distribution)
        return top

    def save(self) -> bytes:
        """All that is known, but for the bitmap. The same rows give the same bytes, however they were pushed."""
        return self._core.save()

    def push(self, scores: npt.NDArray[np.float32], first_row: int, threads: int = 1) -> None:
        """Offer `scores` float32 `[rows]`, C-contiguous, for rows `first_row`, `first_row + 1`, ...

        Push every row once, in any order. The GIL is released, and Ctrl-C abandons the push.

        Args:
            scores: one a row; never copied or converted.
            first_row: row of the first score.
            threads: threads that may share this one push; a small one uses fewer.

        Raises:
            InvalidInput: scores of another type or shape, a row beyond `num_rows` or the bitmap, more rows than there
                are, fewer than one thread, or NaN (the message names the first row). Nothing was taken in.
            ResourceExhausted: out of memory.
        """
        self._core.push(scores, _count(first_row, "first_row"), _threads(threads))

    def merge(self, other: TopK) -> None:
        """Take in all that `other` has seen, as if it had been pushed here; `other` stays as it is.

        Raises:
            InvalidInput: another k, the selection itself, or more rows in all than there are.
        """
        self._core.merge(other._core)

    def finish(
        self,
        sorted: bool = True,  # noqa: A002
        threads: int = 1,
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        """Rows and scores of the min(k, eligible) best: best first if `sorted`, else in no particular order.

        More may be pushed afterwards, and `finish` called again.
        """
        return self._core.finish(sorted, _threads(threads))

    @property
    def core(self) -> _core.TopK:
        """The selection itself, for scorers that push into it."""
        return self._core

    @property
    def distribution(self) -> Distribution:
        """Of what was pushed so far.

        Raises:
            InvalidInput: the selection was made without `distribution=True`.
        """
        return Distribution(*self._core.distribution())

    @property
    def cutoff(self) -> Cutoff | None:
        """The cut-off and its ties, exact for what was pushed so far; None if nothing is selected."""
        found = self._core.cutoff()
        return None if found is None else Cutoff(*found)

    @property
    def ties_at_cutoff(self) -> int:
        """Rows with the cut-off's score among all that were pushed and not skipped; 0 if nothing is selected."""
        cutoff = self.cutoff
        return 0 if cutoff is None else cutoff.tied

    @property
    def k(self) -> int:
        """Rows asked for, at most 2**32."""
        return self._core.k

    @property
    def rows_seen(self) -> int:
        """Rows pushed, skipped ones and NaN included."""
        return self._core.rows_seen

    @property
    def rows_skipped(self) -> int:
        """Of the rows pushed, those in the bitmap."""
        return self._core.rows_skipped

    @property
    def nan_count(self) -> int:
        """Of the rows pushed and not skipped, those whose score is NaN."""
        return self._core.nan_count

    @property
    def threshold(self) -> float:
        """A score below it will not be selected whatever comes; -inf while anything may. It may lag behind."""
        return self._core.threshold


def _rows(num_rows: int | None) -> int | None:
    return None if num_rows is None else _count(num_rows, "num_rows")


def _skips(nan: str) -> bool:
    if nan not in {"raise", "skip"}:
        raise InvalidInput(f"nan is 'raise' or 'skip', not {nan!r}", field="nan")
    return nan == "skip"


def _threads(threads: int) -> int:
    return min(_count(threads, "threads"), 1024)  # more than any machine gains by, and fits the core's integer


def _count(value: SupportsIndex, field: str) -> int:
    try:
        count = operator.index(value)
    except TypeError as error:
        raise InvalidInput(f"{field} must be an integer, not {type(value).__name__}", field=field) from error
    if count < 0:
        raise InvalidInput(f"{field} must not be negative, and is {count}", field=field)
    if field != "k" and count >= 2**63:
        raise InvalidInput(f"{field} is {count}; rows are numbered up to {MAX_ROWS - 1}", field=field)
    return count
