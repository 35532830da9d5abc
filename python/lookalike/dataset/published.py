"""The published data sets: where each is, what its publisher asks of you, and how it becomes a dataset in the layout.

Knows the downloader and the converters.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from lookalike.dataset import kuairand, ml1m
from lookalike.dataset.download import ProgressCallback, Remote, default_cache, fetch
from lookalike.dataset.layout import Dataset
from lookalike.errors import AlreadyExists, DataCorrupted, NotFound


@dataclass(frozen=True)
class Published:
    """One data set. `members` are the archive's files that `convert` reads, `licence_file` among or beside them."""

    name: str
    title: str
    remote: Remote
    licence: str
    members: Sequence[str]
    licence_file: str
    convert: Callable[[Path, Path, bool], Dataset]


PUBLISHED = {
    "ml1m": Published(
        name="ml1m",
        title="MovieLens-1M (GroupLens): 6,040 users, a campaign is a movie",
        remote=Remote(
            url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            file="ml-1m.zip",
            algorithm="md5",
            checksum="c4d9eecfca2ab87c1945afe126590906",
        ),
        licence=(
            "GroupLens terms: research use; no redistribution and no commercial use without their permission; "
            "acknowledge the data in publications (Harper and Konstan 2015, doi:10.1145/2827872). In full: LICENSE.txt"
        ),
        members=ml1m.FILES,
        licence_file=ml1m.LICENCE_FILE,
        convert=lambda raw, output, overwrite: ml1m.convert(raw, output, overwrite=overwrite),
    ),
    "kuairand": Published(
        name="kuairand",
        title="KuaiRand-Pure (Gao et al., CIKM 2022): 27,285 users, a campaign is a short video",
        remote=Remote(
            url="https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
            file="KuaiRand-Pure.tar.gz",
            algorithm="md5",
            checksum="0820331067a3784d9691136f772b35a7",
        ),
        licence=(
            "CC BY-SA 4.0: name the authors (Gao et al. 2022, doi:10.1145/3511808.3557624) and share what you derive "
            "under the same licence. In full: LICENSE.txt"
        ),
        members=kuairand.FILES,
        licence_file=kuairand.LICENCE_FILE,
        convert=lambda raw, output, overwrite: kuairand.convert(raw, output, overwrite=overwrite),
    ),
}


def get(
    name: str,
    output: Path,
    *,
    cache: Path | None = None,
    progress: ProgressCallback | None = None,
    notice: Callable[[str], None] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Download (or take from `cache`, default `~/.cache/lookalike`), convert, and open.

    `progress` counts bytes of the download; `notice` is handed the title and the licence's summary before it starts.
    The publisher's licence text lies in the dataset's folder as LICENSE.txt.

    Raises:
        NotFound: no data set of this name. AlreadyExists: `output` exists and `overwrite` is false.
        Unavailable: the site cannot be reached. DataCorrupted: the archive is not what was published.
    """
    published = PUBLISHED.get(name)
    if published is None:
        raise NotFound(f"no published data set {name!r}; there are {', '.join(PUBLISHED)}", field="name")
    if output.exists() and not overwrite:  # before the download, not after it
        raise AlreadyExists(f"{output} exists; choose another folder or ask to overwrite it", field="output")
    if notice is not None:
        notice(f"{published.title}\n{published.licence}")
    archive = fetch(published.remote, cache or default_cache(), progress)
    with tempfile.TemporaryDirectory(prefix="lookalike-raw-", dir=archive.parent) as raw:
        _extract(archive, Path(raw), [*published.members, published.licence_file])
        return published.convert(Path(raw), output, overwrite)


def _extract(archive: Path, folder: Path, names: Sequence[str]) -> None:
    """Copy the files of these base names out of the archive; names inside it decide nothing about where to."""
    missing = set(names)
    try:
        for name, file in _members(archive):
            if name in missing:
                missing.remove(name)
                with (folder / name).open("wb") as copy:
                    shutil.copyfileobj(file, copy)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataCorrupted(f"{archive} is damaged: {error}", field=archive.name) from error
    if missing:
        raise DataCorrupted(f"{archive} lacks {', '.join(sorted(missing))}", field=archive.name)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as pack:
            for info in pack.infolist():
                if not info.is_dir():
                    with pack.open(info) as file:
                        yield PurePosixPath(info.filename).name, file
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                with content as file:
                    yield PurePosixPath(member.name).name, file
