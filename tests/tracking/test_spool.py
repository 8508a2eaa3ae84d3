import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE

from oxa.config.operations import Tracking
from oxa.tracking import outbox, provenance, sender
from oxa.tracking.record import Record, recorded
from oxa.tracking.spool import Spool, spools

NOWHERE = "http://user:secret@127.0.0.1:9"  # where nobody listens: no sender gets as far as mlflow


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    for name in ("OXA_PIPELINE_RUN", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def record(
    *,
    stage: str = "train@sft-0",
    enabled: bool = True,
    key: str = "ab12",
    params: Mapping[str, Any] | None = None,
) -> Any:
    return recorded(
        Tracking(enabled=enabled),
        stage=stage,
        kind="train",
        items={"arm": "sft", "seed": "0"},
        key=key,
        params=params or {},
        inputs={"models/base": "0a.dir"},
    )


def folders() -> list[Path]:
    return sorted(path for path in Path(".tracking").iterdir() if path.is_dir())


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]


def test_tracking_that_is_off_writes_no_file(folder: Path):
    with record(enabled=False) as run:
        run.log(1, loss=2.0)
        run.artifact(folder)
        run.finish({"loss": 1.0}, {"models/sft-0": "0b.dir"})
    assert not list(folder.iterdir())


def test_a_spool_holds_all_that_a_stage_told():
    before = time.time_ns() // 1_000_000
    with record() as run:
        run.log(1, loss=2, grad_norm=1.5)
        run.finish({"final": {"loss": 1}, "ok": True, "name": "x", "none": None}, {"models/sft-0": "0b.dir"})
    (path,) = folders()
    begin, log, result, end = events(path)
    assert [event["event"] for event in (begin, log, result, end)] == ["begin", "log", "result", "end"]
    assert begin["stage"] == "train@sft-0"
    assert begin["inputs"] == {"models/base": "0a.dir"}
    expected = {"oxa.kind": "train", "oxa.arm": "sft", "oxa.key": "ab12", "dvc.in.models/base": "0a.dir"}
    assert expected.items() <= begin["tags"].items()
    assert begin["tags"]["version.torch"].startswith("2.")
    assert (log["step"], log["values"]) == (1, {"loss": 2.0, "grad_norm": 1.5})
    assert result["metrics"] == {"final.loss": 1.0}
    assert result["outputs"] == {"models/sft-0": "0b.dir"}
    assert end["status"] == "FINISHED"
    assert before <= begin["time"] <= log["time"] <= end["time"]


def test_params_have_names_that_compare_between_arms():
    sections = {
        "train.shared": {"learning_rate": 1e-3, "betas": [0.9, 0.95], "dtype": None},
        "train.arms.sft": {"num_ul": 0},
        "prompt": {"suffix": "think"},
    }
    with record(params=sections):
        pass
    assert events(folders()[0])[0]["params"] == {
        "arm": "sft",
        "seed": "0",
        "learning_rate": "0.001",
        "betas": "[0.9, 0.95]",
        "dtype": "null",
        "num_ul": "0",
        "prompt.suffix": "think",
    }


