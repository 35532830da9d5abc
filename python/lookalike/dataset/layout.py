"""The dataset layout: `users.parquet`, `campaigns.parquet` and `samples.parquet` in one folder, checked and read.

Knows `schema` and Parquet; knows nothing of where data comes from or what is trained on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.dataset.parquet import ParquetSource, open_parquet, sql
from lookalike.dataset.sample_store import SampleStore
from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import InvalidInput, NotFound
from lookalike.schema import FeatureSchema, FeatureValue, as_ids, id_type, kind_of, require_column

USERS = "users.parquet"
CAMPAIGNS = "campaigns.parquet"
SAMPLES = "samples.parquet"

Split = Literal["train", "test"]
Stage = Literal["seed", "audience"]
CampaignId = int | str


class Dataset:
    """A folder in the layout. Opening it reads campaigns and footers and checks ids; samples are read when first asked.

    Ids of users and of campaigns are integers (kept as int64) or strings, each of one kind throughout.
    """

    def __init__(
        self, path: Path, campaigns: pa.Table, user_id_type: pa.DataType, samples: SampleStore | None = None
    ) -> None:
        self.path = path
        self.user_id_type = user_id_type
        self._campaigns = campaigns
        self._read = samples
        ids: list[CampaignId] = campaigns["campaign_id"].to_pylist()
        self._row_of = {campaign_id: row for row, campaign_id in enumerate(ids)}

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Open the folder and check everything but the samples.

        Raises:
            NotFound: the folder or a file is missing. DataCorrupted: a file is not Parquet.
            SchemaError: a column is missing or of a wrong type.
            InvalidInput: duplicate or null ids, or a split other than train and test.
        """
        path = Path(path)
        if not path.is_dir():
            raise NotFound(f"no dataset at {path}: there is no such folder", field="dataset")
        for name in (USERS, CAMPAIGNS, SAMPLES):
            if not (path / name).exists():
                needed = f"{USERS}, {CAMPAIGNS} and {SAMPLES}"
                raise NotFound(f"{path / name} is missing; a dataset has {needed}", field=name)
        user_id_type = _check_users(path / USERS)
        campaigns = _read_campaigns(path / CAMPAIGNS)
        with open_parquet(path / SAMPLES) as file:
            SampleStore.check_columns(file.schema_arrow, user_id_type, campaigns.schema.field("campaign_id").type)
        return cls(path, campaigns, user_id_type)

    def with_splits(self, splits: Sequence[Split | None]) -> Dataset:
        """The same campaigns, split otherwise: `[campaigns]` in file order, None leaves one out. Samples are shared.

        Raises:
            InvalidInput: not one split a campaign, no 'train' among them; or as `samples`.
        """
        if len(splits) != self._campaigns.num_rows or "train" not in splits:
            raise InvalidInput(
                f"{len(splits)} splits for {self._campaigns.num_rows} campaigns; give one each, 'train' among them",
                field="splits",
            )
        column = self._campaigns.schema.get_field_index("split")
        campaigns = self._campaigns.set_column(column, "split", pa.array(splits, pa.string()))
        return Dataset(self.path, campaigns, self.user_id_type, self._samples)

    @property
    def users_path(self) -> Path:
        """The users' Parquet: what a pool is ingested from."""
        return self.path / USERS

    def campaigns(self) -> pa.Table:
        """`campaign_id` (int64 or large_string), `split`, then the features as in the file."""
        return self._campaigns

    def campaign_ids(self, split: Split | None = None) -> list[CampaignId]:
        """Ids in file order, of one split or of both."""
        if split is None:
            return list(self._row_of)
        chosen = self._campaigns.filter(pc.equal(self._campaigns["split"], split))
        ids: list[CampaignId] = chosen["campaign_id"].to_pylist()
        return ids

    def campaign_features(self, campaign_id: CampaignId) -> dict[str, FeatureValue]:
        """The campaign's features by name; missing ones are None or [].

        Raises:
            NotFound: there is no such campaign.
        """
        row = self._campaigns.slice(self._row(campaign_id), 1).drop_columns(["campaign_id", "split"])
        features: dict[str, FeatureValue] = row.to_pylist()[0] if row.num_columns else {}
        return features

    def split(self, campaign_id: CampaignId) -> Split:
        """Whether the campaign is of those to train on, or to test with.

        Raises:
            NotFound: there is no such campaign.
        """
        split: Split = self._campaigns["split"][self._row(campaign_id)].as_py()
        return split

    def campaign_schema(self) -> FeatureSchema:
        """Fields of campaigns, with vocabularies from the training campaigns only.

        Raises:
            SchemaError: a column's type is no feature. InvalidInput: campaigns have no features.
        """
        train = self._campaigns.filter(pc.equal(self._campaigns["split"], "train"))
        return build_schema(train, exclude=("campaign_id", "split"), where=CAMPAIGNS)

    def samples(self, campaign_id: CampaignId, stage: Stage) -> tuple[pa.Array, npt.NDArray[np.int8]]:
        """User ids `[n]` and labels `[n]` (1 or 0) of a campaign's stage, in file order, without a copy.

        The first call reads and checks the whole file; memory: user ids, and 1 byte a row.

        Raises:
            NotFound: there is no such campaign. InvalidInput: the file holds nulls, a label other than 0 and 1,
                a stage other than seed and audience, or a campaign that `campaigns.parquet` lacks.
        """
        return self._samples.get(self._row(campaign_id), stage)

    def _row(self, campaign_id: CampaignId) -> int:
        row = self._row_of.get(campaign_id)
        if row is None and isinstance(campaign_id, str) and campaign_id.lstrip("-").isdecimal():
            row = self._row_of.get(int(campaign_id))  # a command line knows only text
        if row is None:
            raise NotFound(f"campaign {campaign_id!r} is not in {self.path / CAMPAIGNS}", field="campaign_id")
        return row

    @cached_property
    def _samples(self) -> SampleStore:
        return self._read or SampleStore.read(self.path / SAMPLES, self._campaigns["campaign_id"], self.user_id_type)


