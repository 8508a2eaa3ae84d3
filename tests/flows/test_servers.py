"""Prefect's and MLflow's servers as real processes, in a project folder and a home of their own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import PATIENCE, left_running

from oxa.runtime.server import free_port

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.whole

REPORTED = "import sys\nfrom oxa.errors import UserError\nfrom flows import servers\n"
A_FLOW = """
with servers.prefect_api() as url:
    from prefect import flow, get_run_logger, task

    @task
    def double(x):
        for line in range(50):
            get_run_logger().info("line %s of %s", line, x)
        return 2 * x

    @flow
    def doubles():
        return sum(double.map(range(8)).result())

    print(url, doubles())
"""
A_RUN_ON_SQLITE = """
import mlflow

mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("oxa")
with mlflow.start_run() as run:
    mlflow.log_text("seen", "notes/a.txt")
print(run.info.run_id)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder; its databases grow from test to test, because making them takes seconds.

    At the end nothing runs in it, and nothing was written to the home of its user.
    """
    folder = tmp_path_factory.mktemp("servers") / "project"
    folder.mkdir()
    home = folder.parent / "home"
    home.mkdir()
    yield folder
    wait_until_nothing_runs(folder)
    assert [str(path) for path in home.rglob("*")] == []


def environment(folder: Path, **changed: str) -> dict[str, str]:
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "MLFLOW", "XDG"))
    }
    own = {"HOME": str(folder.parent / "home"), "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return inherited | own | changed


def python(folder: Path, code: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Runs code in the project folder; a UserError becomes its sentence and exit code 2, as with `oxa`."""
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    report = "\nexcept UserError as error:\n    print(error, file=sys.stderr)\n    sys.exit(2)\n"
    return subprocess.run(
        [sys.executable, "-c", f"{REPORTED}try:\n{indented}{report}"],
        cwd=folder,
        env=environment(folder, **changed),
        text=True,
        capture_output=True,
        timeout=PATIENCE,
    )


def wait_until_nothing_runs(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while left_running(folder):
        assert time.monotonic() < deadline, f"left running: {left_running(folder)}"
        time.sleep(0.05)


def ask(url: str, body: dict[str, Any] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(response.read().decode())


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        ask(url)
        return True
    return False


def test_a_run_gets_a_server_of_its_own_that_keeps_every_state_and_log_line_and_ends_with_it(folder: Path):
    done = python(folder, A_FLOW)
    assert done.returncode == 0, done.stderr
    url, result = done.stdout.split()
    assert result == "56"
    assert "Error" not in done.stderr
    wait_until_nothing_runs(folder)
    assert not answers(f"{url}/health")
    with contextlib.closing(sqlite3.connect(folder / ".prefect" / "prefect.db")) as database:
        assert database.execute("select name, state_name from flow_run").fetchall()[0][1] == "Completed"
        assert database.execute("select state_name, count(*) from task_run group by 1").fetchall() == [
            ("Completed", 8)
        ]
        assert database.execute("select count(*) from log where message like 'line % of %'").fetchone() == (
            400,
        )


def test_killed_with_signal_9_a_run_takes_its_server_along(folder: Path):
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{REPORTED}with servers.prefect_api() as url:\n print(url, flush=True)\n input()",
        ],
        cwd=folder,
        env=environment(folder),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    url = process.stdout.readline().strip()
    assert answers(f"{url}/health")
    assert len(left_running(folder)) == 3, "the run, the keeper and the server"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until_nothing_runs(folder)
    assert not answers(f"{url}/health")


def test_an_address_of_ones_own_that_does_not_answer_is_told_in_a_sentence(folder: Path):
    url = f"http://127.0.0.1:{free_port()}/api"
    done = python(folder, "with servers.prefect_api(): raise AssertionError", PREFECT_API_URL=url)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"PREFECT_API_URL {url}: no Prefect API answers")
    assert done.stderr.count("\n") == 1


def test_an_address_in_prefects_profile_counts_as_well(folder: Path):
    url = f"http://127.0.0.1:{free_port()}/api"
    profiles = folder / ".prefect" / "profiles.toml"
    profiles.write_text(f'active = "own"\n[profiles.own]\nPREFECT_API_URL = "{url}"\n')
    try:
        done = python(folder, "with servers.prefect_api(): raise AssertionError")
    finally:
        profiles.unlink()
    assert done.returncode == 2, done.stderr
    assert f"PREFECT_API_URL {url}: no Prefect API answers" in done.stderr


