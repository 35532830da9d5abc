"""Published data sets: from an archive as the publisher packs it to a dataset."""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from raw_kuairand import write_raw as write_kuairand
from raw_ml1m import write_raw as write_ml1m

from lookalike.dataset import kuairand, ml1m, published
from lookalike.dataset.published import PUBLISHED, get
from lookalike.errors import AlreadyExists, DataCorrupted, NotFound
from lookalike.files import file_digest


def pack(raw: Path, archive: Path, inside: str) -> None:
    files = sorted(raw.iterdir())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as pack:
            for path in files:
                pack.write(path, f"{inside}/{path.name}")
        return
    with tarfile.open(archive, "w:gz") as tar:
        for path in files:
            tar.add(path, f"{inside}/{path.name}")


def publish(monkeypatch: pytest.MonkeyPatch, name: str, archive: Path) -> None:
    """Let the registry's entry have this archive's checksum, and thresholds for a small history."""
    entry = PUBLISHED[name]
    monkeypatch.setitem(
        PUBLISHED,
        name,
        replace(
            entry,
            remote=replace(entry.remote, checksum=file_digest(archive, "md5")),
            convert=lambda raw, output, overwrite: (
                ml1m.convert(raw, output, min_interested=20, overwrite=overwrite)
                if name == "ml1m"
                else kuairand.convert(raw, output, min_seeds=5, min_audience=2, overwrite=overwrite)
            ),
        ),
    )


@pytest.mark.parametrize(
    ("name", "write_raw", "inside"),
    [("ml1m", write_ml1m, "ml-1m"), ("kuairand", write_kuairand, "KuaiRand-Pure/data")],
    ids=["ml1m", "kuairand"],
)
def test_from_a_cached_archive_to_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write_raw: object, inside: str
) -> None:
    raw = write_raw(tmp_path / "raw")  # type: ignore[operator]
    cache = tmp_path / "cache"
    cache.mkdir()
    archive = cache / PUBLISHED[name].remote.file
    pack(raw, archive, inside)
    publish(monkeypatch, name, archive)
    notices: list[str] = []
    dataset = get(name, tmp_path / "out", cache=cache, notice=notices.append)
    assert len(dataset.campaign_ids("train")) > 0
    assert "LICENSE.txt" in notices[0]
    assert (tmp_path / "out" / "LICENSE.txt").stat().st_size > 0
    assert list(cache.iterdir()) == [archive]
    with pytest.raises(AlreadyExists):
        get(name, tmp_path / "out", cache=cache)
    assert get(name, tmp_path / "out", cache=cache, overwrite=True).campaign_ids() == dataset.campaign_ids()


def test_names_within_an_archive_cannot_lead_out_of_it(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    (tmp_path / "evil").write_text("evil")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "evil", "../../users.dat")
        link = tarfile.TarInfo("movies.dat")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(DataCorrupted, match=r"lacks movies\.dat"):
        published._extract(archive, folder, ["users.dat", "movies.dat"])
    assert [path.name for path in folder.iterdir()] == ["users.dat"]
    assert not (tmp_path / "users.dat").exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_damaged_archive_is_named(tmp_path: Path, suffix: str) -> None:
    raw = write_ml1m(tmp_path / "raw")
    archive = tmp_path / f"a{suffix}"
    pack(raw, archive, "ml-1m")
    archive.write_bytes(archive.read_bytes()[:2000])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataCorrupted, match="damaged"):
        published._extract(archive, tmp_path / "out", ml1m.FILES)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="ml1m, kuairand"):
        get("movielens", tmp_path / "out")


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_registry_says_is_usable(name: str) -> None:
    entry = PUBLISHED[name]
    assert entry.name == name
    assert entry.remote.url.startswith("https://")
    assert entry.remote.url.endswith(entry.remote.file)
    assert len(entry.remote.checksum) == {"md5": 32, "sha256": 64}[entry.remote.algorithm]
