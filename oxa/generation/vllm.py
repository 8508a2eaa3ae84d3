"""Responses of vLLM servers over HTTP: the engine `vllm`. One server is started for it, or several run already.

A request is POST /v1/completions with the prompt as token ids, and the answer is read as token ids: our chat template
and our tokenizer serve both engines. Every setting that moves the distribution is sent, those which are off too, so
that neither a server's defaults nor a checkpoint's generation_config.json has a say; the end tokens are sent as stop
tokens, and vLLM's own end token is switched off. The seed of a response is a hash of (sampling.seed, response_id); vLLM
repeats its draw where it repeats its logits, which it does only nearly when other requests share its batches.

What this leaves out: several responses of one request (`n`), which would share a seed; log-probabilities, of which a
server tells a few a position, where entropy takes all (stages/evaluate.py measures it afterwards).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from oxa import hashes
from oxa.config.generate import Generate
from oxa.config.section import Sampling
from oxa.errors import ConfigError, DataError
from oxa.generation.client import Client
from oxa.generation.replica import Replica, too_short
from oxa.generation.requests import Generation, Note, Request, Shard
from oxa.generation.server import VllmServer
from oxa.model import loading


class Student(NamedTuple):
    """What is known of a model without its weights."""

    path: str | Path
    tokenizer: Any
    context: int
    """Tokens."""
    ends: list[int]
    """Ids of the tokens that end a response."""


def vllm_engine(
    model_path: str | Path,
    shards: list[Shard],
    sampling: Sampling,
    engine: Generate,
    note: Note,
    folder: Path,
) -> Iterator[tuple[int, list[Generation]]]:
    """Shards of one request each, in the order in which they finish. A started server's log lies in `folder`.

    A prompt that fills the model's context gets the empty response, and no server is asked for it.
    """
    student = _student(model_path)
    fitting: dict[int, Request] = {}
    for index, (request,) in enumerate(shards):
        if len(request.prompt) < student.context:
            fitting[index] = request
        else:
            yield index, [Generation(request.response_id, "", 0, "length", math.nan)]
    if not fitting:
        return
    longest = max(len(request.prompt) for request in fitting.values())
    needed = min(longest + sampling.max_tokens, student.context)
    with contextlib.ExitStack() as stack:
        if engine.url:
            replicas = [Replica(url.rstrip("/").removesuffix("/v1")) for url in engine.url]
            check: Callable[[], None] = _nothing
        else:
            room = engine.vllm.max_model_len or needed
            if room < needed:
                raise ConfigError(too_short("generate.vllm.max_model_len", room, needed))
            started = VllmServer(model_path, engine.vllm, max_model_len=room, folder=folder)
            stack.enter_context(started)
            replicas = [Replica(started.url, started.name)]
            check = started.check
        runner = stack.enter_context(asyncio.Runner())
        client = Client(
            replicas,
            engine.concurrency,
            body=lambda index: _body(fitting[index], sampling, student),
            check=check,
        )
        stack.callback(lambda: runner.run(client.close()))
        runner.run(client.open(student.path, needed))
        versions = sorted({replica.version for replica in client.alive})
        metadata: dict[str, Any] = {"vllm": versions, "end_ids": student.ends}
        if not engine.url:  # servers that were there keep theirs to themselves
            metadata |= {"dtype": engine.vllm.dtype, "flags": engine.vllm.flags}
        note(metadata)
        runner.run(client.ask(fitting))
        for _ in range(len(fitting)):
            index, choice, url = runner.run(client.answer())
            yield index, [_generation(fitting[index], choice, student, url)]


def _nothing() -> None:
    """Looks after servers that are not ours."""


def _student(model_path: str | Path) -> Student:
    from transformers import AutoConfig, GenerationConfig

    tokenizer = loading.load_tokenizer(model_path)
    try:
        settings = AutoConfig.from_pretrained(str(model_path), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{model_path}: no usable config.json: {str(error).splitlines()[0]}") from None
    try:  # as transformers' from_pretrained does for a model
        generation = GenerationConfig.from_pretrained(str(model_path))
    except OSError:
        generation = GenerationConfig.from_model_config(settings)
    bare = SimpleNamespace(config=settings, generation_config=generation, device="cpu")
    ends = loading.end_ids(bare, tokenizer).tolist()
    context = loading.context_length(settings)
    return Student(model_path, tokenizer, context, ends)


def seed_of(seed: int, response_id: str) -> int:
    """63 bits: vLLM takes signed 64-bit seeds."""
    return int(hashes.stream_keys(seed, [response_id])[0]) >> 1


def _body(request: Request, sampling: Sampling, student: Student) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "max_tokens": min(sampling.max_tokens, student.context - len(request.prompt)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed_of(sampling.seed, request.response_id),
        "stop_token_ids": student.ends,
        "ignore_eos": True,  # the end tokens above and no other
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "watermarking": False,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }


def _generation(request: Request, choice: dict[str, Any], student: Student, url: str) -> Generation:
    """The response that an answer holds; DataError where it holds none, or one to something else."""
    tokens, reason = choice.get("token_ids"), choice.get("finish_reason")
    if not tokens:
        raise DataError(f"{url}: the answer holds no token ids; a vLLM server (0.10.2 or newer) is needed")
    if choice.get("prompt_token_ids", request.prompt) != request.prompt:
        raise DataError(f"{url}: the server changed the prompt of response {request.response_id}")
    ended = tokens[-1] in student.ends
    if reason not in ("stop", "length") or (reason == "stop") != ended:
        raise DataError(
            f"{url}: response {request.response_id} ended with token {tokens[-1]} for the reason {reason!r}, and the "
            f"end tokens are {student.ends}; start the server with --generation-config vllm"
        )
    (text,) = student.tokenizer.batch_decode(
        [tokens[:-1] if ended else tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return Generation(request.response_id, text, len(tokens), reason, math.nan)
