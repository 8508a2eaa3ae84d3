"""Text from a language model: whole responses to prompts, the same ones however the work is cut up.

Requests are cut into shards that depend on the set of requests alone, and an engine makes a shard's responses. They go
to a file in `scratch` as soon as their shard is finished, under a hash of all that determines them. A run that was
killed makes the missing shards only and, with an engine whose numbers repeat (sampler.py), ends with bit-identical
output. For vLLM (vllm.py) a shard is one response, and a kill costs those in flight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oxa.config.generate import Generate
from oxa.config.section import Sampling
from oxa.errors import DataError
from oxa.generation.requests import Engine, Request, Shard
from oxa.generation.sampler import torch_engine
from oxa.generation.store import Generations, Store
from oxa.generation.vllm import vllm_engine
from oxa.model import loading
from oxa.runtime import progress
from oxa.runtime.shards import Shards

ALONE = Shards()
ENGINES: dict[str, Engine] = {"torch": torch_engine, "vllm": vllm_engine}


def generate(
    model_path: str | Path,
    requests: Sequence[Request],
    sampling: Sampling,
    engine: Generate,
    *,
    scratch: Path,
    description: str,
    processes: Shards = ALONE,
) -> Generations:
    """One response a request, in the order of `requests`; what is finished lies in `scratch`.

    Several processes that call this alike share the work, and each returns all of it. The engine `vllm` works in the
    first process of every machine, whose server has all of that machine's GPUs.

    A prompt that leaves no room in the model's context gets no token. Raises DataError where all of them leave none,
    or the model computes no probabilities.
    """
    assert len({request.response_id for request in requests}) == len(requests), "response ids must be unique"
    common = _common_key(_fingerprint(model_path) if requests else "", sampling, engine)
    store = Store(scratch, common, processes.rank)
    processes.meet()  # or another's file might be missed
    store.look()
    shards = _shards(requests, 1 if engine.engine == "vllm" else engine.batch_size)
    keys = [_hash(shard) for shard in shards]
    missing = [
        index
        for index, (key, shard) in enumerate(zip(keys, shards, strict=True))
        if any((key, request.response_id) not in store.places for request in shard)
    ]
    processes.meet()  # before anyone's missing ones become fewer
    own = processes.share(missing, one_a_machine=engine.engine == "vllm")
    done = len(requests) - sum(len(shards[i]) for i in missing)
    total, quiet = done + sum(len(shards[i]) for i in own), not processes.is_first
    with progress.bar(total=total, initial=done, desc=description, unit="response", quiet=quiet) as bar:
        if own:
            run = ENGINES[engine.engine]
            folder = scratch if processes.is_first else scratch / f"process-{processes.rank}"
            folder.mkdir(exist_ok=True)
            todo = [shards[i] for i in own]
            for index, made in run(model_path, todo, sampling, engine, store.note, folder):
                store.add(keys[own[index]], made)
                bar.update(len(made))
    processes.meet()
    store.look()
    places = {
        request.response_id: store.places[key, request.response_id]
        for key, shard in zip(keys, shards, strict=True)
        for request in shard
    }
    # what was just made is read back, too: resumed or not, the result has passed through the same file
    generations = Generations(
        store, [places[request.response_id] for request in requests], _settings(sampling, engine, store.notes)
    )
    # looked for in all responses, not by the engine: a resumed run may have only the longest prompts left
    if requests and not any(generation.num_tokens for generation in generations):
        raise _no_room(model_path, min(requests, key=lambda request: len(request.prompt)))
    return generations


def _settings(sampling: Sampling, engine: Generate, notes: list[dict[str, Any]]) -> dict[str, Any]:
    """`made_by` has an entry a version, where a run was resumed with another one."""
    return {
        "engine": engine.engine,
        "made_by": sorted(notes, key=str),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
    }


def _no_room(model_path: str | Path, shortest: Request) -> DataError:
    from transformers import AutoConfig

    context = loading.context_length(AutoConfig.from_pretrained(str(model_path)))
    return DataError(
        f"response {shortest.response_id}: its prompt of {len(shortest.prompt)} tokens leaves no room in the "
        f"context of {context} tokens of {model_path}; drop the problem or raise max_position_embeddings"
    )


def _shards(requests: Sequence[Request], batch_size: int) -> list[Shard]:
    """Neighbours in length share a shard, so that little is padded; equal prompts lie together, to be read once."""
    ordered = sorted(requests, key=lambda request: (len(request.prompt), request.prompt, request.response_id))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def _common_key(model_key: str, sampling: Sampling, engine: Generate) -> str:
    settings: list[Any] = [sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed]
    if engine.engine == "vllm":
        settings += [engine.vllm.dtype, engine.vllm.flags]
    return _hash([engine.engine, model_key, settings])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _fingerprint(model_path: str | Path) -> str:
    """Hash of a local checkpoint's files; of a hub id, its name (the hub's cache holds one version a run)."""
    digest = hashlib.sha256()
    folder = Path(model_path)
    if not folder.is_dir():
        return str(model_path)
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model"):
            with file.open("rb") as stream:
                digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
