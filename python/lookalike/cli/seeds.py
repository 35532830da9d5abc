"""Seeds and campaign features as people have them: Parquet, text files, datasets, `name=value`.

Knows the dataset layout; torch-free, for the client uses it too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.dataset.layout import Dataset
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.pool.id_text import id_lines, no_integer
from lookalike.pool.roaring import roaring_ids
from lookalike.schema import FeatureValue, as_ids, require_column


def gather(
    campaign: str,
    seeds: Path | None,
    features: Sequence[str] | None,
    dataset: Path | None,
    *,
    id_type: pa.DataType | None = None,
) -> tuple[pa.Array, dict[str, FeatureValue]]:
    """Seed ids and campaign features from what the command line gave. `--seeds` and `--feature` go before --dataset.

    `id_type` is as of `read`.

    Raises:
        InvalidInput: there are no seeds, or a feature is not NAME=VALUE.
        NotFound: no such file, dataset or campaign. DataCorrupted, SchemaError: the seeds file cannot be read.
    """
    if seeds is None and dataset is None:
        raise InvalidInput("give the seeds: --seeds FILE, or --dataset FOLDER to take them from", field="seeds")
    known: dict[str, FeatureValue] = {}
    found: pa.Array | None = None
    if dataset is not None:
        opened = Dataset.open(dataset)
        known = opened.campaign_features(campaign)
        if seeds is None:
            user_ids, labels = opened.samples(campaign, "seed")
            found = user_ids.filter(pa.array(labels == 1))
    return (read(seeds, id_type=id_type) if seeds is not None else found), known | _parsed(features or ())


def read_all(paths: Sequence[Path]) -> pa.Array:
    """User ids of several files, one after the other.

    Raises:
        InvalidInput: some hold integers, others text. As `read`.
    """
    parts = [ids for ids in (read(path, field="exclude") for path in paths) if len(ids)]
    if len({part.type for part in parts}) > 1:
        raise InvalidInput("some files to exclude hold integers, others text", field="exclude")
    return pa.concat_arrays(parts) if parts else pa.array([], pa.int64())


def read(path: Path, *, field: str = "seeds", id_type: pa.DataType | None = None) -> pa.Array:
    """User ids of a file: of text one a line, below a line `user_id` or not.

    Args:
        id_type: of the pool, where it is known: text is read as that. Else text whose every line is an integer gives
            integers, any other strings.

    Raises:
        NotFound: no such file. DataCorrupted: neither Parquet nor Roaring, as its name says. SchemaError: no column
            user_id, or of a wrong type. InvalidInput: no text, or a line is no id of that type.
    """
    if path.suffix == ".roaring":
        return pa.concat_arrays([pa.array([], pa.int64()), *roaring_ids(path, 1 << 20, field=field)])
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except FileNotFoundError as error:
            raise NotFound(f"no file {path}", field=field) from error
        except (pa.ArrowException, OSError) as error:
            raise DataCorrupted(f"cannot read {path}: {error}", field=field) from error
        require_column(table.schema, "user_id", where=str(path))
        return as_ids(table["user_id"], where=f"{path}:user_id").combine_chunks()
    lines = _lines(path, field)
    wrong = next((number for number, line in lines.items() if not _is_integer(line)), None)
    if id_type is not None and pa.types.is_integer(id_type) and wrong is not None:
        raise no_integer(wrong, lines[wrong], path, field=field)
    if wrong is None and (id_type is None or pa.types.is_integer(id_type)):
        return pa.array([int(line) for line in lines.values()], pa.int64())
    return pa.array(lines.values(), pa.large_string())


def _lines(path: Path, field: str) -> dict[int, str]:
    """What is not blank by line number, from 1."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}", field=field) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path} as text: {error}", field=field) from error
    return {number: line for number, line in enumerate(id_lines(text.splitlines()), 1) if line}


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    # Not 007 and the like: such ids are text.
    return digits.isascii() and digits.isdigit() and len(digits) < 19 and str(int(text)) == text


def _parsed(features: Sequence[str]) -> dict[str, FeatureValue]:
    parsed: dict[str, FeatureValue] = {}
    for feature in features:
        name, separator, text = feature.partition("=")
        if not (name and separator):
            raise InvalidInput(f"'{feature}' is not of the form NAME=VALUE", field="feature")
        parsed[name] = _value(text)
    return parsed


def _value(text: str) -> FeatureValue:
    """Numbers and lists as JSON has them; everything else is text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, list) and all(isinstance(item, (str, int)) for item in value):
        return value
    return text
