"""A small history in MovieLens-1M's raw format."""

from __future__ import annotations

from pathlib import Path

USERS, MOVIES = 120, 30
GENRES = ["Action", "Children's", "Drama", "Film-Noir"]


def stars(user: int, movie: int) -> int:
    """Rating, or 0 for none. Two in three like it, where it is rated at all."""
    return 0 if (user * 7 + movie * 3) % 5 == 0 else 3 + (user * movie + movie) % 3


def write_raw(folder: Path) -> Path:
    folder.mkdir()
    users = [f"{u}::{'FM'[u % 2]}::{25 + u % 3}::{u % 21}::{10000 + u:05d}-{u}" for u in range(USERS, 0, -1)]
    movies = [f"{m}::Amélie: part {m} ({1930 + 3 * m})::{'|'.join(GENRES[: m % 4 + 1])}" for m in range(1, MOVIES + 1)]
    ratings = [
        f"{u}::{m}::{stars(u, m)}::{1000 * m + u}"
        for u in range(1, USERS + 1)
        for m in range(1, MOVIES + 1)
        if stars(u, m)
    ]
    for name, lines in (("users", users), ("movies", movies), ("ratings", ratings)):
        (folder / f"{name}.dat").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    (folder / "README").write_text("GroupLens' terms")
    return folder
