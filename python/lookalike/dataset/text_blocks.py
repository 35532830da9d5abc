"""Text of any size as blocks of whole lines, cut into tokens and numbers by bulk operations on bytes.

Knows lines, separators and integers; knows nothing of what a line says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lookalike.errors import DataCorrupted

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Of 0.5 to 16 MiB the fastest: what is made of a block stays near the caches, and calls cost little.
BLOCK_BYTES = 2 << 20
# What a token may have to fit 64 bits whatever its digits are.
MOST_DIGITS = 18

_UTF8_MARK = b"\xef\xbb\xbf"
# What else a file may be, by how it begins.
_OTHERS = {
    b"\x1f\x8b": "it is packed by gzip; unpack it",
    b"PK\x03": "it is packed by zip; unpack it",
    b"7z\xbc": "it is packed by 7-Zip; unpack it",
    b"\xff\xfe": "it is UTF-16; convert it to UTF-8",
    b"\xfe\xff": "it is UTF-16; convert it to UTF-8",
}

_NEWLINE = ord("\n")
_MINUS = ord("-")
_ZERO = ord("0")


@dataclass(frozen=True)
class Block:
    """Whole lines of a file.

    Attributes:
        text: `[bytes]`, UTF-8 or not, each line with its line break, a single newline.
        first_line: the first one's number, from 1.
        broken_off: whether the file ends here and its last line had no line break.
    """

    text: Bytes
    first_line: int
    broken_off: bool

    @cached_property
    def line_ends(self) -> Ints:
        """Where each line's newline is `[lines]`."""
        return np.flatnonzero(self.text == _NEWLINE)

    @property
    def num_lines(self) -> int:
        return len(self.line_ends)

    @property
    def line_starts(self) -> Ints:
        """Where each line begins `[lines]`."""
        return _starts(self.line_ends)

    def head(self) -> str:
        """The first line, without its line break."""
        return excerpt(self.text, 0, int(self.line_ends[0]), most=1000)

    def without_head(self) -> Block:
        """The lines but the first."""
        return replace(self, text=self.text[self.line_ends[0] + 1 :], first_line=self.first_line + 1)


def read_blocks(path: Path, advanced: Callable[[int], None] | None = None) -> Iterator[Block]:
    """The file's lines in order, some `BLOCK_BYTES` of them at a time; line breaks and a first mark may be Windows'.

    Args:
        advanced: told how many bytes were read whenever a block has been used; raise from it to stop.

    Raises:
        DataCorrupted: it is packed, or UTF-16, or a line is longer than `BLOCK_BYTES`.
    """
    first_line = 1
    rest = b""
    with path.open("rb") as file:
        while read := file.read(BLOCK_BYTES):
            text = rest + read
            if file.tell() == len(read):
                _check_kind(path, text)
                text = text.removeprefix(_UTF8_MARK)
            end = text.rfind(b"\n") + 1
            rest = text[end:]
            if len(rest) > BLOCK_BYTES:
                raise DataCorrupted(
                    f"{path} holds no line break in {BLOCK_BYTES:,} bytes after line {first_line - 1:,}: "
                    "it is no text of lines",
                    field=path.name,
                )
            if end:
                block = _block(text[:end], first_line, broken_off=False)
                yield block
                first_line += block.num_lines
            if advanced is not None:
                advanced(len(read))
    if rest:
        yield _block(rest + b"\n", first_line, broken_off=True)


def _check_kind(path: Path, start: bytes) -> None:
    fix = next((fix for magic, fix in _OTHERS.items() if start.startswith(magic)), None)
    if fix is not None:
        raise DataCorrupted(f"{path} is not the text that it should be: {fix}", field=path.name)


def _block(text: bytes, first_line: int, *, broken_off: bool) -> Block:
    return Block(np.frombuffer(text.replace(b"\r\n", b"\n"), np.uint8), first_line, broken_off)


@dataclass(frozen=True)
class Tokens:
    """What lies between separators, in order: token i is `text[starts[i]:ends[i]]`, and may be empty.

    Attributes:
        starts, ends, before: `[tokens]`; `before` is the separator before the token, a newline for the first.
    """

    text: Bytes
    starts: Ints
    ends: Ints
    before: Bytes

    @staticmethod
    def of(block: Block, separators: bytes) -> Tokens:
        """Cut at each of `separators` and at line ends."""
        text = block.text
        cut = text == _NEWLINE
        for separator in separators:
            cut |= text == separator
        ends = np.flatnonzero(cut)
        before = np.empty(len(ends), np.uint8)
        before[:1] = _NEWLINE
        before[1:] = text[ends[:-1]]
        return Tokens(text, _starts(ends), ends, before)

    @property
    def line_heads(self) -> Ints:
        """Each line's first token `[lines]`."""
        return np.flatnonzero(self.before == _NEWLINE)

    def integers(self, index: Ints, *, digits: int = MOST_DIGITS) -> tuple[Ints, Mask]:
        """The tokens named as decimal numbers `[index]`, and which of them are such, of at most `digits` digits.

        A minus may stand before the digits, nothing else. What is no number has any value.
        """
        starts, ends = self.starts[index], self.ends[index]
        negative = self.text[starts] == _MINUS
        lengths = ends - starts - negative
        good = (lengths >= 1) & (lengths <= digits)
        values = np.zeros(len(index), np.int64)
        for place in range(min(digits, int(lengths.max(initial=0)))):
            # Where a token has no such place, some other byte is read and counts nothing.
            digit = self.text[ends - (1 + place)] - np.uint8(_ZERO)
            within = lengths > place
            good &= (digit <= 9) | ~within
            values += np.where(within, digit, 0) * np.int64(10**place)
        values[negative] *= -1
        return values, good


def excerpt(text: Bytes, start: int, end: int, *, most: int = 80) -> str:
    """Some bytes as text to show, cut to `most` characters."""
    shown = text[start : min(end, start + 4 * most)].tobytes().decode(errors="replace")
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def _starts(ends: Ints) -> Ints:
    starts = np.empty_like(ends)
    starts[:1] = 0
    starts[1:] = ends[:-1] + 1
    return starts