@pytest.mark.parametrize(
    ("error", "status"), [(KeyError("boom\nat last"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_stage_that_raises_says_how_it_ended(error: BaseException, status: str):
    with pytest.raises(type(error)), record() as run:
        run.log(1, loss=2.0)
        raise error
    end = events(folders()[0])[-1]
    assert end["status"] == status
    assert end["error"].startswith(type(error).__name__)
    assert "\n" not in end["error"]


def test_only_the_same_stage_on_the_same_inputs_goes_on_with_an_unfinished_spool():
    for key in ("ab12", "ab12", "cd34"):
        with pytest.raises(ZeroDivisionError), record(key=key):
            raise ZeroDivisionError
    assert [[event["event"] for event in events(path)] for path in folders()] == [
        ["begin", "end"] * 2,
        ["begin", "end"],
    ]
    for _ in range(2):
        with record(key="ab12"):
            pass
    assert len(folders()) == 3, "a finished one is left alone"


def test_a_stage_of_a_dvc_yaml_in_a_sub_folder_has_its_name_too():
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), record(stage="part/dvc.yaml:a.b@c"):
            raise ZeroDivisionError
    (path,) = folders()
    assert [event.get("stage") for event in events(path)] == ["part/dvc.yaml:a.b@c", None] * 2


def test_a_second_copy_of_a_stage_gets_a_spool_of_its_own():
    with record(), record():
        assert len(folders()) == 2


def test_a_line_that_a_kill_cut_off_costs_that_line_only():
    code = (
        "import os, signal; from tests_stage import record\n"
        "with record() as run:\n"
        "    run.log(1, loss=1.0)\n"
        '    os.write(run._spool._descriptor, b\'{"event": "log", "st\')\n'
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": "."}
    Path("tests_stage.py").write_text(
        f"import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}\n"
        "from test_spool import record\n"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    with record() as run:
        run.log(2, loss=0.5)
    (path,) = folders()
    lines = (path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines if line != '{"event": "log", "st'] == [
        *("begin", "log"),
        *("begin", "log", "end"),
    ]
    assert len(lines) == 6


def test_artifacts_outlive_the_originals(folder: Path):
    (folder / "plots").mkdir()
    (folder / "plots" / "a.png").write_text("a picture")
    (folder / "table.md").write_text("a table")
    with record() as run:
        run.artifact(folder / "plots")
        run.artifact(folder / "table.md")
        (folder / "plots" / "a.png").unlink()
        (folder / "table.md").unlink()
    (path,) = folders()
    copies = [path / event["path"] for event in events(path) if event["event"] == "artifact"]
    assert [one.name for one in copies] == ["plots", "table.md"]
    assert (copies[0] / "a.png").read_text() == "a picture"
    assert copies[1].read_text() == "a table"


def test_a_full_disk_costs_the_record_and_not_the_stage(folder: Path, capsys: pytest.CaptureFixture[str]):
    path = folder / "train@sft-0.ab12.0a"
    path.mkdir()
    (path / "events.jsonl").symlink_to("/dev/full")
    spool = Spool(path)
    assert spool.lock()
    Record(spool).log(1, loss=2.0)
    spool.release()
    assert "log is not kept for MLflow (No space left on device)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_costs_the_record_and_not_the_stage(
    capsys: pytest.CaptureFixture[str],
):
    Path(".tracking").write_text("a file where a folder must be")
    with record() as run:
        run.log(1, loss=2.0)
    assert "nothing of this stage is kept for MLflow" in capsys.readouterr().err


def test_a_server_that_is_down_is_one_sentence_without_a_password(capfd: pytest.CaptureFixture[str]):
    with record():
        deadline = time.monotonic() + PATIENCE
        while not sender.state(Path(".tracking"))["error"]:
            assert time.monotonic() < deadline, "no sender tried"
            time.sleep(0.05)
    assert capfd.readouterr().err.splitlines() == [
        "oxa: MLflow at http://127.0.0.1:9 cannot be reached (Connection refused); all is kept in .tracking, and "
        "`oxa track --replay` sends it"
    ]
    everything = [path.read_text() for path in Path(".tracking").rglob("*") if path.is_file()]
    assert not any("secret" in text for text in everything)


def test_a_stage_under_the_flow_carries_the_flows_name(monkeypatch: pytest.MonkeyPatch):
    assert "oxa.pipeline_run" not in provenance.tags(), "by hand, it belongs to none"
    monkeypatch.setenv("OXA_PIPELINE_RUN", "brave-otter")
    assert provenance.tags()["oxa.pipeline_run"] == "brave-otter"


def test_the_stages_of_one_dvc_process_share_a_name(folder: Path):
    """`dvc` is a script here, as it is where it is installed; it starts stages as DVC does, through a shell."""
    (folder / "bin").mkdir()
    script = folder / "bin" / "dvc"
    stage = f"{sys.executable} -c 'from oxa.tracking import provenance; print(provenance.pipeline_run())'"
    script.write_text(
        f"#!{sys.executable}\nimport subprocess\n"
        f"for _ in range(2):\n    subprocess.run({stage + '; true'!r}, shell=True, check=True)\n"
    )
    script.chmod(0o755)
    environment = os.environ | {"DVC_STAGE": "train@sft-0"}
    first, second = (
        subprocess.run([script, "repro"], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    names = first.stdout.split() + second.stdout.split()
    assert names[0] == names[1] != names[2] == names[3]
    assert all(name.startswith("dvc-20") for name in names)


def test_the_commit_is_known_and_dvc_lock_makes_it_not_dirty(folder: Path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *words], capture_output=True, text=True, check=True).stdout

    assert "git.commit" not in provenance.tags(), "no repository"
    git("init", "-q")
    assert "git.commit" not in provenance.tags(), "no commit"
    for name in ("dvc.lock", "params.yaml"):
        (folder / name).write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    (folder / "dvc.lock").write_text("2")
    tags = provenance.tags()
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD").strip()
    assert tags["git.dirty"] == "false"
    assert tags["dvc.lock.md5"] == "c81e728d9d4c2f636f067f89cc14862c"
    (folder / "params.yaml").write_text("2")
    assert provenance.tags()["git.dirty"] == "true"


def test_without_git_the_commit_is_left_out(monkeypatch: pytest.MonkeyPatch, folder: Path):
    monkeypatch.setenv("PATH", str(folder))
    assert "git.commit" not in provenance.tags()


def test_what_else_lies_in_the_folder_is_left_alone():
    with record():
        pass
    for name in ("stray", "a.b.x", "train@sft-0.ab12.notes"):
        (Path(".tracking") / name).mkdir()
        for file in ("events.jsonl", "uri"):
            (Path(".tracking") / name / file).write_text("{}\n")
    Path(".tracking/train@sft-0.ab12.0123456789ab").touch()
    (one,) = spools(Path(".tracking"))
    assert one.stage == "train@sft-0"


@pytest.mark.parametrize("content", ["", "[]", '{"offset": 7', '{"unknown": 1}', "\x00\x00"])
def test_notes_and_states_that_are_damaged_count_as_none(content: str):
    with record():
        pass
    (one,) = spools(Path(".tracking"))
    (one.path / "sent.json").write_text(content)
    sender.file_of(Path(".tracking"), "json").write_text(content)
    assert (one.notes().offset, one.notes().creating) == (0, True), "its run may be there, and is looked for"
    assert sender.state(Path(".tracking"))["error"] == ""


def test_a_clock_that_is_set_back_makes_nobody_wait_longer(monkeypatch: pytest.MonkeyPatch):
    with record():
        pass
    began = time.monotonic()
    clock = iter([time.time() + 1e6])  # as it begins; afterwards the clock is 11 days behind
    now = time.time
    monkeypatch.setattr(time, "time", lambda: next(clock, now()))
    sentence = outbox.wait_until_sent(seconds=1.0)
    assert sentence is not None
    assert time.monotonic() - began < 60
