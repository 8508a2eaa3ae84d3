"""Kills, full disks, edited inputs: the real stages under `oxa run`. Afterwards all is as without them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pipelines import (
    FLOW,
    SIGNS,
    Command,
    assert_same,
    change,
    contents,
    copied,
    finished,
    forget,
    locked,
    outputs,
    progress,
    reference,
    run,
    stale,
    stopped_at_work,
    warmed,
)
from processes import PATIENCE, below, wait_until_gone, wait_until_left

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def flowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `oxa run` has run, from the first stage to the last."""
    return reference(tmp_path_factory, FLOW)


@pytest.fixture
def copy(flowed: Path, tmp_path: Path) -> Iterator[Path]:
    folder = copied(flowed, tmp_path / "copy")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(  # how work is taken up again is the stage's affair, that nothing is left running the flow's
    ("stage", "killed"),
    [
        ("sample", "flow"),
        ("sample", "stage"),
        ("score@self", "dvc"),
        ("train@oxa_full-0", "flow"),
        ("train@oxa_full-0", "stage"),
    ],
)
def test_a_kill_leaves_nothing_running_and_the_stage_goes_on_where_it_was(
    stage: str, killed: str, flowed: Path, copy: Path, prefect_api: str
):
    embedded = (stage, killed) == ("train@oxa_full-0", "flow")
    change(copy, "tracking.enabled", stage == "train@oxa_full-0")  # whose sender takes some seconds to end
    forget(copy, stage)
    variables = {} if embedded else {"PREFECT_API_URL": prefect_api}
    flow = Command(copy, *FLOW, stage, **variables)
    dvc, first = stopped_at_work(flow, stage)
    done = finished(copy, stage)
    if killed == "flow":
        processes = below(flow.pid)
        assert any("server" in p.cmdline() for p in processes) == embedded
        flow.kill()
        flow.wait()
        wait_until_gone(processes)
        wait_until_left(copy)
        flow = Command(copy, *warmed(*FLOW, stage), **variables)
    else:
        processes = [dvc, *below(dvc.pid)]
        (dvc if killed == "dvc" else first).kill()
        wait_until_gone(processes)
    seen = progress(flow, stage, before=done)
    resumed = seen.keys() & done.keys()
    assert resumed, "the second process found what the first had done"
    assert all(seen[path] == done[path] for path in resumed), "and did not do it again"
    assert flow.wait(PATIENCE) == 0, flow.printed()
    wait_until_left(copy)
    assert_same(copy, flowed, stage)


def test_an_input_edited_meanwhile_fails_the_stage_and_not_its_siblings(
    flowed: Path, copy: Path, prefect_api: str
):
    forget(copy, "train@oxa_full-0", "train@sft-0")
    flow = Command(copy, *warmed(*FLOW, "train"), PREFECT_API_URL=prefect_api)
    progress(flow, "train@oxa_full-0")
    data = copy / "data" / "train" / "oxa_full" / "ce.parquet"
    data.write_bytes(data.read_bytes() + b"edited")
    assert flow.wait(PATIENCE) == 1
    sentence = "data/train/oxa_full: changed while stage train@oxa_full-0 was reading it; nothing was kept"
    assert f"    oxa: {sentence}" in flow.printed()
    assert "train@oxa_full-0" in stale(copy)
    assert not (copy / "models" / "oxa_full-0").exists()
    assert contents(copy, "models/sft-0") == contents(flowed, "models/sft-0")
    run(copy, *warmed(*FLOW, "train"), PREFECT_API_URL=prefect_api)
    assert_same(copy, flowed, "train@sft-0", "train@oxa_full-0")
    wait_until_left(copy)


def test_a_disk_that_is_full_when_outputs_are_placed_costs_that_stage_alone(
    flowed: Path, copy: Path, prefect_api: str
):
    forget(copy, "sample")
    before, lock = contents(copy), (copy / "dvc.lock").read_bytes()
    with small_disk(copy / "data", kib=400):
        filled = fill(copy / "data", leave=8192)
        printed = run(copy, *warmed(*FLOW, "sample"), code=1, PREFECT_API_URL=prefect_api)
        assert "No space left on device; nothing was kept\n" in printed
        assert "Traceback" not in printed
        filled.unlink()
        assert contents(copy) == before, "neither an output nor a part of one"
        assert (copy / "dvc.lock").read_bytes() == lock
        assert not stale(copy) & locked(copy).keys()
        lost = outputs(locked(copy)["ingest"])
        for path in lost:
            (copy / path).unlink()
        run(copy, "dvc", "checkout", *lost)  # from DVC's cache, which is whole
        assert contents(copy) == before
        run(copy, *warmed(*FLOW, "sample"), PREFECT_API_URL=prefect_api)
        assert_same(copy, flowed, "sample")
        wait_until_left(copy)


def test_a_disk_that_is_full_when_a_checkpoint_is_written_costs_the_work_since_the_last(
    flowed: Path, copy: Path, prefect_api: str
):
    stage = "train@oxa_full-0"
    forget(copy, stage)
    weights = (flowed / "models" / "oxa_full-0" / "model.safetensors").stat().st_size
    with small_disk(copy / ".work", kib=4000):
        filled = fill(
            copy / ".work", leave=int(4.8 * weights)
        )  # a checkpoint is 3.6 of them, by its optimizer
        printed = run(copy, *warmed(*FLOW, stage), code=1, PREFECT_API_URL=prefect_api)
        (line,) = [line for line in printed.splitlines() if line.startswith("    ")]
        assert line.startswith("    oxa: ")
        assert line.endswith("No space left on device; nothing was kept")
        checkpoints = [
            path.parent.name for path in (copy / ".work").glob(f"{stage}/*/scratch/{SIGNS[stage]}")
        ]
        assert checkpoints == ["checkpoint-8"]
        assert not (copy / "models" / "oxa_full-0").exists()
        assert stage in stale(copy)
        filled.unlink()
        run(copy, *warmed(*FLOW, stage), PREFECT_API_URL=prefect_api)
        assert_same(copy, flowed, stage)
        wait_until_left(copy)


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Puts the folder on a disk of its own, with all that is in it. Skips the test where none may be mounted."""
    aside = folder.rename(folder.with_name("aside"))
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    done = subprocess.run(mount, text=True, capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fills the folder's disk, but for so many bytes, with a file; returns that."""
    path = folder / "filled"
    free = shutil.disk_usage(folder).free
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return path
