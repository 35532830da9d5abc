# The C++ core (csrc/bindings). Nothing is converted: an argument of another type is an error.

import numpy as np
import numpy.typing as npt

__version__: str

def simd_level() -> str: ...
def simd_levels() -> list[str]: ...
def set_simd_level(level: str | None) -> None: ...

class Scorer:
    def __init__(
        self,
        fields: list[tuple[bool, int]],
        shape: dict[str, object],
        weights: dict[str, npt.NDArray[np.float32]],
        deeper_weights: list[npt.NDArray[np.float32]],
        deeper_biases: list[npt.NDArray[np.float32]],
        fold_bytes: int,
    ) -> None: ...
    def score(
        self,
        users: int,
        columns: list[tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int64] | None]],
        threads: int,
    ) -> npt.NDArray[np.float32]: ...
    def score_into(
        self,
        top: TopK,
        users: int,
        columns: list[tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int64] | None]],
        first_row: int,
        threads: int,
    ) -> None: ...
    @property
    def tables(self) -> list[int]: ...
    @property
    def table_bytes(self) -> int: ...

class TopK:
    def __init__(
        self,
        k: int,
        num_rows: int | None,
        skip: npt.NDArray[np.uint8] | None,
        skip_nan: bool,
        distribution: bool,
    ) -> None: ...
    @staticmethod
    def load(
        partial: bytes | bytearray | memoryview,
        num_rows: int | None,
        skip: npt.NDArray[np.uint8] | None,
        skip_nan: bool,
        distribution: bool,
    ) -> TopK: ...
    def save(self) -> bytes: ...
    def distribution(self) -> tuple[npt.NDArray[np.float32], int]: ...
    def push(self, scores: npt.NDArray[np.float32], first_row: int, threads: int) -> None: ...
    def merge(self, other: TopK) -> None: ...
    def finish(
        self,
        sorted: bool,  # noqa: A002
        threads: int,
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]: ...
    def cutoff(self) -> tuple[float, int, int] | None: ...
    @property
    def k(self) -> int: ...
    @property
    def threshold(self) -> float: ...
    @property
    def rows_seen(self) -> int: ...
    @property
    def rows_skipped(self) -> int: ...
    @property
    def nan_count(self) -> int: ...
