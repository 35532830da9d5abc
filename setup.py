"""The parts of the build that pyproject.toml cannot say: cmake builds the C++ core, protoc writes the protos' modules.

Wheels hold both; an editable install puts both beside the sources. The C++ build folder is kept, so that building again
compiles what changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cmake
import ninja
import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildModules(build_py):
    """Copies the Python files and generates the protos' ones."""

    def run(self) -> None:
        output = ROOT / "python"
        if not self.editable_mode:
            output = Path(self.build_lib).resolve()
            # setuptools would ship what an earlier build left here and the sources no longer have.
            shutil.rmtree(output, ignore_errors=True)
        subprocess.run([sys.executable, str(ROOT / "protos" / "generate.py"), "--output", str(output)], check=True)
        super().run()


class BuildCore(build_ext):
    """Builds the extension by CMakeLists.txt."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"core-{sys.implementation.cache_tag}"
        cmake_program = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
        subprocess.run(
            [
                cmake_program,
                *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
                f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
                "-DCMAKE_BUILD_TYPE=Release",
                "-DLOOKALIKE_BUILD_TESTS=OFF",
                "-DLOOKALIKE_BUILD_PYTHON=ON",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            ],
            check=True,
        )
        jobs = str(self.parallel or os.cpu_count() or 1)
        subprocess.run([cmake_program, "--build", str(build), "--target", "_core", "--parallel", jobs], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build / "csrc" / "bindings" / target.name, target)


setup(
    # lookalike.v1 and lookalike.runtime.v1, which hold nothing but generated modules, are not listed: BuildModules
    # writes them where they belong.
    packages=[*find_packages("python"), "lookalike_handlers"],
    ext_modules=[Extension("lookalike._core", [])],
    cmdclass={"build_py": BuildModules, "build_ext": BuildCore},
)
