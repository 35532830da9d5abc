"""MovieLens-1M, as GroupLens publishes it, to the layout: a campaign is a movie, interest is a rating of 4 or 5.

Knows the three raw files; knows nothing of where they come from. Features tell only of movies that are no campaign.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from lookalike.dataset.behaviour import latest, most_frequent, spoken
from lookalike.dataset.construction import Interest, build, choose_campaigns
from lookalike.dataset.layout import Dataset
from lookalike.errors import DataCorrupted, NotFound

FILES = ("users.dat", "movies.dat", "ratings.dat")
LICENCE_FILE = "README"

LIKED = 4  # stars or more
CAMPAIGN_SHARE = 0.5  # of the movies liked often enough; the others feed the features
SEED_SHARE = 0.3  # of those who liked a campaign's movie


def convert(raw: Path, output: Path, *, seed: int = 0, min_interested: int = 100, overwrite: bool = False) -> Dataset:
    """Write the dataset from a folder with `users.dat`, `movies.dat` and `ratings.dat`. Same arguments, same bytes.

    Args:
        seed: of the choice of campaigns, seeds, split and negatives.
        min_interested: users who must have liked a movie before it can be a campaign.

    Raises:
        NotFound: a raw file is missing. DataCorrupted: one is not in GroupLens' format.
        InvalidInput: hardly any movie is liked often enough. AlreadyExists: `output` exists.
    """
    people = _read(raw / "users.dat", {"user_id": pa.int64(), "gender": _S, "age": _S, "occupation": _S, "zip": _S})
    movies = _read(raw / "movies.dat", {"movie_id": pa.int64(), "title": _S, "genres": _S})
    ratings = _read(
        raw / "ratings.dat", {"user_id": pa.int64(), "movie_id": pa.int64(), "stars": pa.int64(), "time": pa.int64()}
    )
    people, movies = people.sort_by("user_id"), movies.sort_by("movie_id")
    liked = ratings.filter(pc.greater_equal(ratings["stars"], LIKED))
    user = _positions(people["user_id"], liked["user_id"], raw / "ratings.dat")
    movie = _positions(movies["movie_id"], liked["movie_id"], raw / "ratings.dat")
    rng = np.random.default_rng(seed)
    popular = np.flatnonzero(np.bincount(movie, minlength=movies.num_rows) >= min_interested)
    chosen = choose_campaigns(popular, CAMPAIGN_SHARE, rng)
    year = pc.struct_field(pc.extract_regex(movies["title"], r"\((?P<year>\d{4})\)\s*$"), "year").combine_chunks()
    decade = pc.binary_join_element_wise(pc.utf8_slice_codeunits(year, 0, 3), "0s", "")
    genres = pc.split_pattern(movies["genres"], "|").combine_chunks()

    told = ~np.isin(movie, chosen)  # what features may tell
    users = _users(people, movies, genres, decade, user[told], movie[told], liked["time"].to_numpy()[told])
    campaigns = pa.table({"movie_id": movies["movie_id"], "genres": genres, "year": year, "decade": decade})
    interests = []
    for row in chosen:
        fans = rng.permutation(user[movie == row])
        seeds = int(SEED_SHARE * len(fans))
        interests.append(Interest(fans[:seeds], fans[seeds:], fans[:0]))
    return build(
        output,
        users,
        campaigns.take(pa.array(chosen)).rename_columns(["campaign_id", "genres", "year", "decade"]),
        interests,
        rng=rng,
        licence=raw / LICENCE_FILE if (raw / LICENCE_FILE).exists() else None,
        overwrite=overwrite,
    )


_S = pa.string()
_Ints = np.ndarray[tuple[int], np.dtype[np.int64]]


def _users(
    people: pa.Table, movies: pa.Table, genres: pa.Array, decade: pa.Array, user: _Ints, movie: _Ints, time: _Ints
) -> pa.Table:
    """Profiles, and what the likes `[events]` given by user, movie and time say."""
    num_users = people.num_rows
    titles = pc.cast(movies["movie_id"].combine_chunks(), _S)
    return pa.table(
        {
            "user_id": people["user_id"],
            "gender": people["gender"],
            "age": people["age"],
            "occupation": people["occupation"],
            "zip3": pc.utf8_slice_codeunits(people["zip"], 0, 3),
            "liked_genres": most_frequent(*spoken(user, movie, genres), num_users, limit=5),
            "liked_decades": most_frequent(*spoken(user, movie, decade), num_users, limit=3),
            "liked_movies": latest(user, movie, time, titles, num_users, limit=20),
        }
    )


def _positions(known: pa.ChunkedArray, ids: pa.ChunkedArray, path: Path) -> _Ints:
    found = pc.index_in(ids, value_set=known.combine_chunks())
    if found.null_count:
        example = ids.filter(pc.is_null(found))[0].as_py()
        raise DataCorrupted(f"{path} names {example}, which the other files lack", field=path.name)
    positions: _Ints = found.to_numpy().astype(np.int64)
    return positions


def _read(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing; the folder must hold {', '.join(FILES)}", field=path.name) from error
    try:
        return csv.read_csv(
            # The reader takes one-byte delimiters only; the files hold no control characters.
            pa.py_buffer(text.replace(b"::", b"\x1f")),
            read_options=csv.ReadOptions(column_names=list(columns), encoding="latin-1"),
            parse_options=csv.ParseOptions(delimiter="\x1f", quote_char=False),
            convert_options=csv.ConvertOptions(column_types=columns),
        )
    except pa.ArrowException as error:
        raise DataCorrupted(f"{path} is not in MovieLens-1M's format: {error}", field=path.name) from error
