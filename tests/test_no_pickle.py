"""Nothing of ours loads what can run code as it is read: no pickle nor what is built on it, no YAML with tags."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in ("python/lookalike", "handlers", "examples", "loadtests", "chaos", "benchmarks", "protos", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
)
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
NAMES = {"torch.load", "torch.hub", "torch.package", "yaml.load", "yaml.load_all", "eval", "exec", "__import__"}
ATTRIBUTES = {"read_pickle", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
# Arguments that must be what is written here where they are given at all. NumPy's default is the safe one.
ARGUMENTS = {"allow_pickle": False, "weights_only": True}


def faults(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    known: dict[str, str] = {}  # names in this file by what they were imported from
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {name.asname: name.name for name in node.names if name.asname}
            yield from (name.name for name in node.names if name.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            if node.module.partition(".")[0] in MODULES:
                yield node.module
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            name = _dotted(node, known)
            if name in NAMES or name.rpartition(".")[2] in ATTRIBUTES:
                yield name
        elif isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if value is not ARGUMENTS[node.arg]:
                yield node.arg


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    return f"{_dotted(node.value, known)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_here_loads_what_could_run(path: Path) -> None:
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, joblib.numpy_pickle as j",
        "from cloudpickle import loads",
        "def f():\n    import shelve",
        "import torch\nmodel = torch.load(path)",
        "import torch as t\nload = t.load",
        "from torch import load\nload(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "frame = pd.read_pickle(path)",
        "import yaml\nyaml.load(text, Loader)",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "x(weights_only=False)",
        "eval(text)",
    ],
)
def test_the_check_finds_each_of_them(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load(p, allow_pickle=False)",
        "import torch\ntorch.jit.load(p)",
        "model.eval()",
        "load(p)",
    ],
)
def test_the_check_leaves_others_alone(source: str) -> None:
    assert not list(faults(source))
