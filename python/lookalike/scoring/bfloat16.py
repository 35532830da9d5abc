"""A customised model in half precision, for GPUs: narrow ids go up through pinned memory, few scores come back.

Runs on a CPU too, where it is how it is tested. Knows the compiled model; knows nothing of pools or selection.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike import _core
from lookalike.config import ScoringConfig, available_threads
from lookalike.schema import EncodedColumns
from lookalike.scoring.compiled import (
    LARGE_BATCH,
    choose_device,
    compute_threads,
    load_compiled,
    quiet,
)

PIECES = 4
_ALIGNMENT = 8  # of a column in what is sent, so that it can be viewed as integers of any width
_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # torch computes with no wider unsigned ones


class Bfloat16Engine:
    """Scores encoded users in bfloat16; the wide part and what follows the critics stay in float32.

    Attributes:
        schema: what the users must be encoded by.
        provenance: what `compile_model` was given.
        batch_size: users a call should have; they go to the device in `PIECES`, one sent while another is scored.
    """

    name = "bfloat16"

    def __init__(self, path: Path, config: ScoringConfig | None = None) -> None:
        """Load and freeze an archive.

        Raises:
            NotFound: no such file. DataCorrupted: not one of our archives. InvalidInput: no such device.
        """
        config = config or ScoringConfig()
        self.device = choose_device(config.device)
        self.threads = config.threads or available_threads()
        self.batch_size = config.batch_size or LARGE_BATCH
        script, self.schema, self.provenance = load_compiled(path, self.device)
        wide = script.wide
        script.to(torch.bfloat16)
        script.wide = wide
        with quiet():
            self._script = torch.jit.freeze(script)
        self._single = [f.name for f in self.schema.single]
        self._multi = [f.name for f in self.schema.multi]
        self._pinned = [torch.empty(0, dtype=torch.uint8)] * 2

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
        """Probability of each user `[rows]`."""
        scores = np.empty(users.length, np.float32)
        for start, piece in self._pieces(users):
            scores[start : start + len(piece)] = piece.cpu().numpy()
        return scores

    def score_into(self, top: _core.TopK, users: EncodedColumns, first_row: int) -> None:
        """Score the users, who are rows `first_row`, ... of the selection, and push those who may enter it.

        The others count as scored below everyone: the selection's distribution means nothing then.

        Raises:
            InvalidInput: a score is NaN.
        """
        for start, piece in self._pieces(users):
            top.push(_survivors(piece, top.threshold), first_row + start, self.threads)

    def _pieces(self, users: EncodedColumns) -> Iterator[tuple[int, Tensor]]:
        """First user and scores `[rows]` of each piece, on the device, when the next one has been sent."""
        waiting: tuple[int, Tensor] | None = None
        size = -(-self.batch_size // PIECES)
        for number, start in enumerate(range(0, users.length, size)):
            piece = users.slice(start, min(start + size, users.length))
            sent = start, self._launch(piece, number % 2)
            if waiting is not None:
                yield waiting
            waiting = sent
        if waiting is not None:
            yield waiting

    def _launch(self, users: EncodedColumns, slot: int) -> Tensor:
        """Send some users and start scoring them. Whoever used the slot before must have taken the scores."""
        arrays: list[npt.NDArray[np.integer]] = [users.ids[name] for name in self._single]
        for name in self._multi:
            starts = users.offsets[name]
            arrays += [users.ids[name][starts[0] : starts[-1]], starts - starts[0]]
        columns = self._send(arrays, slot)
        single = torch.empty((users.length, 0), dtype=torch.int64, device=self.device)
        if self._single:
            single = torch.stack(columns[: len(self._single)], dim=1)
        lists = columns[len(self._single) :]
        with torch.inference_mode(), compute_threads(self.threads):
            scores: Tensor = self._script(single, lists[::2], lists[1::2])
        return scores

    def _send(self, arrays: list[npt.NDArray[np.integer]], slot: int) -> list[Tensor]:
        """The arrays on the device, as int64: sent as narrow as they are, in one piece, and widened there."""
        places: list[slice] = []
        end = 0
        for array in arrays:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + array.nbytes
            places.append(slice(start, end))
        if len(self._pinned[slot]) < end:
            self._pinned[slot] = torch.empty(end, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        staged = self._pinned[slot].numpy()
        for array, place in zip(arrays, places, strict=True):
            staged[place] = np.ascontiguousarray(array).view(np.uint8)
        sent = self._pinned[slot][:end].to(self.device, non_blocking=True)
        return [_widened(sent[place], array.itemsize) for array, place in zip(arrays, places, strict=True)]


def _widened(column: Tensor, width: int) -> Tensor:
    """Bytes of unsigned integers, or of int64, as int64."""
    numbers = column.view(_SIGNED[width]).to(torch.int64)
    return numbers & (2 ** (8 * width) - 1) if width in (2, 4) else numbers


def _survivors(scores: Tensor, threshold: float) -> npt.NDArray[np.float32]:
    """The scores that are not below the threshold; -inf for the others, which stay on the device."""
    if threshold == -np.inf:
        every: npt.NDArray[np.float32] = scores.cpu().numpy()
        return every
    places = (~(scores < threshold)).nonzero().squeeze(1)  # NaN is to be seen
    kept = np.full(len(scores), -np.inf, np.float32)
    kept[places.cpu().numpy()] = scores[places].cpu().numpy()
    return kept
