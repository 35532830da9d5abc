"""What this machine can do at most, measured in the plainest way: multiply-adds and bytes a second.

multiply-adds   torch's matrix product of 2,048 x 2,048, where 4,096 gives the same, in float32 and bfloat16
bytes           numpy's maximum of an array, on every thread at once
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import torch

MATRIX: Final = 2_048
MEMORY_BYTES: Final = 256 << 20  # beyond any cache
SCAN_SECONDS: Final = 0.2


def peaks(threads: int, repeat: int = 3) -> dict[str, float | None]:
    """Of `threads` threads, medians; bfloat16 is None where the processor has no instructions for it.

    The scorer's products of 16-bit integers are as many a second as bfloat16's: an instruction of either multiplies as
    many pairs.
    """
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {
        "float32_multiply_adds_per_second": _multiply_adds(torch.float32, repeat),
        "bfloat16_multiply_adds_per_second": _multiply_adds(torch.bfloat16, repeat) if supported else None,
        "memory_bytes_per_second": read_bytes_per_second(MEMORY_BYTES, threads),
    }


def _multiply_adds(dtype: torch.dtype, repeat: int) -> float:
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    out = torch.empty(MATRIX, MATRIX, dtype=dtype)
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        torch.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return MATRIX**3 / statistics.median(seconds[1:])


def read_bytes_per_second(size: int, threads: int) -> float:
    """Each thread reading the same `size` bytes again and again, which stay in the caches if they fit."""
    array = np.zeros(max(size // 4, 1), np.float32)

    def scan() -> int:
        stop, count = time.perf_counter() + SCAN_SECONDS, 0
        while time.perf_counter() < stop:
            np.max(array)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as executor:
        start = time.perf_counter()
        counts = list(executor.map(lambda _: scan(), range(threads)))
        return sum(counts) * array.nbytes / (time.perf_counter() - start)


def bounds(
    peak: dict[str, float | None], work: dict[str, float], table_bytes_per_second: float
) -> dict[str, dict[str, Any]]:
    """Users a second that the peaks allow, and what bounds them.

    `float32`: all of the model's multiply-adds as matrix products, unfolded. `scorer`: what it has left of them, or its
    reads of tables at the speed of a scan of as many bytes; additions of table rows are not counted.
    """
    single = peak["float32_multiply_adds_per_second"]
    assert single is not None
    half = peak["bfloat16_multiply_adds_per_second"] or single
    scorer = {
        "multiply-adds": half / work["scorer_multiply_adds"],
        "table bytes": table_bytes_per_second / work["scorer_table_bytes"],
    }
    by = min(scorer, key=lambda name: scorer[name])
    return {
        "float32": {"users_per_second": single / work["model_multiply_adds"], "by": "multiply-adds"},
        "scorer": {"users_per_second": scorer[by], "by": by},
    }
