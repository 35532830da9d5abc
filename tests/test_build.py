"""What others build from this repository: a wheel that works by itself, and a CMake package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import cmake
import ninja
import numpy as np
import numpy.typing as npt
import pytest

import lookalike

ROOT = Path(__file__).resolve().parent.parent
CMAKE = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
GENERATED = ["lookalike/v1/audience_pb2.py", "lookalike/v1/audience_pb2_grpc.py", "lookalike/v1/audience_pb2.pyi"]


def run(*command: str, cwd: Path = ROOT) -> str:
    """Standard output of a command that must succeed; what pip and cmake say when they do not is in the failure."""
    # Nothing of the checkout may be found by accident.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["CMAKE_BUILD_PARALLEL_LEVEL"] = "2"
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_what_it_should_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    modules = {str(path.relative_to(ROOT / "python")) for path in (ROOT / "python" / "lookalike").rglob("*.py")}
    handlers = {f"lookalike_handlers/{path.name}" for path in (ROOT / "handlers").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules | handlers | set(GENERATED[:2])
    assert {"lookalike/py.typed", "lookalike/_core.pyi", *GENERATED} <= set(names)
    assert len([name for name in names if name.startswith("lookalike/_core.") and name.endswith(".so")]) == 1
    assert len([name for name in names if ".dist-info/" in name and name.endswith("LICENSE")]) == 1
    assert f"\nVersion: {lookalike.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


IN_THE_WHEEL = """
import json, sys
sys.path.insert(0, sys.argv[1])
import lookalike_handlers
from lookalike import __version__, _core
from lookalike.retrieval.topk import TopK
import lookalike.v1.audience_pb2 as generated

import numpy as np
top = TopK(1)
top.push(np.array([1, 2], np.float32), 0)
print(json.dumps({
    "files": [_core.__file__, lookalike_handlers.__file__, generated.__file__],
    "versions": [__version__, _core.__version__],
    "level": _core.simd_level(),
    "levels": _core.simd_levels(),
    "best": top.finish()[0].tolist(),
}))
"""


def test_the_installed_wheel_works_apart_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run(*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    found = json.loads(run(sys.executable, "-c", IN_THE_WHEEL, str(target), cwd=tmp_path))
    assert all(Path(file).is_relative_to(target) for file in found["files"])
    assert found["versions"] == [lookalike.__version__] * 2
    assert found["levels"][0] == "scalar"
    assert found["level"] == found["levels"][-1]
    assert found["best"] == [1]


@pytest.fixture(scope="module")
def prefix(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the CMake package is installed, from the folder in which the wheel's core was built."""
    folder = tmp_path_factory.mktemp("cmake")
    run(CMAKE, "--install", str(ROOT / "build" / f"core-{sys.implementation.cache_tag}"), "--prefix", str(folder))
    return folder


