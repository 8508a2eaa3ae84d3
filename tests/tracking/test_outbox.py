"""Tracking with real senders, real databases and real servers. A stage is a process of its own where it matters."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers import mlflow_server, postgresql

from oxa.config.operations import Tracking
from oxa.errors import UserError
from oxa.runtime.server import free_port
from oxa.tracking import connection, outbox, sender, spool
from oxa.tracking.record import recorded

FOLDER = Path(".tracking")
PATIENCE = 180  # seconds for what takes a few on an idle machine
MD5 = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it, to be copied: its migrations take seconds."""
    folder = tmp_path_factory.mktemp("database")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        connection.connect(folder)
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; what a sender still does there is ended afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "OXA_PIPELINE_RUN", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for process in senders():
        process.kill()


@pytest.fixture
def local(workspace: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database in the current folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/mlflow.db")
    return Path(shutil.copy(database, workspace / "mlflow.db"))


def senders() -> list[psutil.Process]:
    """Senders at work in the current folder."""
    processes = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "oxa.tracking.sender" in (process.info["cmdline"] or []) and process.info["cwd"] == os.getcwd():
            processes.append(process)
    return processes


def record(arm: str, **options: Any) -> Any:
    sections = {"train.shared": {"learning_rate": 1e-3}, f"train.arms.{arm}": {"num_ul": 4}}
    defaults: dict[str, Any] = {
        "stage": f"train@{arm}-0",
        "kind": "train",
        "items": {"arm": arm, "seed": "0"},
        "key": "ab12",
        "params": sections,
        "inputs": {"models/base": f"{MD5}.dir", f"data/train/{arm}.parquet": MD5},
    }
    return recorded(Tracking(experiment="tests"), **(defaults | options))


def run_stage(arm: str, steps: range = range(1, 6), **options: Any) -> None:
    with record(arm, **options) as run:
        for step in steps:
            run.log(step, loss=1 / step, tokens=step)
        Path("plot.svg").write_text(arm)
        run.artifact(Path("plot.svg"))
        run.finish({"final": {"loss": 0.25}}, {f"models/{arm}-0": f"{MD5}.dir"})


def start_stage(arm: str, steps: int, *, pause: float = 0.0, first: int = 1, then: str = "") -> Any:
    """A stage in a process of its own; `then` is run after its last step."""
    code = (
        f"import sys, time; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]}\n"
        "from test_outbox import *\n"
        f"with record({arm!r}) as run:\n"
        f"    for step in range({first}, {steps} + 1):\n"
        "        run.log(step, loss=1 / step, tokens=step)\n"
        f"        time.sleep({pause})\n"
        f"    {then or 'pass'}\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def runs() -> dict[str, Any]:
    """MLflow's runs by name; each name occurs once."""
    recorded_runs = connection.find_runs("tests", {})
    assert len({run.info.run_name for run in recorded_runs}) == len(recorded_runs)
    return {run.info.run_name: run for run in recorded_runs}


def steps_of(run: Any, name: str = "loss") -> list[int]:
    return [metric.step for metric in connection.client().get_metric_history(run.info.run_id, name)]


def left() -> list[str]:
    return [one.path.name for one in spool.spools(FOLDER)]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, (outbox.status(), [p.read_text() for p in FOLDER.glob("*.log")])
        time.sleep(0.05)


def check_run(run: Any) -> None:
    """That everything which `run_stage("oxa", range(1, 6))` told is there."""
    assert run.info.status == "FINISHED"
    assert run.data.params == {"arm": "oxa", "seed": "0", "learning_rate": "0.001", "num_ul": "4"}
    assert run.data.metrics == {"loss": 0.2, "tokens": 5.0, "final.loss": 0.25}
    assert steps_of(run) == [1, 2, 3, 4, 5]
    tags = {
        "oxa.stage": "train@oxa-0",
        "oxa.arm": "oxa",
        "oxa.pipeline_run": "brave-otter",
        "dvc.in.models/base": f"{MD5}.dir",
        "dvc.out.models/oxa-0": f"{MD5}.dir",
    }
    assert tags.items() <= run.data.tags.items()
    assert {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs} == {
        ("models/base", f"{MD5}.dir"),
        ("data/train/oxa.parquet", MD5),
    }
    client = connection.client()
    (artifact,) = client.list_artifacts(run.info.run_id)
    assert Path(client.download_artifacts(run.info.run_id, artifact.path)).read_text() == "oxa"


@pytest.mark.whole
def test_four_stages_at_once_on_a_fresh_database_lose_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    began = time.time()
    stages = [start_stage(arm, 150, pause=0.005) for arm in "abcd"]
    assert [stage.wait() for stage in stages] == [0] * 4
    ended = time.time()
    assert outbox.wait_until_sent(seconds=PATIENCE) is None, outbox.status()
    assert outbox.status() == "MLflow: sqlite:///mlflow.db\neverything is sent"
    # for this process MLflow keeps a connection by the URI's text, and other tests open other databases
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/mlflow.db")
    by_name = runs()
    assert sorted(by_name) == [f"train@{arm}-0" for arm in "abcd"]
    for run in by_name.values():
        assert run.info.status == "FINISHED"
        assert steps_of(run) == steps_of(run, "tokens") == list(range(1, 151))
        times = [m.timestamp for m in connection.client().get_metric_history(run.info.run_id, "loss")]
        assert began * 1000 - 1 < times[0] < times[-1] < ended * 1000 + 1, (
            "the stage's clock, not the sender's"
        )
    wait_for(lambda: left() == [])  # what is sent is removed at the next look
    wait_for(lambda: not senders())


@pytest.mark.whole
def test_a_server_that_is_down_delays_nothing_and_gets_all_later(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:secret@127.0.0.1:{port}")
    monkeypatch.setenv("OXA_PIPELINE_RUN", "brave-otter")
    warning = (
        f"MLflow at http://127.0.0.1:{port} cannot be reached (Connection refused); all is kept in .tracking, "
        "and `oxa track --replay` sends it"
    )
    began = time.time()
    run_stage("oxa")
    assert outbox.wait_until_sent(seconds=PATIENCE) == warning
    wait_for(lambda: not senders())
    assert outbox.wait_until_sent(seconds=PATIENCE, since=began) == warning
    assert not senders(), "it is known already, and nobody was sent to find out again"
    run_stage("sft")
    assert capfd.readouterr().err.endswith(f"oxa: {warning}\n")
    assert "train@oxa-0: not sent" in outbox.status()
    with pytest.raises(
        UserError, match=r"^MLflow at http://127.0.0.1:\d+ cannot be reached \(Conn.* refused\)$"
    ):
        outbox.replay()
    assert len(left()) == 2
    with mlflow_server(workspace / "server", port):
        assert outbox.replay() == "sent: train@oxa-0, train@sft-0"
        by_name = runs()
        assert sorted(by_name) == ["train@oxa-0", "train@sft-0"]
        check_run(by_name["train@oxa-0"])
        assert outbox.replay() == "nothing is left to send"
    assert left() == []
    with record("live") as run:
        run.log(1, loss=2.0)
        wait_for(lambda: sender.state(FOLDER)["down"])
        with mlflow_server(workspace / "server", port):  # the sender of a live stage tries on
            wait_for(lambda: runs().get("train@live-0") and steps_of(runs()["train@live-0"]) == [1])


@pytest.mark.whole
def test_postgresql_is_as_good(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OXA_PIPELINE_RUN", "brave-otter")
    with postgresql() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        run_stage("oxa")
        assert outbox.wait_until_sent(seconds=PATIENCE) is None, outbox.status()
        check_run(runs()["train@oxa-0"])
    with pytest.raises(UserError, match=r"cannot be reached \(Connection refused\)"):
        connection.client()


@pytest.mark.whole
def test_a_database_that_another_writer_locks_for_longer_than_mlflow_waits_loses_nothing(local: Path):
    with sqlite3.connect(local, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        run_stage("oxa", range(1, 151))
        wait_for(lambda: "database is locked" in sender.state(FOLDER)["error"])  # after MLflow's 20 s
        other.execute("COMMIT")
    other.close()
    assert outbox.wait_until_sent(seconds=PATIENCE) is None, outbox.status()
    assert steps_of(runs()["train@oxa-0"]) == list(range(1, 151))
    assert sender.state(FOLDER)["error"] == ""


@pytest.mark.whole
def test_a_sender_that_is_killed_again_and_again_loses_and_doubles_nothing(local: Path):
    with record("oxa") as run:
        for step in range(1, 2001):
            run.log(step, loss=1 / step)
        run.finish({"final": {"loss": 0.25}}, {})
    (one,) = spool.spools(FOLDER)
    kills = 0
    while one.unsent():
        before = one.notes().offset
        sender.kick()
        wait_for(lambda: one.notes().offset > before or not one.unsent())  # noqa: B023
        for process in senders():
            process.kill()
            process.wait()
            kills += 1
        if kills == 1:  # as if it had died between the run's creation and the note of it
            (one.path / "sent.json").write_text(json.dumps({"uri": one.notes().uri, "creating": True}))
    assert kills >= 3, "it was too fast to be killed in the middle"
    sender.kick()
    wait_for(lambda: left() == [])
    assert steps_of(runs()["train@oxa-0"]) == list(range(1, 2001))
    assert runs()["train@oxa-0"].info.status == "FINISHED"


def test_a_killed_stage_is_a_killed_run_and_its_rerun_goes_on_with_it(local: Path):
    stage = start_stage("oxa", 30, then="print('up', flush=True); time.sleep(600)")
    assert stage.stdout.readline() == "up\n"
    wait_for(lambda: runs().get("train@oxa-0") and len(steps_of(runs()["train@oxa-0"])) == 30)
    run = runs()["train@oxa-0"]
    assert run.info.status == "RUNNING", "live"
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    wait_for(lambda: runs()["train@oxa-0"].info.status == "KILLED")
    with pytest.raises(ZeroDivisionError), record("oxa") as resumed:
        resumed.log(21, loss=1 / 21)
        raise ZeroDivisionError("an error")
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    failed = runs()["train@oxa-0"]
    assert (failed.info.status, failed.data.tags["oxa.error"]) == ("FAILED", "ZeroDivisionError: an error")
    run_stage("oxa", range(21, 41))
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    finished = runs()["train@oxa-0"]
    assert finished.info.run_id == failed.info.run_id == run.info.run_id
    assert finished.info.status == "FINISHED"
    assert "oxa.error" not in finished.data.tags
    assert steps_of(finished) == list(range(1, 41))
    assert left() == []


def test_notes_that_are_damaged_double_no_run(local: Path):
    run_stage("oxa")
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    wait_for(lambda: not left())
    with pytest.raises(RuntimeError), record("sft") as run:  # what failed is kept after it is sent
        run.log(1, loss=1.0)
        raise RuntimeError
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    (one,) = spool.spools(FOLDER)
    before = runs()["train@sft-0"].info.run_id
    (one.path / "sent.json").write_text("")
    assert one.unsent()
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    assert runs()["train@sft-0"].info.run_id == before
    assert steps_of(runs()["train@sft-0"]) == [1]


def test_a_folder_or_other_data_in_the_databases_place_is_told_at_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    began = time.monotonic()
    (workspace / "a.db").mkdir()
    (workspace / "b.db").write_bytes(b"\xff" * 100_000)
    for name, said in {"a.db": "a.db is a folder; move it away", "b.db": "file is not a database"}.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{name}")
        with pytest.raises(UserError, match=said):
            connection.client()
    assert time.monotonic() - began < 60, "MLflow itself would try for 100 s"


def test_a_finished_stage_takes_what_earlier_inputs_left_along(local: Path):
    with pytest.raises(ZeroDivisionError), record("oxa", key="cd34"):
        raise ZeroDivisionError
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    assert len(left()) == 1
    run_stage("oxa", key="ef56")
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    wait_for(lambda: left() == [])


@pytest.mark.whole
def test_a_run_that_somebody_deleted_is_made_again(local: Path):
    with pytest.raises(ZeroDivisionError), record("oxa") as run:
        run.log(1, loss=1.0)
        raise ZeroDivisionError
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    first = runs()["train@oxa-0"].info.run_id
    wait_for(lambda: not senders())  # one that has just looked would still send to it
    connection.client().delete_run(first)
    run_stage("oxa", range(2, 4))
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    assert runs()["train@oxa-0"].info.run_id != first
    assert steps_of(runs()["train@oxa-0"]) == [1, 2, 3]


def test_what_mlflow_refuses_is_named_and_holds_up_nothing_else(local: Path):
    client = connection.client()
    client.delete_experiment(client.create_experiment("deleted"))
    with recorded(
        Tracking(experiment="deleted"), stage="a", kind="a", items={}, key="ab12", params={}, inputs={}
    ):
        pass
    run_stage("oxa")
    wait_for(lambda: len(left()) == 1)
    refused = outbox.wait_until_sent(seconds=PATIENCE)
    assert refused is not None
    assert refused.startswith("MLflow refuses a (experiment 'deleted' is deleted")
    assert "a: not sent (experiment 'deleted' is deleted" in outbox.status()
    with pytest.raises(UserError, match=r"^MLflow refuses a: experiment 'deleted' is deleted"):
        outbox.replay()
    client.restore_experiment(client.get_experiment_by_name("deleted").experiment_id)
    assert outbox.replay() == "sent: a"


def test_a_spool_that_cannot_be_sent_holds_up_no_other(local: Path):
    """Of one the disk took no begin, of another the notes cannot be read; both come first by name."""
    for name in ("train@a-0.ab12.0a", "train@b-0.ab12.0b"):
        (FOLDER / name).mkdir(parents=True)
        (FOLDER / name / spool.EVENTS).touch()
        lost = spool.Spool(FOLDER / name)
        lost.adopt()
        assert lost.lock()
        lost.write("log", step=1, values={"loss": 1.0})
        lost.write("end", status="FINISHED")
        lost.release()
    (FOLDER / "train@b-0.ab12.0b" / "sent.json").mkdir()
    run_stage("oxa")
    wait_for(lambda: left() == ["train@b-0.ab12.0b"])
    assert steps_of(runs()["train@oxa-0"]) == [1, 2, 3, 4, 5]
    wait_for(lambda: "Is a directory" in sender.state(FOLDER)["error"])


def test_what_was_meant_for_another_server_is_sent_to_this_one_by_a_replay_only(
    local: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_stage("there")
    wait_for(lambda: not senders())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{local}")
    run_stage("here")
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    assert sorted(runs()) == ["train@here-0"]
    assert "train@there-0: not sent (it was meant for another MLFLOW_TRACKING_URI)" in outbox.status()
    assert outbox.replay() == "sent: train@there-0"
    assert sorted(runs()) == ["train@here-0", "train@there-0"]


def test_what_one_server_has_is_not_missed_at_another(local: Path, monkeypatch: pytest.MonkeyPatch):
    """A failed stage's spool is kept, for it may go on; it has been sent all the same."""
    with pytest.raises(ZeroDivisionError), record("oxa"):
        raise ZeroDivisionError
    assert outbox.wait_until_sent(seconds=PATIENCE) is None
    assert len(left()) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert outbox.status().endswith("everything is sent")
    assert outbox.replay() == "nothing is left to send"


@pytest.mark.whole
def test_a_sender_stays_while_a_flow_asks_for_it_and_goes_when_the_flow_is_killed(local: Path):
    code = (
        "import time; from oxa.tracking import outbox; from oxa.config.operations import Tracking\n"
        "with outbox.sending(Tracking()):\n    print('up', flush=True)\n    time.sleep(600)"
    )
    flow = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert flow.stdout is not None
    assert flow.stdout.readline() == "up\n"
    wait_for(lambda: sender.at_work())
    (process,) = senders()
    time.sleep(sender.LINGER + 2)
    assert process.is_running()
    flow.kill()
    flow.wait()
    wait_for(lambda: not process.is_running())


def test_a_stage_that_starts_while_the_sender_ends_is_sent(local: Path):
    """Its kick found the sender's lock, when that sender had looked for the last time."""
    FOLDER.mkdir()
    ending = subprocess.Popen(
        [sys.executable, "-c", SLOW_END], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert ending.stdout is not None
    assert ending.stdin is not None
    assert ending.stdout.readline() == "looked\n"
    run_stage("oxa")
    assert not senders(), "the kick found the lock"
    ending.stdin.write("\n")
    ending.stdin.close()
    wait_for(lambda: left() == [])
    assert sorted(runs()) == ["train@oxa-0"]
    ending.wait()


SLOW_END = """
from oxa.tracking import sender
class Slow(sender.Sender):
    def work(self):
        seen = super().work()
        print("looked", flush=True)
        input()
        return seen
sender.LINGER = 0
sender.Sender = Slow
sender.main()
"""
