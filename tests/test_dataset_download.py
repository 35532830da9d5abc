"""The downloader against a real server on loopback."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lookalike.dataset.download import Remote, default_cache, fetch
from lookalike.errors import DataCorrupted, Unavailable

CONTENT = bytes(range(256)) * 2000


class Site(BaseHTTPRequestHandler):
    """/file, /moved (to it), /short (breaks off), /unsized, anything else is 404."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path in {"/file", "/short", "/unsized"}:
            self.send_response(200)
            if self.path != "/unsized":
                self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000] if self.path == "/short" else CONTENT)
        else:
            self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Site.requests = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def remote(url: str, checksum: str = hashlib.md5(CONTENT).hexdigest()) -> Remote:
    return Remote(url=url, file="data.zip", algorithm="md5", checksum=checksum)


@pytest.mark.parametrize("path", ["/file", "/moved"])
def test_a_file_is_downloaded_once(site: str, tmp_path: Path, path: str) -> None:
    cache = tmp_path / "deep" / "cache"
    seen: list[tuple[int, int]] = []
    found = fetch(remote(site + path), cache, lambda done, total: seen.append((done, total)))
    assert found == cache / "data.zip"
    assert found.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [found]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    requests = Site.requests
    assert fetch(remote(site + path), cache) == found
    assert Site.requests == requests


def test_a_site_that_does_not_tell_the_size(site: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetch(remote(site + "/unsized"), tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(CONTENT), 0)


@pytest.mark.parametrize("path", ["/short", "/absent"])
def test_a_site_that_fails_leaves_nothing_and_is_named(site: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(Unavailable) as caught:
        fetch(remote(site + path), tmp_path)
    assert site + path in caught.value.message
    assert f"place it at {tmp_path / 'data.zip'}" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_no_site_at_all_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        with pytest.raises(Unavailable, match="place it at"):
            fetch(remote(url), tmp_path)


def test_another_file_than_published_is_not_kept(site: str, tmp_path: Path) -> None:
    with pytest.raises(DataCorrupted, match="not the published"):
        fetch(remote(site + "/file", checksum="0" * 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_placed_by_hand_is_checked_and_never_deleted(site: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(CONTENT)
    assert fetch(remote("http://127.0.0.1:1/never-asked"), tmp_path) == tmp_path / "data.zip"
    (tmp_path / "data.zip").write_bytes(b"something else")
    with pytest.raises(DataCorrupted, match="delete it"):
        fetch(remote(site + "/file"), tmp_path)
    assert (tmp_path / "data.zip").read_bytes() == b"something else"
    assert Site.requests == 0


def test_stopping_leaves_nothing(site: str, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(remote(site + "/file"), tmp_path, stop)
    assert list(tmp_path.iterdir()) == []


def test_the_default_cache_is_the_users() -> None:
    assert default_cache() == Path.home() / ".cache" / "lookalike"