def test_a_server_that_cannot_start_shows_the_end_of_its_log(folder: Path):
    database = f"sqlite+aiosqlite:///{folder}/no such folder/prefect.db"
    done = python(
        folder,
        "with servers.prefect_api(): raise AssertionError",
        PREFECT_API_DATABASE_CONNECTION_URL=database,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("the Prefect server ended with exit code")
    assert "unable to open database file" in done.stderr


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            "update alembic_version set version_num = 'ffffffffffff'",
            "Can't locate revision identified by 'ff",
        ),
        ("", "file is not a database"),
    ],
)
def test_a_database_of_a_newer_prefect_or_no_database_is_one_sentence_with_what_to_do(
    folder: Path, damage: str, said: str
):
    database = folder / ".prefect" / "prefect.db"
    whole = database.with_suffix(".whole")
    with contextlib.closing(sqlite3.connect(database)) as connected:
        connected.execute("pragma wal_checkpoint(truncate)")
    shutil.copy(database, whole)
    if damage:
        with contextlib.closing(sqlite3.connect(database)) as connected:
            connected.execute(damage)
            connected.commit()
            connected.execute("pragma wal_checkpoint(truncate)")
    else:
        database.write_bytes(b"\xff" * 100_000)
    done = python(folder, "with servers.prefect_api(): raise AssertionError")
    for name in folder.joinpath(".prefect").glob("prefect.db-*"):
        name.unlink()
    whole.replace(database)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert "move .prefect/prefect.db* away" in done.stderr


