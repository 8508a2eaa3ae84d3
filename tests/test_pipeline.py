"""The whole graph in a real DVC repository: run, restore, rerun in part, kill and go on."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = ("data", "models", "metrics", "reports")

pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    return os.environ | {"DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def tiny_params() -> dict[str, Any]:
    """params.yaml at a size at which every stage takes seconds, and a student that knows next to nothing."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["arms"], params["seeds"] = ["sft", "oxa_full"], [0]
    params["world"] |= {"num_train": 60, "num_benchmark": 16}
    params["base"] |= {"hidden_size": 32, "num_layers": 2, "intermediate_size": 64, "steps": 40}
    params["base"] |= {"warmup": 5, "checkpoint_every": 10}
    params["sample"] |= {"num_samples": 2, "max_tokens": 60}
    params["evaluate"] |= {"num_samples": 2, "max_tokens": 60}
    params["score"] |= {"self_verdicts": ["incorrect", "unparsable"]}
    shared = {
        "num_ce": 32,
        "mean": 20.0,
        "std": 30.0,
        "ppl_max": 400.0,
        "bin_width": 400.0,
        "max_shortage": 0.9,
    }
    params["selection"]["shared"] |= shared
    params["selection"]["arms"]["oxa_full"]["ul"] |= {
        "num": 16,
        "min_ppl": 1.0,
        "verdicts": ["incorrect", "unparsable"],
        "allow_length": True,
    }
    params["train"]["shared"] |= {"epochs": 3.0, "num_ce": 8, "micro_batch_size": 4, "checkpoint_every": 4}
    params["train"]["arms"]["oxa_full"] |= {"num_ul": 8}
    params["report"] |= {"resamples": 200}
    return params


def make_repository(folder: Path) -> Path:
    folder.mkdir()
    for name in ("oxa", "sources", ".dvcignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    for name in ("dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, env=environment())
    return folder


def repro(folder: Path) -> str:
    """Runs `dvc repro`; returns what it printed."""
    done = subprocess.run(
        ["dvc", "repro"],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in OUTPUTS
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the whole pipeline has run; tests work in copies."""
    folder = make_repository(tmp_path_factory.mktemp("pipeline") / "done")
    ran = stages_run(repro(folder))
    assert {"base", "ingest", "verify@self", "selection@oxa_full", "train@sft-0", "report"} <= ran
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "copy"
    shutil.copytree(done, folder, symlinks=True)
    yield folder
    shutil.rmtree(folder)


def test_the_run_ends_with_a_table_of_all_checkpoints(done: Path):
    shown = subprocess.run(["oxa", "summary"], cwd=done, env=environment(), text=True, capture_output=True)
    assert shown.returncode == 0, shown.stderr
    for name in ("base", "sft", "oxa_full"):
        assert name in shown.stdout
    assert json.loads((done / "metrics" / "summary.json").read_text())
    assert list((done / "reports").glob("*.png"))


def test_a_second_run_finds_all_done(copy: Path):
    assert stages_run(repro(copy)) == set()


def test_lost_outputs_come_back_from_the_cache_without_running_a_stage(copy: Path):
    before = contents(copy)
    for name in OUTPUTS:
        shutil.rmtree(copy / name)
    assert stages_run(repro(copy)) == set()
    assert contents(copy) == before


def test_changing_one_arm_reruns_only_what_hangs_on_it(copy: Path):
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["selection"]["arms"]["oxa_full"]["ul"]["num"] = 15
    (copy / "params.yaml").write_text(yaml.safe_dump(params))
    ran = stages_run(repro(copy))  # a dry run cannot know which outputs will differ
    assert ran == {"selection@oxa_full", "train@oxa_full-0", "evaluate@oxa_full-0", "report"}


def test_a_new_seed_trains_and_evaluates_only_that_seed(copy: Path):
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["seeds"] = [0, 1]
    (copy / "params.yaml").write_text(yaml.safe_dump(params))
    new = {f"{stage}@{arm}-1" for stage in ("train", "evaluate") for arm in ("sft", "oxa_full")}
    assert stages_run(repro(copy)) == new | {"report"}


def test_a_stage_that_fails_says_why_and_stays_stale(copy: Path):
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["selection"]["arms"]["oxa_full"]["ul"]["num"] = 10_000
    (copy / "params.yaml").write_text(yaml.safe_dump(params))
    failed = subprocess.run(["dvc", "repro"], cwd=copy, env=environment(), text=True, capture_output=True)
    assert failed.returncode != 0
    assert "oxa: " in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    assert not (copy / "data" / "train" / "oxa_full.parquet").exists()
    status = subprocess.run(
        ["dvc", "status", "selection@oxa_full"], cwd=copy, env=environment(), text=True, capture_output=True
    )
    assert "deleted" in status.stdout, "the output is gone and the stage is to be run"


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that work in this folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (
                    Path(os.readlink(process / "cwd")) == folder
                    and "Z" not in (process / "stat").read_text().split()[2]
                ):
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def kill_in(folder: Path, stage: str, evidence: str) -> None:
    """Starts `dvc repro` and kills DVC with SIGKILL once the stage has left `evidence` in its scratch folder."""
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not list((folder / ".work").glob(f"{stage}/*/scratch/{evidence}")):
        assert process.poll() is None, f"the pipeline ended before stage {stage} was seen at work"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 15
    while left_running(folder):
        assert time.monotonic() < deadline, f"left running: {left_running(folder)}"
        time.sleep(0.1)


def test_killed_in_three_stages_it_goes_on_and_ends_with_the_same_outputs(done: Path, tmp_path: Path):
    folder = make_repository(tmp_path / "killed")
    kill_in(folder, "base", "**/trainer_state.json")
    kill_in(folder, "sample", "*")
    kill_in(folder, "train@oxa_full-0", "**/trainer_state.json")
    repro(folder)
    expected, found = contents(done), contents(folder)
    assert found.keys() == expected.keys()
    differing = {name for name in expected if found[name] != expected[name] and not name.endswith(".jsonl")}
    # curves are drawn from the journals, whose speeds and times are of that run
    assert {name for name in differing if not name.startswith("reports/training")} == set()
