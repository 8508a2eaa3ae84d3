"""Text from a language model: whole responses to prompts, the same ones however the work is cut up.

Requests are cut into shards that depend on the set of requests alone, and an engine makes a shard's responses. A
finished shard is a file in `scratch`, whose name hashes all that determines its content; a run that was killed takes
up after the last of them and, with an engine whose numbers repeat (sampler.py), ends with bit-identical output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from oxa import config, progress, records
from oxa.errors import DataError

SHARD = pa.schema(
    [
        ("response_id", pa.string()),
        ("text", pa.string()),
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("mean_entropy", pa.float64()),
    ]
)


class Request(NamedTuple):
    response_id: str
    """Stable and unique: with the seed, it determines the response's random numbers."""
    prompt: list[int]
    """Token ids up to where the response begins."""


class Generation(NamedTuple):
    response_id: str
    text: str
    """Verbatim, special tokens included, without the end token."""
    num_tokens: int
    """Generated tokens, the end token included; 0 where the prompt fills the model's context, and only there."""
    finish_reason: str
    """`stop`: an end token was drawn; `length`: max_tokens or the model's context was reached."""
    mean_entropy: float
    """Of the model's own distribution (temperature 1, before top-p), nats a token; NaN where num_tokens is 0."""


Shard = list[Request]
Engine = Callable[
    [str | Path, list[Shard], config.Sampling, config.Generate], Iterator[tuple[int, list[Generation]]]
]
"""Takes the model and the shards that are missing; yields (index, generations) as shards finish, in any order.

An engine may work on several shards at once, but what it yields for one must not depend on the others: resuming
after a kill asks for fewer of them.
"""


def _torch(
    model_path: str | Path, shards: list[Shard], sampling: config.Sampling, engine: config.Generate
) -> Iterator[tuple[int, list[Generation]]]:
    from oxa import sampler  # an engine imports the types above

    return sampler.torch_engine(model_path, shards, sampling, engine)


ENGINES: dict[str, Engine] = {"torch": _torch}


def generate(
    model_path: str | Path,
    requests: Sequence[Request],
    sampling: config.Sampling,
    engine: config.Generate,
    *,
    scratch: Path,
    description: str,
) -> list[Generation]:
    """One response a request, in the order of `requests`; finished shards are kept in `scratch`.

    A prompt that leaves no room in the model's context gets no token. Raises DataError where all of them leave none,
    or the model computes no probabilities.
    """
    assert len({request.response_id for request in requests}) == len(requests), "response ids must be unique"
    model_key = _fingerprint(model_path) if requests else ""
    shards = _shards(requests, engine.batch_size)
    files = [scratch / f"{_shard_key(model_key, shard, sampling, engine)}.parquet" for shard in shards]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    done = len(requests) - sum(len(shards[i]) for i in missing)
    with progress.bar(total=len(requests), initial=done, desc=description, unit="response") as bar:
        if missing:
            run = ENGINES[engine.engine]
            for index, generations in run(model_path, [shards[i] for i in missing], sampling, engine):
                rows = [generation._asdict() for generation in generations]
                records.write(files[missing[index]], rows, SHARD)
                bar.update(len(rows))
    # what was just made is read back, too: resumed or not, the result has passed through the same files
    found = {
        row["response_id"]: Generation(**row)
        for file in files
        for row in records.read(file, SHARD).to_pylist()
    }
    # asked of all responses, not by the engine: a resumed run may have only the longest prompts left
    if requests and not any(generation.num_tokens for generation in found.values()):
        raise _no_room(model_path, min(requests, key=lambda request: len(request.prompt)))
    return [found[request.response_id] for request in requests]


def _no_room(model_path: str | Path, shortest: Request) -> DataError:
    from transformers import AutoConfig

    context = AutoConfig.from_pretrained(str(model_path)).get_text_config().max_position_embeddings
    return DataError(
        f"response {shortest.response_id}: its prompt of {len(shortest.prompt)} tokens leaves no room in the "
        f"context of {context} tokens of {model_path}; drop the problem or raise max_position_embeddings"
    )


def _shards(requests: Sequence[Request], batch_size: int) -> list[Shard]:
    """Neighbours in length share a shard, so that little is padded; equal prompts lie together, to be read once."""
    ordered = sorted(requests, key=lambda request: (len(request.prompt), request.prompt, request.response_id))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def _shard_key(model_key: str, shard: Shard, sampling: config.Sampling, engine: config.Generate) -> str:
    settings = [sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed]
    return hashlib.sha256(json.dumps([engine.engine, model_key, settings, shard]).encode()).hexdigest()[:32]


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
