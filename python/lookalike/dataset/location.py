"""Where files lie: paths, folders, globs and URIs as files of one Arrow filesystem, with errors that say why not.

Knows `errors` and Arrow's filesystems; knows nothing of what is in the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from lookalike.errors import DataCorrupted, InvalidInput, NotFound, Unauthenticated, Unavailable

Source = str | Path | Sequence[str | Path]
"""A file, a folder, a glob (`day=*/part-?.parquet`), a URI of any of these (`s3://bucket/users/`), or a list of them.

In a URI a `?` begins its options, so only `*` is a wildcard there.
"""

# Google's client would try for a quarter of an hour to reach a server that is not there.
_RETRY_SECONDS = 60


def locate(source: Source, filesystem: fs.FileSystem | None, suffix: str) -> tuple[fs.FileSystem, tuple[str, ...]]:
    """The filesystem, and the paths on it in the order given; of a folder every file that ends in `suffix`, by name.

    Args:
        filesystem: where to look; default: what each URI says, the local one for a plain path.

    Raises:
        InvalidInput: nothing was given, a URI that Arrow has no filesystem for, or files of several filesystems.
        NotFound: no such file, or none in the folder or of the pattern.
        Unauthenticated: access is refused. Unavailable: a server does not answer.
    """
    items = [source] if isinstance(source, (str, Path)) else list(source)
    if not items:
        raise InvalidInput("no file was given", field="source")
    places = [(filesystem, str(item)) if filesystem is not None else _parse(str(item)) for item in items]
    filesystem = places[0][0]
    found: list[str] = []
    for item, (itself, path) in zip(items, places, strict=True):
        if not filesystem.equals(itself):
            raise InvalidInput(
                f"{_public(str(item))} lies elsewhere than {_public(str(items[0]))}: give files of one place",
                field="source",
            )
        with telling(str(item)):
            found += _files(filesystem, path, suffix)
    return filesystem, tuple(found)


def _parse(item: str) -> tuple[fs.FileSystem, str]:
    scheme, separator, _ = item.partition("://")
    if not separator:
        return fs.LocalFileSystem(), item
    uri = item
    if scheme in {"gs", "gcs"} and "retry_limit_seconds" not in item:
        uri += ("&" if "?" in item else "?") + f"retry_limit_seconds={_RETRY_SECONDS}"
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, ImportError) as error:
        raise InvalidInput(
            f"pyarrow {pa.__version__} has no filesystem for {_public(item)}: {_first_line(error)}; "
            "copy the files to a local folder, or give a URI such as s3://bucket/users or gs://bucket/users",
            field="source",
            reason="NO_FILESYSTEM",
        ) from error
    except OSError as error:  # HDFS without its libraries, say
        raise Unavailable(f"{_public(item)} cannot be reached: {_first_line(error)}", field="source") from error
    return filesystem, path


def _files(filesystem: fs.FileSystem, path: str, suffix: str) -> Iterator[str]:
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound and any(sign in path for sign in "*?["):
        matches = list(_expand(filesystem, path))
        if not matches:
            raise NotFound(f"nothing matches {path}", field=_name(path))
    else:
        matches = [info]
    for match in matches:
        if match.type == fs.FileType.NotFound:
            raise NotFound(f"{match.path} does not exist", field=_name(match.path))
        yield from _within(filesystem, match.path, suffix) if match.type == fs.FileType.Directory else [match.path]


def _expand(filesystem: fs.FileSystem, pattern: str) -> Iterator[fs.FileInfo]:
    """What matches, by name, level by level: only folders that can hold a match are listed."""
    parts = PurePosixPath(pattern).parts
    first = next(number for number, part in enumerate(parts) if any(sign in part for sign in "*?["))
    base, rest = str(PurePosixPath(*parts[:first])), parts[first + 1 :]
    listed = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
    for info in sorted(listed, key=lambda info: info.path):
        if not (fnmatchcase(info.base_name, parts[first]) and _is_data(info.base_name)):
            continue
        if not rest:
            yield info
        elif info.type == fs.FileType.Directory:
            deeper = str(PurePosixPath(info.path, *rest))
            if any(sign in part for part in rest for sign in "*?["):
                yield from _expand(filesystem, deeper)
            else:
                candidate = filesystem.get_file_info(deeper)
                yield from [] if candidate.type == fs.FileType.NotFound else [candidate]


def _within(filesystem: fs.FileSystem, folder: str, suffix: str) -> list[str]:
    listed = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    files = sorted(
        info.path for info in listed if info.is_file and info.base_name.endswith(suffix) and _is_data(info.base_name)
    )
    if not files:
        raise NotFound(f"no *{suffix} file in {folder}", field=_name(folder))
    return files


def _is_data(name: str) -> bool:
    """Spark and others leave _SUCCESS, .crc and such beside the data."""
    return name[0] not in "._"


@contextmanager
def telling(path: str) -> Iterator[None]:
    """Errors of a filesystem or of Arrow while `path` is read, as errors of ours.

    Raises:
        NotFound: it does not exist. Unauthenticated: access is refused. Unavailable: its server does not answer.
        DataCorrupted: whatever else; it cannot be read as what it should be.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{_public(path)} does not exist", field=_name(path)) from error
    except (OSError, pa.ArrowException) as error:
        text = str(error)
        if isinstance(error, PermissionError) or any(sign in text for sign in ("ACCESS_DENIED", "PERMISSION_DENIED")):
            raise Unauthenticated(
                f"access to {_public(path)} is refused: {_first_line(error)}; give credentials that may read it",
                field=_name(path),
            ) from error
        if any(sign in text for sign in ("NETWORK_CONNECTION", "UNAVAILABLE", "SERVICE_UNAVAILABLE", "SLOW_DOWN")):
            raise Unavailable(f"{_public(path)} cannot be reached: {_first_line(error)}", field=_name(path)) from error
        raise DataCorrupted(f"{_public(path)} is damaged: {_first_line(error)}", field=_name(path)) from error


def _name(path: str) -> str:
    return PurePosixPath(_public(path)).name


def _public(item: str) -> str:
    """A URI without what may be secret: its user, password and options."""
    scheme, separator, rest = item.partition("://")
    if not separator:
        return item
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _first_line(error: BaseException) -> str:
    """Clients of object stores go on for pages."""
    return str(error).partition("\n")[0][:300]
