"""Lines that cannot be read: counted by kind, the first of each kept to show, too many of them an error.

Knows lines of files; knows nothing of what they should say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookalike.dataset.text_blocks import Block, Ints, excerpt
from lookalike.errors import DataCorrupted

# Enough to see whether a kind has one cause.
EXAMPLES = 5


@dataclass(frozen=True)
class Example:
    """A malformed line: its number, from 1, and the part that is wrong."""

    line: int
    text: str


@dataclass(frozen=True)
class Fault:
    """One kind of malformed lines. `kind` completes "the line has ..."; `examples` are the first ones met."""

    kind: str
    lines: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class FileReport:
    """What was read of one file: its lines, header excluded, and those left out; a line has one fault, the first."""

    file: str
    lines: int
    faults: tuple[Fault, ...]

    @property
    def malformed(self) -> int:
        """Lines left out."""
        return sum(fault.lines for fault in self.faults)


class FaultLog:
    """The faults of one file as it is read. More than a share `most` of its lines is an error."""

    def __init__(self, path: Path, most: float) -> None:
        self._path = path
        self._most = most
        self._lines = 0
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[Example]] = {}

    def record(self, kind: str, lines: Ints, texts: Sequence[str]) -> None:
        """Note lines of one kind by their numbers, ascending; `texts` are what to show of the first `EXAMPLES`."""
        if not len(lines):
            return
        self._counts[kind] = self._counts.get(kind, 0) + len(lines)
        shown = self._examples.setdefault(kind, [])
        room = EXAMPLES - len(shown)
        shown += [Example(line, text) for line, text in zip(lines[:room].tolist(), texts, strict=False)]

    def read(self, lines: int) -> None:
        """Note that so many more lines were read.

        Raises:
            DataCorrupted: most lines so far are malformed, so that the rest need not be waited for.
        """
        self._lines += lines
        if sum(self._counts.values()) > max(self._most, 0.5) * self._lines:
            raise self._error()

    def report(self) -> FileReport:
        """What was noted.

        Raises:
            DataCorrupted: too many lines are malformed; the message names the file, a line, what is wrong and the fix.
        """
        report = self._report()
        if report.malformed > self._most * report.lines:
            raise self._error()
        return report

    def _report(self) -> FileReport:
        faults = (Fault(kind, count, tuple(self._examples[kind])) for kind, count in self._counts.items())
        return FileReport(self._path.name, self._lines, tuple(sorted(faults, key=lambda fault: -fault.lines)))

    def _error(self) -> DataCorrupted:
        report = self._report()
        worst = report.faults[0]
        example = worst.examples[0]
        return DataCorrupted(
            f"{report.malformed:,} of the first {report.lines:,} lines of {self._path} are malformed, more than "
            f"{self._most:.2%}. {worst.lines:,} of them have {worst.kind}, first line {example.line:,}: "
            f"{example.text!r}. Get the file anew, mend those lines, or allow a larger share (max_malformed)",
            field=self._path.name,
        )


class BlockFaults:
    """The faults of one block, gathered until it is done. `bad` `[lines]` is true for lines that have one."""

    def __init__(self, log: FaultLog, block: Block) -> None:
        self._log = log
        self._block = block
        self._found: dict[str, list[Ints]] = {}
        self.bad = np.zeros(block.num_lines, np.bool_)

    def add(self, kind: str, lines: Ints, starts: Ints | None = None, ends: Ints | None = None) -> None:
        """Note lines of the block, by number from 0, unless they have a fault already.

        Args:
            lines: `[faults]`, ascending; a line may come twice and counts once.
            starts, ends: `[faults]`, the part to show; default: the whole line.
        """
        if not len(lines):
            return
        if starts is None or ends is None:
            starts, ends = self._block.line_starts[lines], self._block.line_ends[lines]
        found, first = np.unique(lines, return_index=True)
        new = ~self.bad[found]
        self.bad[found] = True
        if new.any():
            self._found.setdefault(kind, []).append(np.stack([found, starts[first], ends[first]])[:, new])

    def finish(self) -> None:
        """Hand them to the log.

        Raises:
            DataCorrupted: as `FaultLog.read`.
        """
        for kind, parts in self._found.items():
            found = np.concatenate(parts, axis=1)
            lines, starts, ends = found[:, np.argsort(found[0])]
            shown = zip(starts[:EXAMPLES].tolist(), ends[:EXAMPLES].tolist(), strict=True)
            texts = [excerpt(self._block.text, start, end) for start, end in shown]
            self._log.record(kind, self._block.first_line + lines, texts)
        self._log.read(self._block.num_lines)
