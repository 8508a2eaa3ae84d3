"""Section `generate`: which engine writes text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oxa.config.section import Address, Count, Positive, Section


class Vllm(Section):
    """The vLLM server that is started for a stage and ends with it; unused with generate.url."""

    python: str = ".venv-vllm/bin/python"
    """Interpreter that has vLLM, which may live in an environment of its own (`make vllm-cpu` builds this one)."""
    data_parallel: Count = 1
    """Copies of the model, each on GPUs of its own."""
    tensor_parallel: Count = 1
    """GPUs over which one copy is spread."""
    max_model_len: Count | None = None
    """Longest sequence that the server takes, tokens; none: what the prompts and max_tokens come to."""
    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a device's memory that weights and KV cache may take; none: vLLM's own (on CPUs 4 GiB of KV cache, or
    what VLLM_CPU_KVCACHE_SPACE says)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and arithmetic; `auto` takes the checkpoint's."""
    startup_seconds: Positive = 600.0
    """How long the server may take until it answers."""
    flags: list[str] = []
    """Further arguments of `vllm serve`, for example ["--enforce-eager"]."""


class Generate(Section):
    """How text is generated, by the stages `gates`, `sample` and `evaluate` alike."""

    engine: Literal["torch", "vllm"] = "torch"
    """`torch`: this process, on the CPU or one GPU. `vllm`: a vLLM server that the stage starts, or those of `url`."""
    batch_size: Count = 256
    """Responses generated together (engine torch)."""
    url: list[Address] = []
    """Running servers of the same model, for example ["http://10.0.0.2:8000"], among which requests are shared out;
    none: one is started (engine vllm). A key that they ask for is read from VLLM_API_KEY, a user and password from
    ~/.netrc or the file that NETRC names; DVC would write those of an address into dvc.lock."""
    concurrency: Count = 256
    """Requests in flight at one server (engine vllm)."""
    vllm: Vllm = Vllm()
    """The server that is started."""
