"""What is edited while a stage is at work: real `dvc repro`, the real graph, and a stage that waits for the edit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines import change, environment, make_repository
from processes import PATIENCE, until

from flows import warm

pytestmark = pytest.mark.whole

STAGE = "verify@teacher"
WAITING = """

def run(section, *, problems, responses, output, scratch, log):
    Path("begun").touch()
    Path("go").read_text()
    output.write_text(f"timeout {section.timeout}, answer {ANSWER}")
    return {}


ANSWER = 1
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_repository(tmp_path_factory.mktemp("edits") / "repository")
    module = folder / "oxa" / "stages" / "verify.py"
    module.write_text(module.read_text() + WAITING)
    for name in ("data/problems.parquet", "data/responses/teacher.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(template, tmp_path / "copy", symlinks=True))
    os.mkfifo(copy / "go")
    return copy


@pytest.fixture(params=["by itself", "forked from a warm process"])
def variables(folder: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """With the repository's own code."""
    own = environment(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
    if request.param == "by itself":
        yield own
        return
    if not warm.possible():
        pytest.skip("needs Linux, and a machine without a GPU")
    with warm.stages(own, folder, ["oxa.stages.verify"]) as warmed:
        yield warmed


def repro(folder: Path, variables: dict[str, str], edit: Callable[[], Any] | None = None) -> tuple[int, str]:
    """`dvc repro` of the stage, which has begun when the edit is made, and ends after it."""
    (folder / "begun").unlink(missing_ok=True)
    command = ["dvc", "repro", "--single-item", STAGE]
    with subprocess.Popen(
        command, cwd=folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as dvc:
        until(lambda: (folder / "begun").exists() or dvc.poll() is not None, "the stage is at work")
        if edit:
            edit()
        if dvc.poll() is None:
            (folder / "go").write_text("")
        printed, _ = dvc.communicate(timeout=PATIENCE)
    return dvc.returncode, printed


def test_parameters_and_modules_edited_while_a_stage_runs_are_not_recorded(
    folder: Path, variables: dict[str, str]
) -> None:
    output, grader = folder / "data/verdicts/teacher.parquet", folder / "oxa/grading/grader.py"
    timeout = yaml.safe_load((folder / "params.yaml").read_text())["verify"]["timeout"]
    code = grader.read_text()
    edits: dict[str, Callable[[], Any]] = {
        "params.yaml: verify": lambda: change(folder, "verify.timeout", timeout + 1),
        f"{grader}": lambda: grader.write_text(code + "\nADDED = 1\n"),
    }
    for name, edit in edits.items():
        status, printed = repro(folder, variables, edit)
        sentence = f"oxa: {name}: changed while stage {STAGE} was reading it; nothing was kept, run the stage again\n"
        assert status != 0, printed
        assert sentence in printed
        assert "Traceback" not in printed
        assert not output.exists()
        assert not (folder / "dvc.lock").exists()
        assert not (folder / ".dvc/cache/runs").exists()

    # what is edited meanwhile and is none of the stage's does not concern it
    status, printed = repro(folder, variables, lambda: change(folder, "train.shared.epochs", 7.0))
    assert status == 0, printed
    recorded = yaml.safe_load((folder / "dvc.lock").read_text())["stages"][STAGE]
    assert recorded["params"]["params.yaml"]["verify"]["timeout"] == timeout + 1
    assert output.read_text() == f"timeout {timeout + 1}, answer 1"

    # and nothing of the first values lies in the run cache
    change(folder, "verify.timeout", timeout)
    grader.write_text(code)
    status, printed = repro(folder, variables)
    assert status == 0
    assert f"Running stage '{STAGE}'" in printed
    assert output.read_text() == f"timeout {timeout}, answer 1"
