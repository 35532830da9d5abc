"""One typed configuration tree, read from one YAML file, overridden by `section.key=value` flags.

Every default is a value that works; a constant that was chosen carries its reason. Knows only `errors`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lookalike.errors import InvalidInput

_T = TypeVar("_T")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
AtLeastOne = Annotated[int, Field(ge=1)]
AtLeastZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """MetaHeac's shape (paper section 3; sizes from its section 4.1, where n and m are tuned from 3 to 10)."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    embedding_dim: AtLeastOne = 16
    # On held-out training campaigns of kuairand and ml1m no number from 1 to 8 was better than another; these few keep
    # the gates, which are all that the campaign's features act on, and cost less.
    num_experts: AtLeastOne = 4
    num_critics: AtLeastOne = 3
    hidden: Annotated[tuple[AtLeastOne, ...], Field(min_length=1)] = (64, 64)
    gate_hidden: AtLeastOne = 64
    # The paper's Eq. 6, 8, 9 also divide by n and m. With softmax weights that caps p at 1/m, so it is a switch.
    literal_average: bool = False
    # A linear term inside every critic, sigma(t_i(r) + sum_f sum_v w_fv): the evidence of single ids, which the mean
    # of a multi-valued field dilutes (on kuairand a logistic regression loses 0.07 AUC by taking the mean) and which
    # decides among few seeds. Not in the paper; false is the published network.
    wide: bool = True
    # N(0, 1), as in the authors' code, drowns rare ids in noise for a whole epoch.
    embedding_init_std: NotNegative = 0.01


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Training of the general model: what both methods have in common, and Algorithm 1 of the paper."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # "joint": all campaigns at once, each with own weights above the network (section `joint`); "meta": Algorithm 1.
    method: Literal["joint", "meta"] = "joint"
    inner_lr: Positive = 0.5  # alpha of Eq. 3, on the mean loss of a support set (512 x the paper's, which sums)
    outer_lr: Positive = 0.001  # beta of Eq. 3, Adam
    second_order: bool = True
    support_size: AtLeastOne = 512
    query_size: AtLeastOne = 512
    tasks_per_step: AtLeastOne = 5
    task_sampling: Literal["size", "sqrt", "uniform"] = "sqrt"
    epochs: NotNegative = 2.0  # of Algorithm 1: passes over the training campaigns' samples
    max_samples: AtLeastZero = 0  # if not 0, instead of epochs, with both methods
    # Stop after so long; 0: no limit. The rate of joint training falls to 0 by then.
    max_seconds: NotNegative = 0.0
    validation_campaigns: Share = 0.1  # share of the training campaigns held out, 200 at the most
    validate_every: AtLeastOne = 100  # steps of Algorithm 1; joint training validates after each epoch
    patience: AtLeastOne = 5  # validations without gain before training stops
    # Trains the unknown id of every field: a new campaign's own ids are unknown ids.
    campaign_id_dropout: Share = 0.2
    user_id_dropout: Share = 0.01
    seed: AtLeastZero = 0


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Joint training of the general model with own weights for each training campaign."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    epochs: AtLeastOne = 12  # passes over all users, with a rate that falls to 0
    batch_samples: AtLeastOne = 32_768  # a step, from as many users as have so many
    # A batch is smaller where there are few samples in all. On held-out training campaigns, two million samples in 60
    # steps are worth 0.02 to 0.04 AUC less than in 900; half as many again are worth nothing.
    min_steps: AtLeastOne = 800
    lr: Positive = 0.005  # Adam
    # Of the square of embeddings, basis and own weights: a normal prior of all of them. On held-out training campaigns
    # of kuairand and ml1m from 1e-6 to 1e-5 within 0.003 AUC.
    l2: NotNegative = 3e-6
    rank: AtLeastOne = 64  # dimensions of the basis; 128 were no better


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """Fine-tuning for one campaign (paper section 3.5, online stage)."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    negatives_per_seed: AtLeastOne = 20  # the paper's 1:20
    min_seeds: AtLeastOne = 10  # matched in the pool; fewer cannot be split and tell nothing
    # "head": the campaign's own weights alone, fitted in one go under the prior that joint training found; "adam": all
    # parameters, as published, with lr and embedding_lr below.
    optimizer: Literal["head", "adam"] = "head"
    lr: NotNegative = 0.001
    embedding_lr: NotNegative = 0.001
    batch_size: AtLeastOne = 512
    max_epochs: AtLeastZero = 6  # 0 keeps the general model
    patience: AtLeastOne = 2  # epochs without gain on held-out seeds before adapting stops
    # With adam: inverse L2 penalty (scikit-learn's C) of the campaign's own regression, whose weights go to
    # the linear term; 0 leaves it out. On held-out training campaigns of kuairand it brings 0.007 AUC and 4% of P@5%.
    ridge: Annotated[float, Field(ge=0)] = 0.03
    parts: Annotated[int, Field(ge=2)] = 5  # the seeds are cut into; a fold holds one of them out
    enough_held_out_seeds: AtLeastZero = 200  # folds are added until so many seeds, over all folds, have judged


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # The C++ scorer, on a CPU (native), TorchScript in float32, or in half precision, for GPUs (bfloat16); auto is
    # native on a CPU, bfloat16 on a GPU. What is best is scored again by TorchScript in float32 on the CPU, so the
    # audience does not depend on the choice.
    engine: Literal["auto", "native", "torchscript", "bfloat16"] = "auto"
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    # Users a batch; 0: 524,288, but 8,192 for what torch scores on a CPU (stays in L2).
    batch_size: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0  # of the CPU, for adapting too; 0: all the process may use


@dataclass(frozen=True, kw_only=True)
class TorchServeConfig:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    archive: Path = Path("model_store/lookalike.mar")
    # Of both together as many expansions run at once. `lookalike serve` takes up changes on SIGHUP.
    instances: AtLeastOne = 1  # of TorchServe: one that dies takes its own workers' jobs along, and no others
    workers: AtLeastOne = 1  # of each
    # Silence between two progress messages before the worker counts as dead.
    response_timeout_seconds: AtLeastOne = 300
    startup_timeout_seconds: AtLeastOne = 120


@dataclass(frozen=True, kw_only=True)
class RealtimeConfig:
    """ScoreUsers: given users, scored at once by an audience's model."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # What scores: processes of our own, or a second model in TorchServe, which takes twice as long (docs/scoring.md).
    # Each worker has a core to itself at most, and takes 0.25 GB beside its models.
    host: Literal["off", "process", "torchserve"] = "off"
    workers: AtLeastOne = 1  # in all; with torchserve, of each instance
    cache_mib: AtLeastOne = 512  # of audiences' models, in each worker; those used last stay
    max_waiting: AtLeastOne = 64  # requests for each worker; more are refused


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    listen: str = "127.0.0.1:8500"  # port 0: any free one, printed at start
    # PEM files, read again when they change: the server's chain and key, and the authorities whose client certificates
    # are asked for besides a token. Without the last, a token is enough.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None  # `lookalike token` keeps it; default: tokens.json in data_dir
    audit_log: Path | None = None  # default: audit.jsonl in data_dir
    # Neither TLS nor tokens: whoever reaches the port may do everything. On a loopback address only.
    insecure: bool = False
    data_dir: Path = Path("lookalike-data")  # operations.db, jobs/, audiences/
    # postgresql://user@host/database: several servers may then share it, and data_dir with it. Empty: operations.db.
    database_url: str = ""
    runtime: Literal["torchserve", "inprocess"] = "torchserve"
    # Where a request's `seeds_path` may point: below the folder in it that is named as the tenant. Without it such
    # requests are refused; without tokens there is one tenant, whose folder it is.
    seeds_dir: Path | None = None
    max_queued: AtLeastOne = 1000  # of all tenants
    # After so long without a sign of life from the server that runs an operation, another one takes it over.
    lease_seconds: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 15.0
    operation_days: NotNegative = 30.0  # done operations are forgotten after so long; 0: never
    audience_days: NotNegative = 0.0  # audiences are removed after so long; 0: never
    max_attempts: AtLeastOne = 5  # runs of one job before a worker that keeps dying fails it
    # Runs of one job that ended with their server before it is failed. More, for a server that dies takes all its jobs
    # along, and mostly for no fault of theirs; one that is stopped properly costs none.
    max_lost_runs: AtLeastOne = 10
    max_message_mib: AtLeastOne = 64
    page_size: AtLeastOne = 1000
    # A server that is told to end takes no more orders, and waits so long for what runs; then it hands that over, to
    # others or to the next start. With the grace for calls and TorchServe's own end, 30 s: what Kubernetes gives.
    drain_seconds: NotNegative = 15.0
    shutdown_grace_seconds: Annotated[float, Field(ge=0)] = 10.0  # for calls, after that
    # Users kept beside an audience for those who opt out, and for larger sizes, where a request does not say: a share
    # of its size, but from so many to so many. A twentieth lasts about a year if one in a thousand opts out every week.
    reserve_share: Share = 0.05
    reserve_least: AtLeastZero = 1000
    reserve_most: AtLeastZero = 1_000_000
    # Overlaps and changes of fewer users are not told; 0: all are. Whoever may ask for them may read the members too:
    # it is for figures that are passed on.
    privacy_floor: AtLeastZero = 0
    # Prometheus metrics over HTTP, at /metrics; empty: none. Another server on this machine needs another port.
    metrics_listen: str = "127.0.0.1:8501"
    log_format: Literal["text", "json"] = "text"
    otlp_endpoint: str = ""  # where traces go, by gRPC: http://127.0.0.1:4317; empty: there are none


