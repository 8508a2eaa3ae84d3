"""The whole graph under plain `dvc repro`: run, restore, rerun in part, kill and go on, a database that is locked."""

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pipelines import (
    FLOW,
    OUTPUTS,
    PATIENCE,
    REPRO,
    Command,
    assert_same,
    at_work,
    below,
    change,
    contents,
    copied,
    finished,
    forget,
    is_stale,
    reference,
    run,
    stages_run,
    until,
    wait_until_gone,
    wait_until_left,
)

from oxa import journal

LOCKED = 20.0  # seconds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `dvc repro` has run, from the first stage to the last."""
    return reference(tmp_path_factory, REPRO)


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Iterator[Path]:
    folder = copied(done, tmp_path / "copy")
    yield folder
    shutil.rmtree(folder)


def repro(folder: Path, *targets: str) -> set[str]:
    """Runs `dvc repro`; returns the stages that it ran."""
    return stages_run(run(folder, *REPRO, *targets))


def test_the_run_ends_with_a_table_of_all_checkpoints(done: Path):
    shown = run(done, "oxa", "summary")
    for name in ("base", "sft", "oxa_full"):
        assert name in shown
    assert json.loads((done / "metrics" / "summary.json").read_text())
    assert list((done / "reports").glob("*.png"))


def test_a_second_run_finds_all_done(copy: Path):
    assert repro(copy) == set()


def test_lost_outputs_come_back_from_the_cache_without_running_a_stage(copy: Path):
    before = contents(copy)
    for name in OUTPUTS:
        shutil.rmtree(copy / name)
    assert repro(copy) == set()
    assert contents(copy) == before


def test_changing_one_arm_reruns_only_what_hangs_on_it(copy: Path):
    change(copy, "selection.arms.oxa_full.ul.num", 15)
    ran = repro(copy)  # a dry run cannot know which outputs will differ
    assert ran == {"selection@oxa_full", "train@oxa_full-0", "evaluate@oxa_full-0", "report"}


def test_a_new_seed_trains_and_evaluates_only_that_seed(copy: Path):
    change(copy, "seeds", [0, 1])
    new = {f"{stage}@{arm}-1" for stage in ("train", "evaluate") for arm in ("sft", "oxa_full")}
    assert repro(copy) == new | {"report"}


def test_a_stage_that_fails_says_why_and_stays_stale(copy: Path):
    change(copy, "selection.arms.oxa_full.ul.num", 10_000)
    shown = run(copy, *REPRO, code=None)
    assert "oxa: " in shown
    assert "Traceback" not in shown
    assert not (copy / "data" / "train" / "oxa_full.parquet").exists()
    assert is_stale(copy, "selection@oxa_full")


def test_killed_while_it_trains_it_goes_on_and_ends_with_the_same_outputs(done: Path, copy: Path):
    stage = "train@oxa_full-0"
    forget(copy, stage)
    killed = Command(copy, *REPRO, stage)
    at_work(killed, stage)
    processes = below(killed.pid)
    killed.kill()
    killed.wait()
    wait_until_gone(processes)
    wait_until_left(copy)
    done_before = finished(copy, stage)
    again = Command(copy, *REPRO, stage)
    second = at_work(again, stage, before=done_before)
    kept = second.done.keys() & done_before.keys()
    assert kept
    assert all(second.done[path] == done_before[path] for path in kept)
    assert again.wait(PATIENCE) == 0, again.printed()
    assert_same(copy, done, stage)
    wait_until_left(copy)


def test_a_locked_tracking_database_delays_no_stage_and_loses_nothing(copy: Path):
    stage = "train@oxa_full-0"
    forget(copy, stage)
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
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("oxa")
    assert experiment is not None
    query = f"tags.`oxa.stage` = '{stage}'"
    last = client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time DESC"])[0]
    assert last.info.status == "FINISHED"
    return [(entry.step, entry.value) for entry in client.get_metric_history(last.info.run_id, metric)]


def test_repro_alone_and_the_flow_give_the_same_outputs_and_lock_file(
    done: Path, tmp_path_factory: pytest.TempPathFactory
):
    flowed = reference(tmp_path_factory, FLOW)
    assert_same(done, flowed, "report")
    assert contents(done) == contents(flowed)
    assert lines_by_stage(done) == lines_by_stage(flowed)


def lines_by_stage(folder: Path) -> list[str]:
    """dvc.lock, its stages sorted: they stand there in the order in which they ended."""
    return sorted(re.split(r"\n(?=  \S)", (folder / "dvc.lock").read_text().rstrip("\n")))