class Ui:
    """`oxa ui` as a process, up."""

    def __init__(self, folder: Path, prefect_port: int, mlflow_port: int, **changed: str) -> None:
        self.process = subprocess.Popen(
            ["oxa", "ui", "--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)],
            cwd=folder,
            env=environment(folder, **changed),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.printed: list[str] = []
        assert self.process.stdout
        for line in self.process.stdout:
            self.printed.append(line.rstrip())
            if "Ctrl-C" in line:
                break
        else:
            raise AssertionError(self.process.communicate())

    def address(self, name: str) -> str:
        return next(line.split()[1] for line in self.printed if line.startswith(f"{name} "))

    def servers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def ui(folder: Path) -> Iterator[Ui]:
    """`oxa ui`, asked for a port that another program has."""
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        shown = Ui(folder, prefect_port=port, mlflow_port=port + 50)
    assert shown.printed[0] == f"port {port} is taken; the Prefect server listens on {port + 1}"
    yield shown
    shown.process.kill()
    shown.process.communicate()


def test_oxa_ui_shows_the_pages_of_both_servers_on_this_machine_only(ui: Ui):
    assert "<title>Prefect Server</title>" in ask(ui.address("Prefect"))
    assert "<title>MLflow</title>" in ask(ui.address("MLflow"))
    assert f"export PREFECT_API_URL={ui.address('Prefect')}/api" in ui.printed
    assert (
        json.loads(ask(f"{ui.address('Prefect')}/ui-settings"))["api_url"] == f"{ui.address('Prefect')}/api"
    )
    assert not any("sqlite:" in word for process in ui.servers() for word in process.cmdline()), (
        "the database's URI, with its password, would show in `ps`"
    )
    listening = {
        connection.laddr.ip
        for process in ui.servers()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_only_the_ui_s_own_pages_may_ask_prefects_api(ui: Ui):
    own = ui.address("Prefect")

    def allowed(origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        request = urllib.request.Request(f"{own}/api/flow_runs/filter", headers=headers, method="OPTIONS")
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request) as response:
            return str(response.headers["Access-Control-Allow-Origin"])
        return None

    assert allowed(own) == own
    assert allowed(own.replace("127.0.0.1", "localhost")) is not None
    assert allowed("http://evil.example") is None


def test_a_run_finds_oxa_ui_and_shows_there(folder: Path, ui: Ui):
    done = python(folder, A_FLOW)
    assert done.returncode == 0, done.stderr
    api = f"{ui.address('Prefect')}/api"
    assert done.stdout.split() == [api, "56"]
    runs = json.loads(ask(f"{api}/flow_runs/filter", {"sort": "START_TIME_DESC"}))
    assert (len(runs), runs[0]["state_name"]) == (2, "Completed"), "the run of the first test, and this one"


def test_the_address_of_prefects_pages_is_not_taken_for_its_api(folder: Path, ui: Ui):
    url = ui.address("Prefect")
    done = python(folder, "with servers.prefect_api(): raise AssertionError", PREFECT_API_URL=url)
    assert done.returncode == 2, done.stderr
    assert f"PREFECT_API_URL {url}: no Prefect API answers" in done.stderr


def test_artifacts_of_runs_that_went_to_the_database_directly_are_shown(folder: Path, ui: Ui):
    mlflow = ui.address("MLflow")
    run_id = python(folder, A_RUN_ON_SQLITE).stdout.strip()
    assert ask(f"{mlflow}/get-artifact?path=notes/a.txt&run_uuid={run_id}") == "seen"
    made = json.loads(ask(f"{mlflow}/api/2.0/mlflow/experiments/create", {"name": "made by the server"}))
    name = f"experiment_id={made['experiment_id']}"
    experiment = json.loads(ask(f"{mlflow}/api/2.0/mlflow/experiments/get?{name}"))["experiment"]
    assert Path(experiment["artifact_location"]).parent == folder / "mlruns"


def test_a_second_oxa_ui_says_where_the_first_is(folder: Path, ui: Ui):
    second = subprocess.run(
        ["oxa", "ui"], cwd=folder, env=environment(folder), text=True, capture_output=True, timeout=PATIENCE
    )
    assert second.returncode == 2
    assert second.stderr == (
        f"oxa: oxa ui already runs here: at {ui.address('Prefect')} and {ui.address('MLflow')} "
        f"(process {ui.process.pid})\n"
    )


def test_ctrl_c_ends_both_servers(folder: Path, ui: Ui):
    ui.process.send_signal(signal.SIGINT)
    _, complaints = ui.process.communicate(timeout=PATIENCE)
    assert (ui.process.returncode, complaints) == (0, "")
    assert left_running(folder) == []
    assert not (folder / ".prefect" / "ui.json").exists()


def test_a_server_that_dies_ends_oxa_ui_and_an_mlflow_server_elsewhere_is_only_named(folder: Path):
    port = free_port()
    shown = Ui(folder, port, port, MLFLOW_TRACKING_URI="http://somebody:secret@mlflow.example:5000")
    assert shown.address("MLflow") == "http://mlflow.example:5000"
    assert "secret" not in "".join(shown.printed) + (folder / ".prefect" / "ui.json").read_text()
    keeper, server = shown.servers()
    assert "oxa.runtime.child" in keeper.cmdline()
    server.kill()
    _, complaints = shown.process.communicate(timeout=PATIENCE)
    assert shown.process.returncode == 2
    assert complaints.startswith("oxa: the Prefect server ended with exit code 137")
    assert left_running(folder) == []


def test_a_tracking_uri_that_no_server_can_serve_is_refused(folder: Path):
    done = python(folder, "servers.ui()", MLFLOW_TRACKING_URI="ftp://somebody:secret@host/somewhere")
    assert done.returncode == 2
    assert "'ftp://host/somewhere' is neither a database nor an http address" in done.stderr


def test_an_address_left_by_a_killed_oxa_ui_is_not_used_whoever_answers_there_now(folder: Path):
    left = folder / ".prefect" / "ui.json"
    code = """
import http.server, json, threading
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
threading.Thread(target=other.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{other.server_port}"
servers.UI.write_text(json.dumps({"pid": 1, "prefect": url, "mlflow": url, "prefect_api": url + "/api"}))
print(servers._api_of_ui())
with servers._only_ui():
    servers.UI.write_text(json.dumps({"pid": 1, "prefect": url, "mlflow": url, "prefect_api": url + "/api"}))
    print(servers._api_of_ui() == url + "/api")
"""
    done = python(folder, code)
    left.unlink()
    assert done.stdout.split() == ["None", "True"], done.stderr
