"""The whole graph under plain `dvc repro`: run, restore, rerun in part, kill and go on, a database that is locked.

And what `oxa run` does beyond that: artifacts at Prefect, runs and a model registry at MLflow.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pipelines import (
    FLOW,
    OUTPUTS,
    REPRO,
    Command,
    assert_same,
    change,
    contents,
    copied,
    finished,
    forget,
    locked,
    progress,
    reference,
    run,
    stages_run,
    stale,
    stopped_at_work,
    warmed,
)
from processes import PATIENCE, below, until, wait_until_gone, wait_until_left

from oxa.runtime import journal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOCKED = 20.0  # seconds


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `dvc repro` has run, from the first stage to the last."""
    return reference(tmp_path_factory, REPRO)


@pytest.fixture(scope="module")
def flowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by `oxa run`, with a Prefect server of its own, which told MLflow and registered the checkpoints."""
    return reference(tmp_path_factory, FLOW)


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Iterator[Path]:
    folder = copied(done, tmp_path / "copy")
    yield folder
    wait_until_left(folder)
    shutil.rmtree(folder)


def repro(folder: Path, *targets: str) -> set[str]:
    """Runs `dvc repro` in the folder, on targets; returns the stages that it ran."""
    return stages_run(run(folder, *warmed(*REPRO, *targets)))


def test_the_run_ends_with_a_table_of_all_checkpoints(done: Path):
    shown = run(done, "oxa", "summary")
    for name in ("base", "sft", "oxa_full"):
        assert name in shown
    assert json.loads((done / "metrics" / "summary.json").read_text())
    assert list((done / "reports").glob("*.png"))


@pytest.mark.whole
def test_dvc_shows_the_plots_and_the_difference_to_the_last_commit(copy: Path):
    run(copy, "dvc", "plots", "show")
    page = (copy / "dvc_plots" / "index.html").read_text()
    for title in ("pass@1 along RL", "reward in RL", "cross-entropy in training"):
        assert title in page
    assert list((copy / "dvc_plots" / "static").glob("*reports_ppl.png"))
    run(copy, "git", "add", "-f", "dvc.lock", "dvc.yaml", "params.yaml")
    run(copy, "git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "before")
    summary = copy / "metrics" / "summary.json"
    numbers = json.loads(summary.read_text())
    numbers["arms"]["sft"]["world"]["pass_at_1"] += 0.125
    summary.unlink()
    summary.write_text(json.dumps(numbers))
    changed = json.loads(run(copy, "dvc", "metrics", "diff", "--json"))["metrics/summary.json"]
    assert changed["arms.sft.world.pass_at_1"]["diff"] == pytest.approx(0.125)


def test_a_second_run_finds_all_done(copy: Path):
    assert repro(copy) == set()


def test_lost_outputs_come_back_from_the_cache_without_running_a_stage(copy: Path):
    before = contents(copy)
    for name in OUTPUTS:
        shutil.rmtree(copy / name)
    assert repro(copy) == set()
    assert contents(copy) == before


@pytest.mark.whole
def test_data_and_models_follow_by_a_remote_to_a_folder_of_another_path(copy: Path, tmp_path: Path):
    run(copy, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    run(copy, "dvc", "push")
    run(copy, "git", "add", "-A")
    run(copy, "git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "done")
    there = tmp_path / "elsewhere" / "project"
    run(tmp_path, "git", "clone", "-q", str(copy), str(there))
    assert not (there / "models").exists()
    run(there, "dvc", "pull")
    assert contents(there) == contents(copy)
    assert stale(there) == set()
    assert repro(there) == set()


@pytest.mark.whole
def test_changing_one_arm_reruns_only_what_hangs_on_it(copy: Path):
    change(copy, "selection.ul.oxa_full.num", 15)
    ran = repro(copy)  # a dry run cannot know which outputs will differ
    behind = {f"{stage}@oxa_full-0" for stage in ("train", "evaluate", "rlvr", "evaluate_rlvr")}
    held_out = {f"predictors@{arm}-0" for arm in ("sft", "oxa_full")}  # is what no arm learns from
    assert ran == {"selection_ul@oxa_full", "traces@oxa_full-0", "report"} | behind | held_out


@pytest.mark.whole
def test_a_new_seed_trains_and_evaluates_only_that_seed(copy: Path):
    change(copy, "seeds", [0, 1])
    kinds = ("train", "evaluate", "rlvr", "evaluate_rlvr", "predictors")
    new = {f"{stage}@{arm}-1" for stage in kinds for arm in ("sft", "oxa_full")}
    assert repro(copy) == new | {"report"}


def test_a_stage_that_fails_says_why_and_stays_stale(copy: Path):
    change(copy, "selection.ul.oxa_full.num", 10_000)
    shown = run(copy, *REPRO, code=None)
    assert "oxa: " in shown
    assert "Traceback" not in shown
    assert not (copy / "data" / "train" / "oxa_full" / "ul.parquet").exists()
    assert "selection_ul@oxa_full" in stale(copy)


@pytest.mark.parametrize(
    "stage", ["train@oxa_full-0", pytest.param("rlvr@oxa_full-0", marks=pytest.mark.whole)]
)
def test_killed_while_it_trains_it_goes_on_and_ends_with_the_same_outputs(stage: str, done: Path, copy: Path):
    forget(copy, stage)
    killed = Command(copy, *REPRO, stage)
    stopped_at_work(killed, stage)
    done_before = finished(copy, stage)
    processes = below(killed.pid)
    killed.kill()
    killed.wait()
    wait_until_gone(processes)
    wait_until_left(copy)
    again = Command(copy, *warmed(*REPRO, stage))
    seen = progress(again, stage, before=done_before)
    resumed = seen.keys() & done_before.keys()
    assert resumed
    assert all(seen[path] == done_before[path] for path in resumed)
    assert again.wait(PATIENCE) == 0, again.printed()
    assert_same(copy, done, stage)
    wait_until_left(copy)


@pytest.mark.whole
def test_two_processes_train_what_one_does(done: Path, copy: Path):
    stage = "rlvr@oxa_full-0"
    forget(copy, stage)
    shown = run(copy, *REPRO, stage, OXA_LAUNCH="torchrun --standalone --nproc-per-node 2")
    assert stages_run(shown) == {stage}
    ours, theirs = (journal.read(folder / "metrics" / "rlvr" / "oxa_full-0.jsonl") for folder in (copy, done))
    assert [(row["step"], row["name"]) for row in ours] == [(row["step"], row["name"]) for row in theirs]
    values = [[row["value"] for row in rows] for rows in (ours, theirs)]
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6)
    wait_until_left(copy)


@pytest.mark.whole
def test_a_locked_tracking_database_delays_no_stage_and_loses_nothing(copy: Path, database: Path):
    stage = "train@oxa_full-0"
    forget(copy, stage)
    change(copy, "tracking.enabled", True)
    shutil.copy(database, copy / "mlflow.db")
    with closing(sqlite3.connect(copy / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        assert repro(copy, stage) == {stage}, "it ended while the database was locked"
        assert list((copy / ".tracking").glob(f"{stage}.*")), "and is still to be sent"
        time.sleep(max(0.0, begun + LOCKED - time.monotonic()))
        other.execute("ROLLBACK")
    until(lambda: not list((copy / ".tracking").glob(f"{stage}.*")), lambda: run(copy, "oxa", "track"))
    written: dict[str, list[tuple[int, float]]] = {}
    for row in journal.read(copy / "metrics" / "train" / "oxa_full-0.jsonl"):
        written.setdefault(row["name"], []).append((row["step"], row["value"]))
    assert len(written["loss"]) == 48
    assert {name: tracked(copy, stage, name) for name in written} == written
    wait_until_left(copy)


def tracked(folder: Path, stage: str, metric: str) -> list[tuple[int, float]]:
    """All that MLflow holds of a metric in the stage's last run: (step, value)."""
    last = next(run for run in tracked_runs(folder) if run.data.tags.get("oxa.stage") == stage)
    assert last.info.status == "FINISHED"
    return [
        (entry.step, entry.value) for entry in mlflow(folder).get_metric_history(last.info.run_id, metric)
    ]


