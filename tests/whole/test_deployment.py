"""prefect.yaml as a person uses it: a server, a work pool, `prefect deploy`, a worker, and the schedule fires."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines import make_repository, tiny_params

from oxa.runtime.child import Child
from oxa.runtime.server import free_port

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.whole


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project in a folder of its own, tiny; nothing in it knows where it lies."""
    folder = make_repository(tmp_path / "project")
    shutil.copytree(ROOT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    params = tiny_params() | {"tracking": {"enabled": False}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    changed = {
        "HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "MLFLOW"))}
    return inherited | changed


@pytest.fixture
def api(project: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Address of a running Prefect server; it is set in the environment, too."""
    port = free_port(30_500)
    url = environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"]
    with (
        (tmp_path / "server.log").open("w") as log,
        Child(command, cwd=project, env=environment, stdout=log, stderr=log) as server,
    ):
        deadline = time.monotonic() + 120
        while True:
            try:
                ask(f"{url}/health")
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def prefect(project: Path, environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_deployment_is_applied_paused_and_a_schedule_that_is_on_completes_a_run(
    project: Path, environment: dict[str, str], api: str, tmp_path: Path
):
    prefect(project, environment, "work-pool", "create", "oxa", "--type", "process")
    prefect(project, environment, "deploy", "--all")
    made = ask(f"{api}/deployments/name/oxa/oxa")
    assert [schedule["active"] for schedule in made["schedules"]] == [False]
    assert made["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert made["global_concurrency_limit"]["limit"] == 1
    assert made["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    fields = made["parameter_openapi_schema"]["properties"]  # what the pages make the form of
    assert fields["force"]["type"] == "boolean"
    assert {"type": "array", "items": {"type": "string"}} in fields["targets"]["anyOf"]
    assert {"minimum": 1, "type": "integer"} in fields["max_workers"]["anyOf"]

    written = yaml.safe_load((project / "prefect.yaml").read_text())
    written["deployments"][0]["schedules"] = [{"interval": 10, "active": True}]
    written["deployments"][0]["parameters"] = {"targets": ["ingest"]}
    (project / "prefect.yaml").write_text(yaml.safe_dump(written))
    prefect(project, environment, "deploy", "--all")
    log = tmp_path / "worker.log"
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "oxa", "--type", "process"]
    with log.open("w") as output, Child(worker, cwd=project, env=environment, stdout=output, stderr=output):
        deadline = time.monotonic() + 180
        while not (completed := runs(api, "COMPLETED")):
            assert not runs(api, "FAILED") + runs(api, "CRASHED"), log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    assert completed[0]["auto_scheduled"]
    assert completed[0]["deployment_id"] == made["id"]
    assert (project / "data" / "problems.parquet").exists()
    assert list((tmp_path / "home").iterdir()) == []


def runs(api: str, state: str) -> list[dict[str, Any]]:
    matching: list[dict[str, Any]] = ask(
        f"{api}/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": [state]}}}}
    )
    return matching
