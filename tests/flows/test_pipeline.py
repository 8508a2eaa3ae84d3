"""The flow over small graphs of shell stages: a real Prefect server, real DVC, real kills."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from processes import PATIENCE, below, until, wait_until_gone

from conftest import Repository
from flows import cli, workspace

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def api(prefect_api: str) -> str:
    """The address of the Prefect server that the flows here report to."""
    return prefect_api


@pytest.fixture
def project(repository: Repository, api: str, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("PREFECT_HOME", str(repository.folder / ".prefect"))
    repository.set("flow.retry_delay", 0.1)
    repository.set("flow.warm", False)  # stages of shell need no libraries
    repository.set("tracking.enabled", False)
    return repository


@pytest.fixture
def diamond(project: Repository) -> Repository:
    """first → left, right → last; each appends its name to `order` when it begins and when it ends."""

    def stage(name: str, deps: list[str], **more: Any) -> dict[str, Any]:
        command = f"echo +{name} >> order; echo {name} says hello; sh ./{name}.sh || exit;"
        return {
            "cmd": f"{command} cat {' '.join(deps)} > {name}; echo -{name} >> order",
            "deps": deps,
            "outs": [name],
        } | more

    (project.folder / "input").write_text("1\n")
    for name in ("first", "left", "right", "last"):
        (project.folder / f"{name}.sh").write_text("true\n")
    project.stages(
        first=stage("first", ["input"]),
        left=stage("left", ["first"]),
        right=stage("right", ["first"]),
        last=stage("last", ["left", "right"]),
    )
    return project


def run(*arguments: str, code: int = 0) -> str:
    """`oxa run`, in this process, which has imported Prefect and DVC then; returns what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        returned = cli.main(["run", *arguments])
    assert returned == code, printed.getvalue()
    assert "Traceback" not in printed.getvalue()
    return printed.getvalue()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts an `oxa run` that goes on beside the test, and not longer than that."""
    begun: list[subprocess.Popen[str]] = []

    def starts(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["oxa", "run", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        begun.append(process)
        return process

    yield starts
    for process in begun:
        process.kill()
        process.communicate()


def until_begun(process: subprocess.Popen[str], *names: str) -> None:
    """Waits until the command of one of the stages is at work."""
    until(lambda: {f"+{name}" for name in names} & set(order()), f"one of {names} at work", process)


def with_dvc(process: subprocess.Popen[str]) -> set[str]:
    """Stages for which the flow has started a DVC, which takes a second before it starts the stage's command."""
    pairs = [pair for words in at_work(process) for pair in pairwise(words)]
    return {after for word, after in pairs if word == "--single-item"}


def at_work(process: subprocess.Popen[str]) -> list[list[str]]:
    """Command lines of all below the flow."""
    commands = []
    for child in below(process.pid):
        with suppress(psutil.NoSuchProcess):
            commands.append(child.cmdline())
    return commands


def wait_for(file: str) -> str:
    """A line of shell that waits for the file, and fails where nobody makes it."""
    return f"n=0; until test -f {file}; do n=$((n + 1)); test $n -lt {PATIENCE * 10} || exit 1; sleep 0.1; done\n"


def order() -> list[str]:
    return Path("order").read_text().split() if Path("order").exists() else []


def ask(api: str, what: str, **body: Any) -> list[dict[str, Any]]:
    answer = httpx.post(f"{api}/{what}/filter", json=body)
    answer.raise_for_status()
    rows: list[dict[str, Any]] = answer.json()
    return rows


def flow_runs(api: str) -> list[dict[str, Any]]:
    """This folder's flow runs, the newest first."""
    tags = {"all_": [workspace.tag()]}
    return ask(api, "flow_runs", flow_runs={"tags": tags}, sort="START_TIME_DESC")


