"""The gate on generations whose truth is known, on a real SQLite MLflow and through a real `mlflow server`."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from servers import postgresql
from workspaces import Lock, generations, make_workspace, write

from flows import promote
from oxa.config.operations import Registry
from oxa.config.params import Params, load_params
from oxa.config.report import Report
from oxa.errors import ConfigError, DataError
from oxa.records import schemas, tables
from oxa.runtime import guard
from oxa.runtime.child import Child
from oxa.tracking import lineage, registry

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load_params(ROOT / "params.yaml")
SETTINGS = Registry(model="tiny")
DRAWN = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 80}


def params(*arms: str, seeds: tuple[int, ...] = (0,), **of_registry: Any) -> Params:
    changed = {
        "arms": list(arms),
        "seeds": list(seeds),
        "registry": Registry(model="tiny", **of_registry),
        "report": Report(baseline=arms[0], resamples=300),
    }
    return PARAMS.model_copy(update=changed)


def settle(run_params: Params, lock: Lock) -> promote.Outcome:
    return promote.settle(run_params, lock, "c0ffee", False)


def num_runs() -> int:
    from oxa.tracking import connection

    return len(connection.find_runs("oxa", {"oxa.kind": "register"}))


def test_a_clear_winner_becomes_champion_over_the_base(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.3, "oxa-0": 0.9})
    outcome = settle(params("sft", "oxa"), lock)
    assert outcome.versions == {"train@sft-0": 1, "train@oxa-0": 2}
    assert (outcome.challenger, outcome.champion, outcome.passed) == (2, 2, True)
    champion = registry.find(SETTINGS, "champion")
    assert champion.aliases == ("challenger", "champion")
    assert champion.tags["promoted.by"] == "gate"
    assert "the base" in champion.tags["promoted.why"]
    assert "# Comparison of the arms" in champion.description
    assert "| oxa " in champion.description
    text = "\n".join(outcome.sentences)
    assert "2 registered as 1-2" in text
    assert "gate: passed; version 2 (oxa, seed 0) against the base: pass@1" in text
    row = next(line for line in outcome.table.splitlines() if line.startswith("| 2 |"))
    assert "champion, challenger" in row


def test_registering_again_changes_nothing(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.3, "oxa-0": 0.9})
    settle(params("sft", "oxa"), lock)
    before = registry.versions(SETTINGS)
    again = settle(params("sft", "oxa"), lock)
    assert (again.passed, again.champion, num_runs()) == (False, 2, 1)
    assert "the champion already" in again.sentences[-1]
    assert registry.versions(SETTINGS) == before


def test_the_first_listed_seed_is_put_forward_however_lucky_another_was(workspace: Path):
    lock = make_workspace({"base": 0.1, "sft-0": 0.4, "sft-1": 0.4, "oxa-0": 0.6, "oxa-1": 0.9})
    assert settle(params("sft", "oxa", seeds=(0, 1)), lock).challenger == 3
    assert settle(params("sft", "oxa", seeds=(1, 0)), lock).challenger == 4


def test_an_arm_is_chosen_by_its_mean_over_seeds(workspace: Path):
    lock = make_workspace({"base": 0.1, "sft-0": 0.7, "sft-1": 0.2, "oxa-0": 0.6, "oxa-1": 0.6})
    outcome = settle(params("sft", "oxa", seeds=(0, 1)), lock)
    assert outcome.challenger == outcome.versions["train@oxa-0"]


def test_an_arm_that_is_no_better_does_not_replace_the_champion(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.7, "oxa-0": 0.1})
    assert settle(params("sft", "oxa"), lock).champion == 1
    # the same answers from another checkpoint: a difference of exactly nothing
    shutil.copy("data/generations/sft-0.parquet", "data/generations/oxa-0.parquet")
    lock |= {"evaluate@oxa-0": relocked(lock, "evaluate@oxa-0")}
    outcome = settle(params("oxa", "sft"), lock)
    assert outcome.challenger == outcome.versions["train@oxa-0"]
    assert (outcome.champion, outcome.passed) == (1, False)
    nothing = r"difference \+0\.0 points, 95% interval \[-[56]\.\d, \+[56]\.\d\], not all above \+0\.0"
    assert re.search(nothing, outcome.sentences[-1])
    assert registry.find(SETTINGS, "challenger").number == 2
    assert num_runs() == 2, "the new answers are kept"


def relocked(lock: Lock, stage: str) -> Any:
    """The stage as if it had run on what lies here now."""
    step = lock[stage]
    return type(step)(
        *({path: guard.dvc_md5(Path(path)) for path in paths} for paths in (step.deps, step.outs))
    )


def test_a_champion_that_has_left_the_workspace_is_compared_by_what_it_answered(workspace: Path):
    settle(params("sft"), make_workspace({"base": 0.1, "sft-0": 0.6}))
    for folder in ("models", "data"):
        shutil.rmtree(folder)
    better = make_workspace({"base": 0.1, "new-0": 0.95})
    outcome = settle(params("new"), better)
    assert "against the champion, version 1 (sft, seed 0): pass@1 " in outcome.sentences[-2]
    assert (outcome.champion, outcome.passed) == (2, True)
    assert registry.find(SETTINGS, "1").aliases == ()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"num_problems": 40}, "evaluated on 40 and 60 problems, 40 of them the same"),
        ({"num_samples": 8}, "evaluated with 8 and 4 samples a problem of world"),
        ({"benchmarks": ("world", "gsm8k")}, "evaluated on 120 and 60 problems, 60 of them the same"),
    ],
)
def test_a_champion_with_another_exam_is_not_compared(
    workspace: Path,
    changed: dict[str, Any],
    why: str,
):
    settle(params("sft"), make_workspace({"base": 0.1, "sft-0": 0.6}))
    outcome = settle(params("new"), make_workspace({"base": 0.1, "new-0": 0.95}, **changed))
    assert (outcome.challenger, outcome.champion, outcome.passed) == (2, 1, False)
    assert why in outcome.sentences[-1]
    assert outcome.sentences[-1].endswith("`oxa promote 2` makes it champion by hand")
    if "benchmarks" in changed:  # the gate's own benchmark is the same
        assert settle(
            params("new", benchmark="world"), make_workspace({"base": 0.1, "new-0": 0.95}, **changed)
        ).passed


def test_a_champion_drawn_at_another_temperature_is_not_compared(workspace: Path):
    settle(params("sft"), make_workspace({"base": 0.1, "sft-0": 0.6}))
    run_params = params("new")
    cooler = run_params.model_copy(
        update={"evaluate": run_params.evaluate.model_copy(update={"temperature": 0.6})}
    )
    outcome = settle(cooler, make_workspace({"base": 0.1, "new-0": 0.95}))
    assert not outcome.passed
    assert "evaluated with temperature 0.6 and 1" in outcome.sentences[-1]


def test_a_champion_whose_answers_are_lost_is_not_compared(workspace: Path):
    settle(params("sft"), make_workspace({"base": 0.1, "sft-0": 0.6}))
    shutil.rmtree("mlruns")
    outcome = settle(params("new"), make_workspace({"base": 0.1, "new-0": 0.95}))
    assert not outcome.passed
    assert "what that answered is not to be had; `oxa promote 2`" in outcome.sentences[-1]


def test_a_lead_must_be_larger_than_min_gain(workspace: Path):
    lock = make_workspace({"base": 0.3, "sft-0": 0.6})
    assert not settle(params("sft", min_gain=0.5), lock).passed
    assert registry.with_alias(registry.versions(SETTINGS), "champion") is None
    assert num_runs() == 1
    assert settle(params("sft", min_gain=0.1), lock).passed
    assert num_runs() == 2, "the decision is kept though no answer is new"


def test_the_gate_looks_at_its_benchmark_and_metric_only(workspace: Path):
    lock = make_workspace({"base": 0.1, "sft-0": 0.5, "oxa-0": 0.5}, benchmarks=("hard", "world"))
    for name, hard, world in (("sft-0", 0.9, 0.1), ("oxa-0", 0.3, 0.9)):
        table = generations({"hard": [hard] * 60, "world": [world] * 60}, num_samples=4)
        tables.write(Path(f"data/generations/{name}.parquet"), table, schemas.GENERATIONS)
        lock |= {f"evaluate@{name}": relocked(lock, f"evaluate@{name}")}
    assert settle(params("sft", "oxa"), lock).challenger == 2
    assert settle(params("sft", "oxa", benchmark="hard"), lock).challenger == 1
    outcome = settle(params("sft", "oxa", benchmark="other"), lock)
    assert "nothing was evaluated on registry.benchmark other" in outcome.sentences[-1]
    # pass@4 is even where one of four samples of each problem is right
    pairs = {"hard": [0.0, 1.0] * 30, "world": [0.0, 1.0] * 30}
    tables.write(
        Path("data/generations/sft-0.parquet"), generations(pairs, num_samples=4), schemas.GENERATIONS
    )
    lock |= {"evaluate@sft-0": relocked(lock, "evaluate@sft-0")}
    assert settle(params("sft", "oxa", metric="pass@4"), lock).challenger == 2
    with pytest.raises(ConfigError, match="pass@5 needs 5 samples of every problem, found 4"):
        settle(params("sft", "oxa", metric="pass@5"), lock)


def test_the_gate_waits_for_all_arms_and_registers_what_is_there(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.3, "oxa-0": 0.9})
    write("models/sft-0/config.json", "edited")
    edited = settle(params("sft", "oxa"), lock)
    assert edited.versions == {"train@oxa-0": 1}
    assert (edited.challenger, edited.champion) == (None, None)
    assert "not registered: train@sft-0: models/sft-0 is not what train@sft-0 wrote" in edited.sentences[1]
    shutil.rmtree("models/sft-0")
    assert "models/sft-0 is gone" in settle(params("sft", "oxa"), lock).sentences[1]
    assert "train@third-0 has not run" in settle(params("oxa", "third"), lock).sentences[1]
    assert num_runs() == 1


def test_what_was_not_evaluated_is_registered_without_a_gate(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.9})
    bare = {name: step for name, step in lock.items() if not name.startswith("evaluate")}
    outcome = settle(params("sft"), bare)
    assert outcome.versions == {"train@sft-0": 1}
    assert "evaluate@sft-0 has not run" in outcome.sentences[-1]
    assert num_runs() == 0
    no_base = {name: step for name, step in lock.items() if name != "evaluate_base"}
    outcome = settle(params("sft"), no_base)
    assert outcome.challenger == 1
    assert "no champion yet, and the base is not evaluated" in outcome.sentences[-1]
    assert settle(params("sft"), lock).passed


def test_evaluations_that_differ_among_themselves_are_not_compared(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.3, "oxa-0": 0.9})
    table = generations({"world": [0.9] * 60}, num_samples=8)
    tables.write(Path("data/generations/oxa-0.parquet"), table, schemas.GENERATIONS)
    lock |= {"evaluate@oxa-0": relocked(lock, "evaluate@oxa-0")}
    outcome = settle(params("sft", "oxa"), lock)
    assert len(outcome.versions) == 2
    assert outcome.challenger is None
    assert "train@sft-0 and train@oxa-0 were evaluated with 4 and 8 samples" in outcome.sentences[-1]


def test_an_evaluation_of_an_earlier_checkpoint_does_not_count(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.9})
    write("models/sft-0/model.safetensors", "trained anew")
    lock |= {"train@sft-0": relocked(lock, "train@sft-0")}
    outcome = settle(params("sft"), lock)
    assert outcome.versions == {"train@sft-0": 1}
    assert "evaluate@sft-0 was made from another models/sft-0" in outcome.sentences[-1]
    assert outcome.challenger is None


def test_a_version_keeps_its_table_when_an_evaluation_is_missing_later(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.9})
    settle(params("sft"), lock)
    before = registry.find(SETTINGS, "1").description
    assert "| sft " in before
    Path("data/generations/sft-0.parquet").unlink()
    outcome = settle(params("sft"), lock)
    assert "data/generations/sft-0.parquet is gone" in outcome.sentences[-1]
    assert (outcome.champion, registry.find(SETTINGS, "1").description) == (1, before)


def test_the_run_keeps_answers_table_and_parameters(workspace: Path):
    from oxa.tracking import connection

    lock = make_workspace({"base": 0.2, "sft-0": 0.9})
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    settle(params("sft"), lock)
    run = connection.find_runs("oxa", {"oxa.kind": "register"})[0]
    client = connection.client()
    artifacts = {
        name: Path(client.download_artifacts(run.info.run_id, name)).read_text()
        for name in names(client, run)
    }
    assert artifacts.keys() == {"decision.txt", "params.yaml", "results/sft-0.json", "table.md"}
    assert artifacts["params.yaml"] == (ROOT / "params.yaml").read_text()
    assert "gate: passed" in artifacts["decision.txt"]
    counts = json.loads(artifacts["results/sft-0.json"])["counts"]["world"]
    rows = tables.read(Path("data/generations/sft-0.parquet"), schemas.GENERATIONS).to_pylist()
    right = [row for row in rows if row["problem_id"] == "world007" and row["verdict"] == "correct"]
    assert counts["world007"] == [4, len(right)]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["gate.low"] > 0


def names(client: Any, run: Any, under: str | None = None) -> list[str]:
    paths: list[str] = []
    for entry in client.list_artifacts(run.info.run_id, under):
        paths += names(client, run, entry.path) if entry.is_dir else [entry.path]
    return paths


def test_registering_reads_dvcs_own_lock_file(workspace: Path):
    lock = make_workspace({"base": 0.2, "sft-0": 0.9})
    run = {"check": True, "env": os.environ | {"DVC_NO_ANALYTICS": "1"}, "stdout": subprocess.DEVNULL}
    subprocess.run(["git", "init", "-q"], **run)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], **run)
    with pytest.raises(DataError, match=r"^dvc\.lock: no such file"):
        promote.register(params("sft"))
    stages = {
        name: {"deps": entries(step.deps), "outs": entries(step.outs), "cmd": "true"}
        for name, step in lock.items()
    }
    run_params = params("sft")
    stages["evaluate@sft-0"]["params"] = {"params.yaml": {"evaluate": run_params.evaluate.model_dump()}}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    cooler = run_params.model_copy(
        update={"evaluate": run_params.evaluate.model_copy(update={"temperature": 0.6})}
    )
    with pytest.raises(DataError, match="`evaluate` has changed since evaluate@sft-0 ran; `oxa run` first"):
        promote.register(cooler)
    outcome = promote.register(run_params)
    assert (outcome.versions, outcome.champion) == ({"train@sft-0": 1}, 1)
    assert registry.find(SETTINGS, "1").tags.get("git.commit") is None, "nothing is committed"


def entries(paths: dict[str, str]) -> list[dict[str, str]]:
    return [{"path": path, "hash": "md5", "md5": md5} for path, md5 in paths.items()]


@pytest.fixture(scope="module")
def server(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `mlflow server`."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (
        (folder / "log").open("w") as log,
        Child(command, cwd=folder, env=environment, stdout=log, stderr=log) as child,
    ):
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert child.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield address


@pytest.mark.whole
def test_all_of_it_works_through_a_server(server: str, workspace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    register_compare_and_promote()
    assert not (workspace / "mlruns").exists(), "the server keeps all"


@pytest.mark.whole
def test_all_of_it_works_on_postgresql(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    with postgresql() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        register_compare_and_promote()
        champion = registry.find(SETTINGS, "champion")
        registry.describe(SETTINGS, champion, "a line of the table\n" * 1000)
        assert len(registry.find(SETTINGS, "champion").description) <= registry.MAX_DESCRIPTION


def register_compare_and_promote() -> None:
    first = settle(params("sft", "oxa"), make_workspace({"base": 0.1, "sft-0": 0.3, "oxa-0": 0.7}))
    assert (first.versions, first.champion) == ({"train@sft-0": 1, "train@oxa-0": 2}, 2)
    shutil.rmtree("data")
    shutil.rmtree("models")
    second = settle(params("new"), make_workspace({"base": 0.1, "new-0": 0.95}))
    assert "against the champion, version 2 (oxa, seed 0): pass@1" in second.sentences[-2]
    assert (second.versions, second.champion) == ({"train@new-0": 3}, 3)
    assert "data/train/new.parquet" in lineage.of(SETTINGS, "champion")
    assert "gone" in lineage.of(SETTINGS, "2")
    assert lineage.versions_from(SETTINGS, "data/train/oxa.parquet").startswith("version 2 (oxa, seed 0)")
    assert registry.path_of(SETTINGS, "champion") == Path("models/new-0")
    assert registry.promote(SETTINGS, "1").aliases == ("champion",)
    with pytest.raises(DataError, match="no version '9'"):
        registry.promote(SETTINGS, "9")


def test_a_lead_within_the_noise_does_not_pass():
    settings, section = Registry(), Report(resamples=300)

    def answers(num_right: int) -> promote.Results:
        return promote.Results({"w": {str(place): (1, place < num_right) for place in range(40)}}, DRAWN)

    ahead = promote.judge(settings, section, ("a", answers(21)), ("b", answers(20)))
    assert ahead.difference
    assert ahead.difference.difference > 0
    assert not ahead.passed, "one problem of forty"
    assert promote.judge(settings, section, ("a", answers(35)), ("b", answers(20))).passed


COUNTS = st.integers(2, 12).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, 4), min_size=size, max_size=size), min_size=2, max_size=2)
)


@given(COUNTS, st.sampled_from(["pass@1", "pass@3"]), st.sampled_from([0.0, 0.1]))
@hypothesis_settings(max_examples=60)
def test_of_two_checkpoints_at_most_one_replaces_the_other(
    counts: list[list[int]], metric: str, min_gain: float
):
    settings = Registry(metric=metric, min_gain=min_gain)
    section = Report(resamples=100)
    a, b = (
        promote.Results({"w": {str(place): (4, right) for place, right in enumerate(rights)}}, DRAWN)
        for rights in counts
    )
    there = promote.judge(settings, section, ("a", a), ("b", b))
    back = promote.judge(settings, section, ("b", b), ("a", a))
    assert not (there.passed and back.passed)
    assert not promote.judge(settings, section, ("a", a), ("a", a)).passed
    assert promote.Results.loads(a.dumps()) == a
    assert (a.digest() == b.digest()) == (a == b)
