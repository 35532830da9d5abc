from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from processes import child, wait_until

from lookalike import errors
from lookalike.cli import display, exits
from lookalike.cli.app import app, run
from lookalike.cli.child import ServerProcess
from lookalike.config import Config, load_config
from lookalike.dataset.layout import Dataset
from lookalike.errors import InvalidInput, LookalikeError, Unavailable
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.receipt import Receipt

# What is tested here is the way, not how good the model is. Adaptation's settings travel with the checkpoint.
QUICK: tuple[str, ...] = (
    "--set",
    "training.max_samples=2048",
    "--set",
    "training.support_size=64",
    "--set",
    "training.query_size=64",
)
QUICK += ("--set", "adaptation.max_epochs=1", "--set", "adaptation.enough_held_out_seeds=1")


def lookalike(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lookalike.cli", *map(str, arguments)]


def commands() -> list[list[str]]:
    def within(command: Any, path: list[str]) -> list[list[str]]:
        below = getattr(command, "commands", {}).items()
        return [path, *(found for name, sub in below for found in within(sub, [*path, name]))]

    return within(typer.main.get_command(app), [])


@pytest.fixture(scope="module")
def checkpoint(sample_dataset: Path, sample_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A general model of the sample, trained for a moment by the command line itself."""
    path = tmp_path_factory.mktemp("cli") / "general"
    assert run(["train", str(sample_dataset), "--pool", str(sample_pool), "--output", str(path), *QUICK]) == 0
    return path


# ---------------------------------------------------------------------------------------------------- help and errors


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_helps(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: lookalike" in shown
    documented = shown.split("Options:")[0].splitlines()
    assert any(line.strip() and not line.startswith("Usage:") for line in documented), "says nothing of what it does"


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from lookalike.cli.app import run; assert run(['train', '--help']) == 0; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'grpc', 'duckdb', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lookalike ")


CODES = {
    errors.InternalError: 1,
    errors.InvalidInput: 2,
    errors.SchemaError: 2,
    errors.EmptySeeds: 2,
    errors.NotFound: 3,
    errors.AlreadyExists: 4,
    errors.FailedPrecondition: 5,
    errors.ResourceExhausted: 6,
    errors.Unavailable: 7,
    errors.DataCorrupted: 8,
    errors.Unauthenticated: 9,
    errors.Cancelled: 130,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_error_has_its_exit_code(kind: type[LookalikeError], code: int) -> None:
    assert exits.exit_code(kind("x")) == code
    assert f"{code} " in exits.SUMMARY


def test_a_defect_is_one_too_and_says_so() -> None:
    assert exits.exit_code(KeyError("x")) == 1
    assert "a defect; --debug shows where" in exits.describe(KeyError("x"))


def test_a_machine_s_refusal_names_the_file() -> None:
    assert exits.describe(PermissionError(13, "Permission denied", "/x")) == "error: Permission denied: /x"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trian"], 2, "No such command"),
        (["train"], 2, "Missing"),
        (["ingest", "nowhere.parquet", "--output", "pool"], 3, "nowhere.parquet"),
        (["train", "nowhere", "--pool", "nowhere", "--output", "general"], 3, "nowhere"),
        (["config", "show", "--set", "training.seeds=1"], 2, "training.seeds"),
        (["config", "show", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["archive", "--checkpoint", "nowhere"], 3, "nowhere"),
        (["verify", "nowhere"], 3, "nowhere"),
        (["dataset", "get", "netflix"], 3, "ml1m"),
        (["simulate", "out", "--users", "3"], 2, "200"),
        (["simulate", "out", "--pool"], 2, "lean or tencent"),
        (["simulate", "out", "--profile", "lean", "--pool", "--campaigns", "9"], 2, "not for --pool"),
        (["simulate", "out", "--benchmark", "--users", "9"], 2, "--knob users"),
        (["simulate", "out", "--benchmark", "--preset", "hard"], 2, "independent"),
        (["simulate", "out", "--benchmark", "--knob", "seed=9"], 2, "seeds"),
        (["simulate", "out", "--preset", "shared"], 2, "for --benchmark"),
        (["client", "expand", "--campaign", "a", "-k", "1"], 2, "--seeds"),
        (["client", "get", "nothing"], 2, "neither"),
        (["client", "list", "--server", "127.0.0.1:1", "--timeout", "0.1"], 7, "connect"),
        (["client", "list", "--server", "example.com:8500"], 2, "token_file"),
        (["client", "list", "--token-file", "nowhere"], 3, "nowhere"),
        (["token", "create", "--tenant", "shop", "--scope", "all"], 2, "expand, read, score, delete"),
        (["token", "create", "--tenant", "a/b", "--scope", "read"], 2, "a/b"),
        (["token", "create", "--tenant", "shop", "--scope", "read", "--expires", "90"], 2, "90d"),
        (["token", "revoke", "0123456789ab"], 3, "token list"),
    ],
)
def test_a_mistake_is_told_in_a_line_or_two(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) <= 4  # usage errors show the usage, too
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--set", "nothing", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_what_exists_is_not_overwritten(
    sample_dataset: Path, sample_pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = str(sample_dataset / "users.parquet")
    assert run(["ingest", users, "--output", str(sample_pool)]) == 4
    assert run(["train", str(sample_dataset), "--pool", str(sample_pool), "--output", str(sample_pool)]) == 4
    assert capsys.readouterr().err.count("exists") == 2


def test_the_configuration_shown_is_one_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show"]) == 0
    path = tmp_path / "lookalike.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == Config()
    assert run(["config", "show", "--config", str(path), "--set", "training.epochs=3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["epochs"] == 3


def test_names_and_values_of_data_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display.table([("a\x1b[2J", "x\ny"), ("b", 1000)])
    assert capsys.readouterr().out == "a\\x1b[2J  x\\ny\nb         1,000\n"
    data = {"größe\x9b[2J": ["\u202ea\x7f\n\x1b", "日本"]}
    display.print_json(data)
    shown = capsys.readouterr().out
    assert json.loads(shown) == data
    assert errors.STEERING.sub("", shown) == shown.replace("\n", "")
    assert "größe" in shown
    assert "日本" in shown
    said = exits.describe(InvalidInput("'a\x1b[2J' is none:\ngive b", field="x\x07"))
    assert said == "error: 'a\\x1b[2J' is none:\ngive b\n       (field: x\\x07, reason: INVALID_INPUT)"


# ------------------------------------------------------------------------------------------------- the way of the data


def test_from_nothing_to_a_verified_audience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["simulate", "data", "--users", "1000", "--campaigns", "10", "--string-ids"]) == 0
    assert run(["ingest", "data/users.parquet", "--output", "pool"]) == 0
    assert run(["train", "data", "--pool", "pool", "--output", "general", *QUICK]) == 0
    assert run(["ingest", "data/users.parquet", "--output", "later", "--schema", "general"]) == 0
    campaign = str(Dataset.open(Path("data")).campaign_ids("test")[0])
    capsys.readouterr()
    order = ["expand", "--checkpoint", "general", "--pool", "later", "--dataset", "data", "--campaign", campaign]
    assert run([*order, "-k", "50", "--output", "audience", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    receipt = Receipt.read(Path("audience"))
    assert shown == {"audience": "audience", **receipt.to_json()}
    assert (receipt.k, receipt.seeds.not_in_pool, receipt.users_scored + receipt.users_skipped) == (50, 0, 1000)
    assert run(["verify", "audience"]) == 0
    assert run([*order, "-k", "51", "--output", "audience"]) == 4

    excluded = pq.read_table("audience/audience.parquet")["user_id"].to_pylist()
    Path("some.txt").write_text("\n".join([*excluded[:30], "nobody"]))
    pq.write_table(pa.table({"user_id": excluded[20:]}), "more.parquet")
    some = ["--filter", "gender in ('gender_0')", "--exclude", "some.txt", "--exclude", "more.parquet"]
    assert run([*order, "-k", "50", "--output", "others", *some]) == 0
    shown = capsys.readouterr().out
    assert "users filtered" in shown
    assert "61 given, 50 matched, 1 not in the pool" in shown
    assert not set(excluded) & set(pq.read_table("others/audience.parquet")["user_id"].to_pylist())
    assert run(["verify", "others"]) == 0
    assert run([*order, "-k", "50", "--filter", "gender = 'x'"]) == 2
    assert "field: filter" in capsys.readouterr().err

    members = pq.read_table("audience/audience.parquet")
    rank = members.column_names.index("rank")
    pq.write_table(
        members.set_column(rank, "rank", members["rank"].take(list(range(49, -1, -1)))), "audience/audience.parquet"
    )
    assert run(["verify", "audience"]) == 8


def test_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    knobs = {"users": 2000, "train_campaigns": 3, "test_campaigns": 2, "vocabulary": 0.004}
    turned = [word for name, value in knobs.items() for word in ("--knob", f"{name}={value}")]
    order = ["simulate", str(tmp_path / "d"), "--benchmark", "--preset", "few-seeds", *turned]
    assert run(order) == 0
    said = capsys.readouterr().out
    best = json.loads((tmp_path / "d" / "optimum.json").read_text())
    assert f"best AUC            {best['mean']['auc']:.4f}" in said
    assert best["knobs"] == {**best["knobs"], **knobs, "seeds": 30.0}
    assert len(Dataset.open(tmp_path / "d").campaign_ids("test")) == 2
    assert run(order) == 4


def test_a_simulated_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["simulate", str(tmp_path / "pool"), "--profile", "lean", "--users", "1234", "--pool"]
    assert run(order) == 0
    assert "1,234" in capsys.readouterr().out
    assert Pool.open(tmp_path / "pool").num_users == 1234
    assert run(order) == 4
    assert run([*order, "--overwrite"]) == 0


def test_an_expansion_adapts_as_its_checkpoint_was_tuned_for(
    sample_dataset: Path, sample_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings of the training run reach expansions through the checkpoint, and --set goes before them."""
    general = tmp_path / "general"
    arguments = ["train", str(sample_dataset), "--pool", str(sample_pool), "--output", str(general), *QUICK]
    assert run([*arguments, "--set", "adaptation.min_seeds=100000"]) == 0
    campaign = str(Dataset.open(sample_dataset).campaign_ids("test")[0])
    order = ["expand", "--checkpoint", str(general), "--pool", str(sample_pool), "--dataset", str(sample_dataset)]
    order += ["--campaign", campaign, "-k", "5", "--output", str(tmp_path / "audience")]
    assert run(order) == 2
    assert "100000" in capsys.readouterr().err
    assert run([*order, "--set", "adaptation.min_seeds=1"]) == 0


def test_ctrl_c_keeps_what_was_learnt(sample_dataset: Path, sample_pool: Path, tmp_path: Path) -> None:
    output = tmp_path / "general"
    command = lookalike("train", sample_dataset, "--pool", sample_pool, "--output", output, *QUICK)
    endless = [*command, "--set", "training.max_samples=1000000000", "--set", "training.patience=1000000"]
    with child(endless, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "samples" in process.stderr.readline()  # it has begun
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert "Traceback" not in rest
    assert not output.exists()
    assert (tmp_path / "general.training" / "state.safetensors").is_file()


# ------------------------------------------------------------------------------------------------------------- service


@pytest.fixture(scope="module")
def server(checkpoint: Path, sample_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("serve")
    arguments = ["--checkpoint", str(checkpoint), "--pool", str(sample_pool), "--insecure"]
    arguments += ["--set", f"service.data_dir={folder}", "--set", f"torchserve.archive={folder / 'lookalike.mar'}"]
    with ServerProcess(arguments, folder / "serve.log") as running:
        yield running


def test_a_client_orders_follows_and_reads(
    server: ServerProcess, sample_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = str(Dataset.open(sample_dataset).campaign_ids("test")[0])
    order = ["client", "expand", "--dataset", str(sample_dataset), "--campaign", campaign, "-k", "30"]
    where = ["--server", server.address]

    (tmp_path / "some.txt").write_text("-1\n-2\n")
    some = ["--filter", "gender = 'gender_0'", "--exclude", str(tmp_path / "some.txt")]
    assert run([*order, "--wait", "--json", *some, *where]) == 0
    audience = json.loads(capsys.readouterr().out)
    assert audience["size"] == "30"
    assert audience["filter"] == "\"gender\" = 'gender_0'"
    assert (audience["exclusions"]["given"], audience["exclusions"]["not_in_pool"]) == ("2", "2")

    assert run(["client", "members", audience["name"], "--limit", "3", *where]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split("\t") == ["rank", "user_id", "score"]
    members = pq.read_table(audience["parquet_path"])
    assert [line.split("\t")[:2] for line in lines] == [
        [str(rank), str(user)] for rank, user in zip([1, 2, 3], members["user_id"].to_pylist(), strict=False)
    ]

    assert run(["client", "members", audience["name"], "--output", str(tmp_path / "all.parquet"), *where]) == 0
    assert pq.read_table(tmp_path / "all.parquet").to_pydict() == members.to_pydict()
    assert run(["client", "members", audience["name"], "--output", str(tmp_path / "all.csv"), *where]) == 0
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 31
    assert run(["client", "members", audience["name"], "--output", str(tmp_path / "all.xlsx"), *where]) == 2
    assert run(["client", "get", audience["name"], *where]) == 0
    assert run(["verify", str(Path(audience["parquet_path"]).parent)]) == 0


def test_an_operation_is_ordered_listed_and_waited_for(
    server: ServerProcess, sample_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = str(Dataset.open(sample_dataset).campaign_ids("test")[1])
    order = ["client", "expand", "--dataset", str(sample_dataset), "--campaign", campaign, "-k", "7"]
    where = ["--server", server.address]
    assert run([*order, "--request-id", "one", *where]) == 0
    operation = capsys.readouterr().out.strip()
    assert run([*order, "--request-id", "one", *where]) == 0
    assert capsys.readouterr().out.strip() == operation
    assert run(["client", "wait", operation, *where]) == 0
    assert run(["client", "get", operation, "--json", *where]) == 0
    capsys.readouterr()
    assert run(["client", "list", "--json", "--filter", f'campaign = "{campaign}"', *where]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(found["operation"], found["state"]) for found in listed] == [(operation, "STATE_SUCCEEDED")]


def test_names_of_campaigns_in_lists_do_not_steer_the_terminal(
    server: ServerProcess, sample_dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dataset = Dataset.open(sample_dataset)
    users, labels = dataset.samples(dataset.campaign_ids("test")[0], "seed")
    pq.write_table(pa.table({"user_id": users.filter(labels == 1)}), tmp_path / "seeds.parquet")
    where = ["--server", server.address]
    order = ["client", "expand", "--campaign", "a\x1b[2J\nb", "--seeds", str(tmp_path / "seeds.parquet"), "-k", "7"]
    assert run([*order, "--wait", *where]) == 0
    capsys.readouterr()
    for listing in ("list", "audiences"):
        assert run(["client", listing, *where]) == 0
        assert any(line.endswith(r" a\x1b[2J\nb") for line in capsys.readouterr().out.split("\n"))


def test_what_the_service_refuses_has_the_same_exit_codes(
    server: ServerProcess, sample_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--server", server.address]
    assert run(["client", "get", "operations/" + "0" * 32, *where]) == 3
    campaign = str(Dataset.open(sample_dataset).campaign_ids("test")[0])
    order = ["client", "expand", "--dataset", str(sample_dataset), "--campaign", campaign, *where]
    assert run([*order, "-k", "0"]) == 2
    assert run([*order, "-k", "5", "--feature", "no_such_feature=1"]) == 2
    assert "no_such_feature" in capsys.readouterr().err


def test_sigterm_ends_the_service_and_all_it_started(checkpoint: Path, sample_pool: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--pool", str(sample_pool), "--insecure"]
    arguments += ["--set", f"service.data_dir={tmp_path}", "--set", f"torchserve.archive={tmp_path / 'lookalike.mar'}"]
    with ServerProcess(arguments, tmp_path / "serve.log") as server:
        family = psutil.Process(server.pid).children(recursive=True)
        assert any("java" in process.name() for process in family)
        assert server.stop() == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_sighup_scales_while_it_serves(
    checkpoint: Path, sample_pool: Path, sample_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def jvms() -> list[psutil.Process]:
        return [p for p in psutil.Process(server.pid).children(recursive=True) if p.name() == "java"]

    def reread(text: str, said: str) -> None:
        already = log.read_text().count(said)
        config.write_text(text)
        psutil.Process(server.pid).send_signal(signal.SIGHUP)
        wait_until(lambda: log.read_text().count(said) > already)

    log, config = tmp_path / "serve.log", tmp_path / "lookalike.yaml"
    tree = (
        f"service: {{data_dir: {tmp_path / 'data'}}}\ntorchserve: {{archive: {tmp_path / 'lookalike.mar'}, instances: "
    )
    config.write_text(tree + "1}")
    arguments = ["--checkpoint", str(checkpoint), "--pool", str(sample_pool), "--insecure", "--config", str(config)]
    with ServerProcess(arguments, log) as server:
        (first,) = jvms()
        reread(tree + "2}", "torchserve.instances is now 2")
        assert first in jvms()
        assert len(jvms()) == 2
        reread(tree + "none}", "stays as it was: config.torchserve.instances")
        assert len(jvms()) == 2
        reread(tree + "1}", "torchserve.instances is now 1")
        wait_until(lambda: len(jvms()) == 1)
        campaign = str(Dataset.open(sample_dataset).campaign_ids("test")[0])
        order = ["client", "expand", "--dataset", str(sample_dataset), "--campaign", campaign, "-k", "5", "--wait"]
        assert run([*order, "--server", server.address]) == 0
        assert "audiences/" in capsys.readouterr().out


def test_a_service_logs_json_and_shows_its_metrics(checkpoint: Path, sample_pool: Path, tmp_path: Path) -> None:
    settings = [f"data_dir={tmp_path / 'data'}", "runtime=inprocess", "log_format=json"]
    arguments = ["--checkpoint", str(checkpoint), "--pool", str(sample_pool), "--insecure"]
    for setting in settings:
        arguments += ["--set", f"service.{setting}"]
    log = tmp_path / "serve.log"
    with ServerProcess(arguments, log):
        where = next(line for line in map(json.loads, log.read_text().splitlines()) if "/metrics" in line["message"])
        with urllib.request.urlopen(where["message"].split()[-1], timeout=60) as answer:
            shown = answer.read().decode()
    assert "audience_queue_depth 0.0" in shown
    assert "audience_model_age_seconds " in shown
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(line["message"].startswith("shutting down") for line in lines)


def test_a_service_stopped_while_it_starts_leaves_nothing(checkpoint: Path, sample_pool: Path, tmp_path: Path) -> None:
    command = lookalike("serve", "--checkpoint", checkpoint, "--pool", sample_pool, "--insecure")
    command += ["--set", f"service.data_dir={tmp_path}", "--set", f"torchserve.archive={tmp_path / 'lookalike.mar'}"]
    with child(command, stdout=subprocess.PIPE) as process:
        parent = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while not (family := parent.children(recursive=True)) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
        assert process.stdout is not None
        assert process.stdout.read() == b""
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_a_service_that_cannot_start_says_why(checkpoint: Path, sample_pool: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--pool", str(sample_pool), "--set", "service.runtime=inprocess"]
    arguments += ["--set", f"service.data_dir={tmp_path}"]
    for more, said in ((["--insecure", "--set", "service.listen=0.0.0.0:1"], "loopback"), ([], "service.tls_key")):
        server = ServerProcess([*arguments, *more], tmp_path / "serve.log")
        with pytest.raises(Unavailable, match=said):
            server.__enter__()