@dataclass(frozen=True, kw_only=True)
class TenantQuota:
    """What one tenant may; None: as everyone."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    queued: AtLeastOne | None = None
    running: AtLeastOne | None = None
    per_day: AtLeastOne | None = None
    weight: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class QuotasConfig:
    """What every tenant may, and who may more or less."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    queued: AtLeastOne = 1000  # operations
    running: AtLeastZero = 0  # at once; more wait in the queue; 0: as many as there are workers
    per_day: AtLeastZero = 0  # accepted from midnight to midnight UTC; 0: no limit
    weight: Positive = 1.0  # share of the workers while several tenants want them
    tenants: dict[str, TenantQuota] = field(default_factory=dict)  # by name


@dataclass(frozen=True, kw_only=True)
class Config:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    torchserve: TorchServeConfig = field(default_factory=TorchServeConfig)
    realtime: RealtimeConfig = field(default_factory=RealtimeConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    quotas: QuotasConfig = field(default_factory=QuotasConfig)


def available_threads() -> int:
    """Cores this process may run on. A container's quota of time does not show here: set `scoring.threads` there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_config(path: Path | None = None, overrides: Sequence[str] = (), *, base: Config | None = None) -> Config:
    """The tree from a YAML file (`base`, or the defaults, where it is silent) with `section.key=value` on top.

    Raises:
        InvalidInput: no such file, not YAML, an unknown key, or a value of a wrong type; `field` names the key.
    """
    tree = _read(path) if path is not None else {}
    for override in overrides:
        name, separator, value = override.partition("=")
        section, dot, key = name.partition(".")
        if not (separator and dot):
            raise InvalidInput(f"'{override}' is not of the form section.key=value", field=name)
        try:
            _section(tree, section)[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InvalidInput(f"{name}: '{value}' is not YAML", field=name) from error
    for section, values in asdict(base).items() if base is not None else ():
        tree[section] = values | _section(tree, section)
    return parse(Config, tree, field_prefix="config")


def _read(path: Path) -> dict[Any, Any]:
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise InvalidInput(f"cannot read the configuration {path}: {error.strerror}", field="config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not YAML: {error}", field="config") from error
    if not isinstance(tree, dict):
        raise InvalidInput(f"{path} must hold a mapping of sections", field="config")
    return {name: {} if section is None else section for name, section in tree.items()}  # None: an empty heading


def _section(tree: dict[Any, Any], name: str) -> dict[Any, Any]:
    section = tree.setdefault(name, {})
    if not isinstance(section, dict):
        raise InvalidInput(f"'{name}' is not a section of mappings", field=name)
    return section


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Kept, for making one takes a hundred times as long as using it."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def parse(kind: type[_T], data: Any, *, field_prefix: str) -> _T:
    """Plain data (from JSON or YAML) as a dataclass of ours, checked field by field.

    Raises:
        InvalidInput: an unknown or missing key, or a value of a wrong type; `field` is its dotted path.
    """
    try:
        checked: _T = _adapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([field_prefix, *map(str, first["loc"])])
        raise InvalidInput(f"{where}: {first['msg']} (got {first['input']!r})", field=where) from error
    return checked
