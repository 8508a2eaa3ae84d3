"""`oxa study` in a real repository: experiments run once, a killed study goes on, tables are written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest
import yaml
from pipelines import change, environment, make_repository, run
from processes import PATIENCE, until, wait_until_gone

STUDY = {
    "worlds": [4, 5],
    "seeds": [0],
    "set": {"arms": ["sft"], "tracking.enabled": False, "train.shared.epochs": 2.0},
    "experiments": {
        "arms": {"stages": ["gates", "evaluate_base", "evaluate"]},
        "spread": {"set": {"selection.shared.mean": "quantile(0.5)", "selection.ce.sft": "gaussian"}},
    },
    "tables": {"ce": {"rows": {"random": "arms/sft", "gaussian": "spread/sft"}, "baseline": "random"}},
}
PAGE = "Words.\n\n<!-- study: ce -->\n<!-- end -->\n\n<!-- study: gates -->\n<!-- end -->\n"


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words],
        cwd=folder,
        env=environment(),
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    )
    return done.stdout


def experiments(folder: Path) -> set[str]:
    refs = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return {ref.rpartition("/")[2] for ref in refs if ref.count("/") == 4}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_repository(tmp_path_factory.mktemp("study") / "repository")
    (folder / "docs").mkdir()
    (folder / "docs" / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    (folder / "docs" / "study.md").write_text(PAGE)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "begin")
    return folder


@pytest.mark.whole
def test_a_killed_study_goes_on_and_a_finished_one_runs_nothing(repository: Path) -> None:
    before = {path: path.read_bytes() for path in (repository / "params.yaml", repository / "dvc.yaml")}
    killed = subprocess.Popen(["oxa", "study"], cwd=repository, env=environment(), stdout=subprocess.DEVNULL)
    until(lambda: "Running stage 'score@teacher'" in logged(repository, "arms-4-0"), "scoring begins", killed)
    below = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    wait_until_gone(below)

    printed = run(repository, "oxa", "study")
    assert "Stage 'base' is cached" in logged(repository, "arms-4-0")
    assert experiments(repository) == {"arms-4-0", "spread-4-0", "arms-5-0", "spread-5-0"}
    assert "docs/study.md: tables of 4 experiments" in printed
    page = (repository / "docs" / "study.md").read_text()
    assert page.startswith(
        "Words.\n\n<!-- study: ce -->\n\n2 of 2 worlds, 16 problems each, 2 samples a problem, 1 fine-tuning"
    )
    assert "| gaussian − random |" in page
    assert {path: path.read_bytes() for path in before} == before
    assert not (repository / "data").exists()  # the workspace is left alone

    again = run(repository, "oxa", "study")
    assert "experiments to run" not in again
    assert (repository / "docs" / "study.md").read_text() == page
    listed = run(repository, "oxa", "study", "--list").splitlines()
    assert [line.split()[0] for line in listed] == ["done"] * 4
    assert "dvc exp run --name spread-5-0" in listed[3]

    # another evaluation makes all of them stale, which --list tells, and --tables leaves as they are
    change(repository, "evaluate.seed", 1)
    assert all(line.startswith("to do") for line in run(repository, "oxa", "study", "--list").splitlines())
    assert "4 are not run yet" in run(repository, "oxa", "study", "--tables")
    assert "Not run yet" in (repository / "docs" / "study.md").read_text()
    assert "params.yaml: changed since the last commit" in run(repository, "oxa", "study", code=2)
    git(repository, "checkout", "params.yaml")

    # so does other code of a stage that ran, but not that of one that did not
    for name, state in (("report/page.css", "done"), ("stages/score.py", "to do")):
        with (repository / "oxa" / name).open("a") as file:
            file.write("\n")
        listed = run(repository, "oxa", "study", "--list").splitlines()
        assert all(line.startswith(state) for line in listed), name
    git(repository, "checkout", "oxa")


@pytest.mark.whole
def test_stages_run_the_code_of_the_last_commit_whatever_is_edited_meanwhile(repository: Path) -> None:
    code = repository / "oxa" / "stages" / "selection_ce.py"
    whole = code.read_text()
    study = STUDY | {"worlds": [6], "experiments": {"only": {"stages": ["selection_ce"]}}, "tables": {}}
    (repository / "one.yaml").write_text(yaml.safe_dump(study))
    (repository / "empty.md").write_text("")
    command = ["oxa", "study", "--study", "one.yaml", "--page", "empty.md"]
    working = subprocess.Popen(command, cwd=repository, env=environment())
    until(lambda: "Running stage 'base'" in logged(repository, "only-6-0"), "pretraining begins", working)
    code.write_text("raise SystemExit('edited')\n")
    try:
        assert working.wait(PATIENCE) == 0
    finally:
        code.write_text(whole)
    assert "only-6-0" in experiments(repository)


def logged(folder: Path, name: str) -> str:
    path = folder / ".work" / "study" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def test_mistakes_are_told_in_a_sentence_before_anything_runs(repository: Path) -> None:
    assert "no experiment is called 'x'; known here: arms, spread" in run(
        repository, "oxa", "study", "--only", "x", code=2
    )
    wrong = repository / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(STUDY | {"set": {"arms": ["sft", "more"]}}))
    assert "arm 'more' has no entry" in run(repository, "oxa", "study", "--study", str(wrong), code=2)
    assert "nothing.md: No such file" in run(
        repository, "oxa", "study", "--tables", "--page", "nothing.md", code=2
    )


@pytest.mark.whole
def test_an_experiment_that_fails_is_named_with_its_last_lines(repository: Path) -> None:
    too_many = {"arms": {"set": {"selection.shared.num_ce": 100_000}}}
    failing = STUDY | {"worlds": [4], "experiments": too_many, "tables": {}}
    (repository / "failing.yaml").write_text(yaml.safe_dump(failing))
    (repository / "empty.md").write_text("")
    printed = run(repository, "oxa", "study", "--study", "failing.yaml", "--page", "empty.md", code=1)
    assert "arms-4-0: FAILED" in printed
    assert "selection asks for 100000 CE sequences" in printed
