"""Models and users to score: random weights, users uniform over vocabularies or as `lookalike simulate` makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lookalike.dataset.profiles import PROFILES, Population
from lookalike.errors import InvalidInput
from lookalike.pool.snapshot import Pool
from lookalike.schema import FIRST_VALUE_ID, EncodedColumns, FeatureSchema, Field, FieldKind

CRITICS: Final = 5
FIELDS: Final = 14
MIXED: Final = (2, 3, 4, 6, 7, 8, 12, 20, 50, 80, 100, 100, 200, 300)
CAMPAIGNS: Final = FeatureSchema((Field("kind", FieldKind.CATEGORICAL, ("a",)),))


@dataclass(frozen=True)
class Case:
    """A model and users for it.

    Attributes:
        users: encoded, in memory.
        experts: of the model.
        model: an archive; None: random weights.
    """

    name: str
    schema: FeatureSchema
    users: EncodedColumns
    experts: int
    model: Path | None = None

    def archive(self, folder: Path) -> Path:
        """The model; a random one is written into `folder`."""
        if self.model is not None:
            return self.model
        import torch

        from lookalike.config import ModelConfig
        from lookalike.model.metaheac import MetaHeac
        from lookalike.scoring.compiled import compile_model

        torch.manual_seed(0)
        model = MetaHeac(self.schema, CAMPAIGNS, ModelConfig(num_experts=self.experts, num_critics=CRITICS))
        with torch.no_grad():  # untrained, all users would have much the same score
            model.user_embedding.normal_(std=0.3)
            model.critics.weight.normal_(std=1)
        path = folder / "model.pt"
        compile_model(model, CAMPAIGNS.encode_features({"kind": "a"}, where="campaign"), path, {})
        return path

    def ids_per_user(self, name: str) -> float:
        """Of a field."""
        offsets = self.users.offsets.get(name)
        return 1.0 if offsets is None else float(offsets[-1] - offsets[0]) / self.users.length

    def facts(self) -> dict[str, Any]:
        """For the document."""
        return {
            "fields": len(self.schema.fields),
            "multi_valued": len(self.schema.multi),
            "ids": sum(field.size for field in self.schema.fields),
            "ids_per_user": sum(self.ids_per_user(field.name) for field in self.schema.fields),
            "experts": self.experts,
            "model": None if self.model is None else str(self.model),
            "users_made": self.users.length,
        }


def uniform(name: str, values: tuple[int, ...], experts: int, users: int) -> Case:
    """Single-valued fields, every id as likely as any: the hardest for a cache."""
    rng = np.random.default_rng(0)
    fields = tuple(
        Field(f"f{number}", FieldKind.CATEGORICAL, tuple(map(str, range(known)))) for number, known in enumerate(values)
    )
    ids = {field.name: rng.integers(0, field.size, users, dtype=field.dtype) for field in fields}
    return Case(name, FeatureSchema(fields), EncodedColumns(users, ids, {}), experts)


def simulated(name: str, profile: str, experts: int, users: int) -> Case:
    """The first users of a profile."""
    population = Population(PROFILES[profile], 0)
    columns = EncodedColumns.concat([columns for _, columns in population.blocks(0, users)])
    return Case(name, population.schema, columns, experts)


def from_files(model: Path, pool_path: Path, users: int) -> Case:
    """A real model and the first users of a pool.

    Raises:
        NotFound, DataCorrupted: no such model or pool. InvalidInput: they do not belong together.
    """
    import torch

    from lookalike.scoring.compiled import load_compiled

    script, schema, _ = load_compiled(model, torch.device("cpu"))
    pool = Pool.open(pool_path)
    if schema.fingerprint != pool.schema.fingerprint:
        raise InvalidInput(
            f"{model} was not made for users of {pool_path}: take the pool it was made from", field="pool"
        )
    read = EncodedColumns.concat([pool.read(0, min(users, pool.num_users))])  # copied: mapped files are not in memory
    return Case(model.name, schema, read, int(script.num_experts), model)


def _ids(each: int) -> tuple[int, ...]:
    return (each - FIRST_VALUE_ID,) * FIELDS


CASES: Final[dict[str, Callable[[int], Case]]] = {
    "lean": lambda users: uniform("lean", _ids(100), 5, users),
    "lean-1000": lambda users: uniform("lean-1000", _ids(1_000), 5, users),
    "lean-20000": lambda users: uniform("lean-20000", _ids(20_000), 5, users),
    "default": lambda users: uniform("default", MIXED, 8, users),
    "tencent": lambda users: simulated("tencent", "tencent", 8, users),
    "simulated": lambda users: simulated("simulated", "lean", 5, users),
}