def task_states(api: str, flow_run: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """State and message of each task of a flow run."""
    runs = ask(api, "task_runs", flow_runs={"id": {"any_": [flow_run["id"]]}})
    return {run["name"]: (run["state"]["name"], run["state"]["message"]) for run in runs}


def artifacts(api: str, flow_run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        a["key"] or a["description"]: a
        for a in ask(api, "artifacts", flow_runs={"id": {"any_": [flow_run["id"]]}})
    }


def test_states_are_what_dvc_did_and_the_server_shows_them(diamond: Repository, api: str):
    output = run()
    assert "4 stages: 4 run, 0 cached" in output
    assert [line.split()[1] for line in output.splitlines() if line.startswith("[")][::3] == ["first", "last"]
    flow_run = flow_runs(api)[0]
    assert flow_run["state"]["type"] == "COMPLETED"
    ran = ("Completed", "DVC: run")
    assert task_states(api, flow_run) == {"first": ran, "left": ran, "right": ran, "last": ran}
    assert "first says hello" in [log["message"] for log in ask(api, "logs")]
    Path("left").unlink()
    Path("right.sh").write_text("true # other\n")  # no dependency: nothing changes
    output = run()
    assert "0 run, 4 cached" in output
    assert task_states(api, flow_runs(api)[0]) == {
        "first": ("Cached", "DVC: unchanged"),
        "left": ("Cached", "DVC: restored"),
        "right": ("Cached", "DVC: unchanged"),
        "last": ("Cached", "DVC: unchanged"),
    }
    table = artifacts(api, flow_runs(api)[0])["stages"]
    assert "restored" in table["data"]
    Path("input").write_text("2\n")
    run("left")
    assert task_states(api, flow_runs(api)[0]) == {"first": ran, "left": ran}


def test_where_nothing_has_changed_no_flow_is_started_unless_it_is_to_be_recorded(
    diamond: Repository, api: str
):
    run()
    assert "4 stages: 0 run, 4 cached; nothing has changed, so Prefect was not started" in run()
    assert len(flow_runs(api)) == 1
    assert "4 stages: 0 run, 4 cached" in run("--record")
    assert len(flow_runs(api)) == 2


def test_stages_overlap_where_the_graph_allows(diamond: Repository):
    Path("left.sh").write_text("touch left-is-here\n" + wait_for("right-is-here"))
    Path("right.sh").write_text("touch right-is-here\n" + wait_for("left-is-here"))
    run("--max-workers", "2")
    assert order()[:2] == ["+first", "-first"]
    assert set(order()[2:4]) == {"+left", "+right"}
    assert order()[-2:] == ["+last", "-last"]


@pytest.mark.whole
def test_no_more_stages_are_at_work_than_asked_for(diamond: Repository, start: Start):
    for name in ("left", "right"):
        Path(f"{name}.sh").write_text(wait_for("go"))
    flow = start("--max-workers", "1")
    until_begun(flow, "left", "right")
    assert len(with_dvc(flow)) == 1
    Path("go").touch()
    assert flow.wait(PATIENCE) == 0
    assert [begun[1:] for begun in order()[::2]] == [ended[1:] for ended in order()[1::2]]
    assert len(order()) == 8


@pytest.fixture
def models(project: Repository) -> Repository:
    """Two stages that load a model and hang on nothing; each does what x.sh or y.sh says."""
    project.stages(
        load={
            "matrix": {"item": ["x", "y"]},
            "cmd": "echo +load@${item.item} >> order; sh ./${item.item}.sh || exit; "
            "echo done > ${item.item}; echo -load@${item.item} >> order",
            "outs": ["${item.item}"],
            "meta": {"accelerator": True},
        }
    )
    return project


@pytest.mark.whole
def test_stages_that_load_a_model_wait_for_an_accelerator(models: Repository, start: Start):
    for name in ("x", "y"):
        Path(f"{name}.sh").write_text(wait_for("go"))
    flow = start("--max-workers", "2", "--accelerators", "1")
    until_begun(flow, "load@x", "load@y")
    assert len(with_dvc(flow)) == 1
    Path("go").touch()
    assert flow.wait(PATIENCE) == 0
    assert [line[0] for line in order()] == ["+", "-", "+", "-"]


@pytest.mark.whole
def test_stages_that_load_a_model_overlap_where_there_are_accelerators_for_both(models: Repository):
    Path("x.sh").write_text("touch x-is-here\n" + wait_for("y-is-here"))
    Path("y.sh").write_text("touch y-is-here\n" + wait_for("x-is-here"))
    run("--max-workers", "2", "--accelerators", "2")
    assert [line[0] for line in order()] == ["+", "+", "-", "-"]


def test_a_failing_stage_lets_its_siblings_finish_and_stops_what_hangs_on_it(diamond: Repository, api: str):
    Path("left.sh").write_text("echo 'oxa: data/rows.jsonl: row 7 is empty' >&2; exit 2\n")
    output = run(code=1)
    assert "-right" in order()
    assert "+last" not in order()
    assert order().count("+left") == 1, "a user's mistake is not tried again"
    assert "last                     not run: left failed" in output
    assert output.rstrip().endswith("oxa: stage left: oxa: data/rows.jsonl: row 7 is empty")
    assert flow_runs(api)[0]["state"]["type"] == "FAILED"
    assert task_states(api, flow_runs(api)[0])["left"][0] == "Failed"
    Path("left.sh").write_text("true\n")
    output = run()
    assert "2 run, 2 cached" in output


def test_a_stage_that_could_not_reach_something_is_tried_again(diamond: Repository, api: str):
    Path("first.sh").write_text("test -f been-here || { touch been-here; exit 75; }\n")
    run("first")
    assert order() == ["+first", "+first", "-first"]
    Path("first.sh").write_text("exit 75\n")
    run("first", "--force", code=1)
    assert order().count("+first") == 2 + 3, "flow.retries 2: three tries"


@pytest.mark.whole
def test_a_second_run_says_who_holds_the_folder_and_touches_nothing(diamond: Repository, start: Start):
    Path("first.sh").write_text(wait_for("go"))
    first = start()
    until_begun(first, "first")
    output = run(code=2)
    assert output.startswith(f"oxa: {Path.cwd()} is in use by the flow run ")
    assert f"(process {first.pid}, since 20" in output
    assert order() == ["+first"]
    Path("go").touch()
    assert first.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        *(pytest.param(how, marks=pytest.mark.whole) for how in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_a_flow_that_is_ended_leaves_nothing_running_and_the_next_run_sets_its_record_right(
    diamond: Repository, api: str, start: Start, how: signal.Signals
):
    diamond.set("flow.retry_delay", 2 * PATIENCE)  # a stage that ends with the flow is not tried again
    Path("left.sh").write_text("sleep 1000 & " + wait_for("go"))
    process = start()
    until(lambda: ["sleep", "1000"] in at_work(process), "left at work", process)
    until(lambda: "-right" in order() and with_dvc(process) == {"left"}, "right ended", process)
    processes = below(process.pid)
    process.send_signal(how)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode != 0
    assert "Traceback" not in output
    assert ("oxa: interrupted; run it again" in output) == (how == signal.SIGINT)
    wait_until_gone(processes)
    killed = flow_runs(api)[0]
    Path("go").touch()
    assert "2 run, 2 cached" in run(), "first and right were done"
    by_id = {flow_run["id"]: flow_run["state"]["type"] for flow_run in flow_runs(api)}
    assert len(by_id) == 2
    assert by_id[killed["id"]] in ("CRASHED", "CANCELLED", "FAILED")
    left = {name: state for name, (state, _) in task_states(api, killed).items()}
    assert left["left"] in ("Crashed", "Failed", "Cancelled")
    assert left["first"] == "Completed"


def test_targets_that_do_not_exist_and_limits_below_one_are_a_sentence_each(diamond: Repository):
    assert "no stage is called 'nope' in dvc.yaml; known here: first, last, left, right" in run(
        "nope", code=2
    )
    assert run("--max-workers", "0", code=2) == "oxa: --max-workers 0: expected 1 or more\n"
    Path("dvc.yaml").unlink()
    assert run(code=2) == "oxa: dvc.yaml: no such file; run in the project's folder\n"
    assert order() == []


@pytest.mark.whole
def test_long_work_shows_how_far_it_is(project: Repository, api: str):
    work = "import time; from oxa.runtime import progress\n"
    work += "for _ in progress.bar(range(90), desc='working'): time.sleep(0.1)"
    (project.folder / "work.py").write_text(work)
    project.stages(long={"cmd": f"{sys.executable} work.py && echo done > out", "outs": ["out"]})
    run()
    artifact = artifacts(api, flow_runs(api)[0])["long: done"]
    assert (artifact["type"], float(artifact["data"])) == ("progress", 100.0)


@pytest.mark.whole
def test_without_a_server_of_the_users_all_stays_in_the_project(diamond: Repository, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(["oxa", "run"], env=own | {"HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "4 run" in done.stdout
    assert list(home.iterdir()) == []
    assert (diamond.folder / ".prefect" / "prefect.db").exists()


@pytest.mark.whole
def test_content_that_dvc_restored_is_taken_for_new_by_what_reads_it(diamond: Repository, api: str):
    for text in ("1\n", "2\n", "1\n"):
        Path("input").write_text(text)
        run()
        assert {Path(name).read_text() for name in ("first", "left", "right")} == {text}
        assert Path("last").read_text() == 2 * text
    restored = ("Cached", "DVC: restored")
    assert set(task_states(api, flow_runs(api)[0]).values()) == {restored}


@pytest.mark.whole
def test_stages_find_the_oxa_beside_this_python_without_an_activated_environment(project: Repository):
    project.stages(only={"cmd": "oxa --help > out", "outs": ["out"]})
    oxa = Path(sys.executable).with_name("oxa")
    done = subprocess.run(
        [str(oxa), "run"],
        env=os.environ | {"PATH": "/usr/bin:/bin"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.whole
def test_a_fault_of_ours_keeps_its_traceback(project: Repository):
    project.stages(report={"cmd": "echo no table > out", "outs": ["out"]})
    done = subprocess.run(["oxa", "run"], text=True, capture_output=True)
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr.splitlines()[-1]
    assert "Traceback" in done.stderr


@pytest.mark.whole
def test_a_run_whose_server_dies_ends_with_one_sentence_and_the_next_goes_on(
    diamond: Repository, start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PREFECT_API_URL")
    os.mkfifo("go")
    Path("right.sh").write_text("cat go\n")
    flow = start()
    until(
        lambda: Path("order").exists() and "+right" in Path("order").read_text(), "the stage is at work", flow
    )
    server = next(p for p in below(flow.pid) if p.cmdline()[1:5] == ["-m", "prefect", "server", "start"])
    others = [p for p in below(flow.pid) if p != server]
    server.kill()
    printed, _ = flow.communicate(timeout=PATIENCE)
    assert flow.returncode == os.EX_TEMPFAIL, printed
    sentences = [line for line in printed.splitlines() if line.startswith("oxa: ")]
    assert len(sentences) == 1
    assert "oxa: the Prefect server at http://127.0.0.1:" in sentences[0]
    assert "Traceback" not in printed
    assert len(printed) < 2000
    wait_until_gone(others)
    Path("right.sh").write_text("true\n")
    assert "2 cached" in run()
    assert Path("last").exists()
