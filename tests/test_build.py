"""What others build from this repository: a wheel that works by itself, and a CMake package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cmake
import ninja
import pytest

import lookalike

ROOT = Path(__file__).resolve().parent.parent
CMAKE = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
GENERATED = ["lookalike/v1/audience_pb2.py", "lookalike/v1/audience_pb2_grpc.py", "lookalike/v1/audience_pb2.pyi"]


def run(*command: str, cwd: Path = ROOT, stdin: str = "") -> str:
    """Standard output of a command that must succeed; what pip and cmake say when they do not is in the failure."""
    # Nothing of the checkout may be found by accident.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["CMAKE_BUILD_PARALLEL_LEVEL"] = "2"
    done = subprocess.run(command, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, check=False)
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
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the CMake package is installed."""
    folder = tmp_path_factory.mktemp("cmake")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}"]
    run(CMAKE, "-S", str(ROOT), "-B", str(folder / "build"), *generator, "-DLOOKALIKE_BUILD_TESTS=OFF")
    run(CMAKE, "--build", str(folder / "build"))
    run(CMAKE, "--install", str(folder / "build"), "--prefix", str(folder / "prefix"))
    return folder / "prefix"


def configure(source: Path, build: Path, prefix: Path) -> list[str]:
    return [
        CMAKE,
        *("-S", str(source), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
        f"-DCMAKE_PREFIX_PATH={prefix}",
    ]


def test_another_cmake_project_finds_the_package_and_selects(prefix: Path, tmp_path: Path) -> None:
    run(*configure(ROOT / "examples" / "cpp", tmp_path, prefix))
    run(CMAKE, "--build", str(tmp_path))
    best = run(str(tmp_path / "best_users"), "3", stdin="0.5\nnan\n2\n2\n-1\n0.5\n")
    assert best.splitlines() == ["2 2", "3 2", "0 0.5"]


def test_a_project_that_wants_another_version_is_told(prefix: Path, tmp_path: Path) -> None:
    project = (
        "cmake_minimum_required(VERSION 3.21)\nproject(p LANGUAGES CXX)\nfind_package(lookalike 99 CONFIG REQUIRED)"
    )
    (tmp_path / "CMakeLists.txt").write_text(project)
    done = subprocess.run(configure(tmp_path, tmp_path / "build", prefix), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"version: {lookalike.__version__}" in done.stderr