def tracked_runs(folder: Path) -> list[Run]:
    """What MLflow has of the folder, the newest run first."""
    client = mlflow(folder)
    experiment = client.get_experiment_by_name("oxa")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


def mlflow(folder: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


@pytest.mark.whole
def test_repro_alone_and_the_flow_give_the_same_outputs_and_lock_file(done: Path, flowed: Path):
    assert_same(done, flowed, "report")
    assert contents(done) == contents(flowed)
    assert lines_by_stage(done) == lines_by_stage(flowed)


@pytest.mark.whole
def test_the_flow_run_shows_what_dvc_did_the_comparison_and_its_plots(flowed: Path):
    shown = artifacts(flowed)
    did = {row["stage"]: (row["state"], row["DVC"]) for row in json.loads(shown["stages"])}
    assert did == dict.fromkeys(locked(flowed), ("Completed", "DVC: run"))
    assert shown["comparison"] == (flowed / "reports" / "table.md").read_text()
    (report,) = [one for one in tracked_runs(flowed) if one.data.tags.get("oxa.stage") == "report"]
    assert f"/runs/{report.info.run_id}/artifacts/reports/index.html" in shown["report"]
    plots = {key: data for key, data in shown.items() if key.startswith("plot-")}
    assert plots.keys() == {"plot-funnel", "plot-pass-at-k", "plot-ppl", "plot-rlvr", "plot-training"}
    for path in (flowed / "reports").glob("*.png"):
        picture = base64.b64encode(path.read_bytes()).decode()
        assert plots.pop(f"plot-{path.stem.replace('_', '-')}") == f"data:image/png;base64,{picture}"
    assert plots == {}


@pytest.mark.whole
def test_every_stages_run_at_mlflow_names_the_flow_run(flowed: Path):
    flow_run = last_flow_run(flowed)
    name = f"{flow_run['name']}-{flow_run['id'][:8]}"
    assert stage_runs(flowed) == sorted((stage, name, "FINISHED") for stage in locked(flowed))


@pytest.mark.whole
def test_the_flow_registers_its_checkpoints_and_names_a_challenger(flowed: Path):
    client, stages = mlflow(flowed), locked(flowed)
    registered = {version.tags["oxa.stage"]: version for version in client.search_model_versions()}
    assert registered.keys() == {"train@sft-0", "train@oxa_full-0"}
    for stage, version in registered.items():
        made = {out["path"]: out["md5"] for out in stages[stage]["outs"]}
        assert made[version.tags["dvc.path"]] == version.tags["dvc.md5"]
        assert version.run_id is not None
        assert client.get_run(version.run_id).data.tags["oxa.stage"] == stage
    # neither arm has learnt to solve anything: of equals the first listed is put forward, and does not beat the base
    number = int(registered["train@sft-0"].version)
    assert aliases(flowed) == {"challenger": number}
    shown = artifacts(flowed)["registry"]
    assert "2 registered as 1-2" in shown
    assert "gate: passed" not in shown
    assert re.search(rf"^\| {number} \| .* challenger \|", shown, re.MULTILINE)


@pytest.mark.whole
def test_a_champion_holds_while_the_flow_has_nothing_to_do(flowed: Path, tmp_path: Path):
    folder = copied(flowed, tmp_path / "copy")
    (held,) = mlflow(folder).search_model_versions("tags.`oxa.arm` = 'oxa_full'")
    run(folder, "oxa", "promote", str(held.version))
    before = stage_runs(folder)
    num_stages = len(locked(folder))
    printed = run(folder, *warmed(*FLOW, "--record"))
    assert f"{num_stages} stages: 0 run, {num_stages} cached" in printed
    assert stage_runs(folder) == before
    assert last_flow_run(folder) != last_flow_run(flowed)
    assert aliases(folder) == aliases(flowed) | {"champion": int(held.version)}
    shown = artifacts(folder)["registry"]
    assert "2 known already as 1-2" in shown
    assert f"against the champion, version {held.version} (oxa_full, seed 0): pass@1 " in shown
    assert re.search(rf"^\| {held.version} \| .* champion \|", shown, re.MULTILINE)
    wait_until_left(folder)
    shutil.rmtree(folder)


def artifacts(folder: Path) -> dict[str, str]:
    """What the folder's last flow run shows at its own Prefect server, by key."""
    query = "SELECT key, data FROM artifact WHERE key IS NOT NULL AND flow_run_id = ?"
    return {
        row["key"]: json.loads(row["data"]) for row in prefect(folder, query, last_flow_run(folder)["id"])
    }


def last_flow_run(folder: Path) -> dict[str, Any]:
    return prefect(folder, "SELECT id, name FROM flow_run ORDER BY start_time DESC")[0]


def prefect(folder: Path, query: str, *values: str) -> list[dict[str, Any]]:
    """Rows of the database of the folder's Prefect server, which has ended."""
    with closing(sqlite3.connect(f"file:{folder}/.prefect/prefect.db?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query, values)]


def stage_runs(folder: Path) -> list[tuple[str, str, str]]:
    """Stage, flow run and status of all runs at MLflow but those of registering."""
    tagged = [(run.data.tags, run.info.status) for run in tracked_runs(folder)]
    return sorted(
        (tags["oxa.stage"], tags.get("oxa.pipeline_run", "none"), status)
        for tags, status in tagged
        if tags["oxa.kind"] != "register"
    )


def aliases(folder: Path) -> dict[str, int]:
    """Alias -> number of the version that it stands for."""
    numbers = mlflow(folder).get_registered_model("oxa").aliases
    return {alias: int(number) for alias, number in numbers.items()}


def lines_by_stage(folder: Path) -> list[str]:
    """dvc.lock, its stages sorted: they stand there in the order in which they ended."""
    return sorted(re.split(r"\n(?=  \S)", (folder / "dvc.lock").read_text().rstrip("\n")))