def configure(source: Path, build: Path, prefix: Path) -> list[str]:
    return [
        CMAKE,
        *("-S", str(source), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
        f"-DCMAKE_PREFIX_PATH={prefix}",
    ]


@pytest.fixture(scope="module")
def shard_server(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another CMake project's program, which found the package: examples/cpp."""
    build = tmp_path_factory.mktemp("example")
    run(*configure(ROOT / "examples" / "cpp", build, prefix))
    run(CMAKE, "--build", str(build))
    return str(build / "shard_server")


def sigmoid(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = 1 / (1 + np.exp(-values))
    return result


ROWS, K, NAN = 150_000, 1000, 77
SHARDS = {"first": slice(0, 70_001), "second": slice(70_001, ROWS), "whole": slice(0, ROWS)}


class ScoredPool(NamedTuple):
    """A pool's shards scored by the example, as partials in `folder`."""

    folder: Path
    logits: npt.NDArray[Any]  # [ROWS]; the score is their sigmoid
    skipped: npt.NDArray[np.bool_]  # [ROWS]


@pytest.fixture(scope="module")
def scored_pool(shard_server: str, tmp_path_factory: pytest.TempPathFactory) -> ScoredPool:
    folder, rng = tmp_path_factory.mktemp("pool"), np.random.default_rng(1)
    # Small multiples of 1/8: sums are exact in any order, many are equal, and their sigmoids are as different as they.
    campaign = np.array([-4, -2, -1, 1, 2, 3, 4, 4], np.float32) / 8
    vectors = rng.integers(-3, 4, (ROWS, len(campaign))).astype(np.float32)
    vectors[NAN, 0] = np.nan
    skipped = rng.random(ROWS) < 0.1
    skipped[NAN] = False
    campaign.tofile(folder / "campaign")
    np.packbits(skipped, bitorder="little").tofile(folder / "skip")
    for shard, rows in SHARDS.items():
        vectors[rows].tofile(folder / f"{shard}.vectors")
        files = ["campaign=campaign", "skip=skip", f"vectors={shard}.vectors", f"partial={shard}"]
        run(shard_server, "score", *files, f"first_row={rows.start}", f"num_rows={ROWS}", f"k={K}", cwd=folder)
    return ScoredPool(folder, vectors @ campaign, skipped)


def test_another_cmake_project_selects_over_shards_as_over_the_whole(
    shard_server: str, scored_pool: ScoredPool
) -> None:
    logits = scored_pool.logits
    merged = run(shard_server, "merge", f"num_rows={ROWS}", "first", "second", cwd=scored_pool.folder)
    for others in (["second", "first"], ["whole"]):
        assert run(shard_server, "merge", f"num_rows={ROWS}", *others, cwd=scored_pool.folder) == merged

    lines = [line.split() for line in merged.splitlines()]
    eligible = np.flatnonzero(~scored_pool.skipped & ~np.isnan(logits))
    ranked = eligible[np.lexsort((eligible, -logits[eligible]))]
    last = logits[ranked[K - 1]]
    selected = [line for line in lines if line[0] == "selected"]
    assert [int(line[1]) for line in selected] == list(range(1, K + 1))
    assert [int(line[3]) for line in selected] == ranked[:K].tolist()
    np.testing.assert_allclose([float(line[5]) for line in selected], sigmoid(logits[ranked[:K]]), rtol=1e-5)

    (cutoff,) = (line for line in lines if line[0] == "cutoff")
    np.testing.assert_allclose(float(cutoff[1]), sigmoid(last), rtol=1e-5)
    tied = [np.count_nonzero(logits[rows] == last) for rows in (ranked[:K], ranked)]
    assert tied[0] < tied[1]  # else the order of equal scores is not put to the test
    assert [int(cutoff[3]), int(cutoff[5])] == tied

    reach = [line for line in lines if line[0] == "reach"]
    ranks = [len(ranked) * tenth // 10 for tenth in range(1, 11)]
    assert [int(line[1]) for line in reach] == ranks
    # So few rows are all in the distribution: it is exact.
    np.testing.assert_allclose(
        [float(line[3]) for line in reach], sigmoid(logits[ranked[np.array(ranks) - 1]]), rtol=1e-5
    )
    assert lines[-1] == ["pushed", str(ROWS), "skipped", str(scored_pool.skipped.sum()), "nan", "1"]


def test_the_coordinator_refuses_what_is_not_the_whole_pool(shard_server: str, scored_pool: ScoredPool) -> None:
    def refusal(*arguments: str) -> str:
        command = [shard_server, "merge", *arguments]
        done = subprocess.run(command, cwd=scored_pool.folder, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    whole = (scored_pool.folder / "second").read_bytes()
    (scored_pool.folder / "truncated").write_bytes(whole[:-1000])
    message = refusal(f"num_rows={ROWS}", "first", "truncated")
    assert message.startswith(f"shard_server: truncated: the partial is truncated: it has {len(whole) - 1000} bytes")
    assert f"first: the partial is of {ROWS} rows and not {ROWS + 1}" in refusal(f"num_rows={ROWS + 1}", "first")
    assert f"a shard is missing: the partials hold 70001 of {ROWS} rows" in refusal(f"num_rows={ROWS}", "first")
    assert "absent: cannot be read" in refusal(f"num_rows={ROWS}", "first", "absent")


def test_a_project_that_wants_another_version_is_told(prefix: Path, tmp_path: Path) -> None:
    project = (
        "cmake_minimum_required(VERSION 3.21)\nproject(p LANGUAGES CXX)\nfind_package(lookalike 99 CONFIG REQUIRED)"
    )
    (tmp_path / "CMakeLists.txt").write_text(project)
    done = subprocess.run(configure(tmp_path, tmp_path / "build", prefix), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"version: {lookalike.__version__}" in done.stderr
