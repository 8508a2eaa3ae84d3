"""What round a project would stop a run in the middle: told in a sentence, before anything runs."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import serving, trickle

from conftest import Repository
from flows import cli, surroundings
from flows import servers as flow_servers

LONGEST = 75  # characters of TMPDIR


@pytest.fixture
def project(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one stage, and no configuration of git's from outside."""
    repository.stages(only={"cmd": "touch ran", "outs": ["ran"]})
    repository.set("tracking.enabled", False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert list(surroundings.faults()) == []
    return repository.folder


def refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which `oxa run` refuses and `oxa doctor` warns."""
    capsys.readouterr()
    assert cli.main(["run"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    sentence = sentence.removeprefix("oxa: ")
    assert not Path("ran").exists()
    assert cli.main(["doctor"]) == 2
    assert f"around    {sentence}\n" in capsys.readouterr().out
    return sentence


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_project_of_another_user_is_refused_with_the_command_that_trusts_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["chown", "-R", "nobody", project], check=True)
    sentence = refused_before_anything_runs(capsys)
    assert f"`git config --global --add safe.directory {project}` has them trust it" in sentence
    for number, value in {"COUNT": "1", "KEY_0": "safe.directory", "VALUE_0": str(project)}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{number}", value)
    assert list(surroundings.faults()) == []


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def long_folder(short: Path, length: int) -> str:
    folder = short / ("y" * (length - len(str(short)) - 1))
    folder.mkdir()
    return str(folder)


def test_a_folder_of_too_long_a_name_for_sockets_is_refused_by_every_stage(
    project: Path, short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", long_folder(short, LONGEST + 1))
    sentence = refused_before_anything_runs(capsys)
    assert "76 characters long" in sentence
    paths = [w for o in ("problems", "responses", "output", "metrics") for w in (f"--{o}", o)]
    assert cli.main(["verify", "--origin", "self", *paths]) == 2
    assert capsys.readouterr().err == f"oxa: {sentence}\n"


@pytest.mark.whole
def test_the_longest_folder_that_is_taken_is_no_longer_than_what_works(short: Path) -> None:
    script = short / "grade.py"
    script.write_text(
        "from oxa.config.verify import Verify\n"
        "from oxa.grading.grader import Grader\n"
        "if __name__ == '__main__':\n"
        "    with Grader(Verify(workers=1)) as grader:\n"
        "        print(grader.check_golds([['1']]))\n"
    )
    own = {"TMPDIR": long_folder(short, LONGEST), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, script], env=os.environ | own, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[True]\n", done.stderr


@pytest.mark.parametrize("content", ["", "[", "[]", "\x00" * 40])
def test_a_damaged_lock_of_dvcs_is_named_with_what_to_do(
    project: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    lock = project / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(content)
    fault = next(surroundings.faults())
    assert fault.startswith(f"{lock}: not what DVC writes there")
    if content == "":
        assert refused_before_anything_runs(capsys) == fault
    lock.write_text("{}")
    assert list(surroundings.faults()) == []


@pytest.fixture
def server() -> Iterator[Any]:
    """A server whose version the test sets: what Prefect's client asks first, and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(self.server.version if self.path.endswith("/version") else True).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_prefect_server_older_than_the_client_is_refused(
    project: Path, server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import prefect

    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    prefect.context.refresh_global_settings_context()
    for server.version in (prefect.__version__, "3.99.1"):
        assert surroundings.prefect_fault() is None
    server.version = "3.1.4"
    try:
        sentence = refused_before_anything_runs(capsys)
    finally:
        monkeypatch.undo()
        prefect.context.refresh_global_settings_context()
    assert f"its Prefect server is of version 3.1.4, older than the {prefect.__version__} here" in sentence


def test_a_prefect_server_that_trickles_is_given_up(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect

    monkeypatch.setattr(flow_servers, "ANSWER", 0.5)
    with serving(trickle) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        prefect.context.refresh_global_settings_context()
        fault = surroundings.prefect_fault()
    monkeypatch.delenv("PREFECT_API_URL")
    prefect.context.refresh_global_settings_context()
    assert fault is not None
    assert "no Prefect API answers (no whole answer within 2 s)" in fault


@pytest.mark.parametrize("name", [".work", ".tracking", ".prefect"])
def test_a_file_where_a_folder_of_ours_belongs_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(flow_servers, "FOLDER", project / ".prefect")  # made when flows was imported
    shutil.rmtree(name, ignore_errors=True)
    Path(name).touch()
    assert cli.main(["run"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        f"{name}: a file lies here, where a folder of the project's own belongs; move it away\n"
    )


def test_a_folder_where_a_file_of_ours_belongs_is_one_sentence(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".work/flow.lock").mkdir(parents=True)
    assert cli.main(["run"]) == 2
    assert capsys.readouterr().err.startswith("oxa: .work/flow.lock: a folder lies here, where a file")
