"""Writes the Python modules of the protos beside the hand-written ones; `make` and the package build call it.

    python protos/generate.py [--output python] [--descriptors build/protos.binpb]

`--descriptors` writes a FileDescriptorSet with comments, for `buf lint`. Needs grpcio-tools and
googleapis-common-protos; with mypy-protobuf it writes type stubs too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE.parent / "python")
    parser.add_argument("--descriptors", type=Path, help="write only a FileDescriptorSet, for buf")
    arguments = parser.parse_args()
    generate(arguments.output, descriptors=arguments.descriptors)


def generate(output: Path, *, descriptors: Path | None = None) -> None:
    """Compile every proto under this folder into `output`, or into the one file `descriptors`.

    Raises:
        SystemExit: protoc refused; it has said why.
    """
    from grpc_tools import protoc

    protos = sorted(str(path.relative_to(HERE)) for path in HERE.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        includes = [HERE, Path(protoc.__file__).parent / "_proto", _google_apis(Path(scratch)), _site("google").parent]
        arguments = ["protoc", *(f"-I{folder}" for folder in includes)]
        if descriptors is not None:
            descriptors.parent.mkdir(parents=True, exist_ok=True)
            arguments += ["--include_imports", "--include_source_info", f"--descriptor_set_out={descriptors}"]
        else:
            output.mkdir(parents=True, exist_ok=True)
            arguments += [f"--python_out={output}", f"--grpc_python_out={output}", *_stubs(output)]
        if protoc.main([*arguments, *protos]) != 0:
            sys.exit("protoc failed")


def _google_apis(scratch: Path) -> Path:
    """googleapis-common-protos keeps operations.proto under another name than the one everybody imports."""
    source = _site("google.longrunning") / "operations_proto.proto"
    target = scratch / "google" / "longrunning" / "operations.proto"
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)
    return scratch


def _site(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{package} is not installed: pip install googleapis-common-protos")
    for location in spec.submodule_search_locations:
        if package != "google" or (Path(location) / "longrunning").is_dir():
            return Path(location)
    sys.exit("googleapis-common-protos is not installed")


def _stubs(output: Path) -> list[str]:
    arguments = []
    # Beside this interpreter, or on PATH, where pip puts the requirements of an isolated build.
    folders = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    for name in ("mypy", "mypy_grpc"):
        plugin = shutil.which(f"protoc-gen-{name}", path=folders)
        if plugin is not None:
            arguments += [f"--plugin=protoc-gen-{name}={plugin}", f"--{name}_out=quiet:{output}"]
    return arguments


if __name__ == "__main__":
    main()