def _check_users(path: Path) -> pa.DataType:
    source = ParquetSource.open(path)
    column = require_column(source.schema, "user_id", where=USERS)
    kept = id_type(column.type, where=f"{USERS}:user_id")
    for feature in source.schema:
        kind_of(feature.type, where=f"{USERS}:{feature.name}")
    with sql() as connection:
        source.register(connection, "users")
        bad = connection.execute(
            "SELECT user_id FROM users GROUP BY 1 HAVING count(*) > 1 OR user_id IS NULL ORDER BY 1 LIMIT 1"
        )
        refuse_bad_id(bad.fetchone(), where=f"{USERS}:user_id")
    return kept


def refuse_bad_id(row: tuple[CampaignId | None] | None, *, where: str) -> None:
    """Raise for an id that is null or occurs twice, given as the row of the query that looked for one.

    Raises:
        InvalidInput: there is such an id.
    """
    if row is None:
        return
    if row[0] is None:
        raise InvalidInput(f"'{where}' holds a null; every row needs an id", field=where, reason="NULL_ID")
    raise InvalidInput(
        f"'{where}' holds {row[0]!r} more than once; keep one row for each id", field=where, reason="DUPLICATE_ID"
    )


def _read_campaigns(path: Path) -> pa.Table:
    with open_parquet(path) as file:
        table = file.read().replace_schema_metadata(None)
    for name in ("campaign_id", "split"):
        require_column(table.schema, name, where=CAMPAIGNS)
    for column in table.schema:
        kind_of(column.type, where=f"{CAMPAIGNS}:{column.name}")
    where = f"{CAMPAIGNS}:campaign_id"
    ids = as_ids(table["campaign_id"], where=where)
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.or_kleene(pc.greater(counts.field(1), 1), pc.is_null(counts.field(0))))
    refuse_bad_id((repeated.field(0)[0].as_py(),) if len(repeated) else None, where=where)
    splits = pc.unique(table["split"]).to_pylist()
    for split in splits:
        if split not in ("train", "test"):
            raise InvalidInput(
                f"'{CAMPAIGNS}:split' holds {split!r}; it must be 'train' or 'test'", field=f"{CAMPAIGNS}:split"
            )
    if "train" not in splits:
        raise InvalidInput(f"{CAMPAIGNS} has no campaign of split 'train'", field=f"{CAMPAIGNS}:split")
    return table.set_column(table.schema.get_field_index("campaign_id"), "campaign_id", ids)
