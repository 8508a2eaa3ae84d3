"""Text from a language model: whole responses to prompts, the same ones however the work is cut up.

Requests are cut into shards that depend on the set of requests alone, and an engine makes a shard's responses. What is
made goes to a file in `scratch` at once, response by response, under a hash of all that determines it. A run that was
killed makes the missing shards only and, with an engine whose numbers repeat (sampler.py), ends with bit-identical
output; of vLLM (completions.py), a shard is one response, and a kill costs those in flight.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

from oxa import config, progress
from oxa.errors import DataError


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
    """Of the model's own distribution (temperature 1, before top-p), nats a token; NaN where num_tokens is 0. The vLLM
    engine knows the probabilities of generate.vllm.logprobs tokens only and takes all others for one outcome: a lower
    bound; NaN where it knows none."""


Shard = list[Request]
Note = Callable[[dict[str, Any]], None]
Engine = Callable[
    [str | Path, list[Shard], config.Sampling, config.Generate, Note, Path],
    Iterator[tuple[int, list[Generation]]],
]
"""Takes the model, the shards that are missing, the settings, a note of what generates and with which settings beside
those of config.Sampling (to be called before the first response), and a folder for its own files; yields (index,
generations) as shards finish, in any order.

An engine may work on several shards at once, but what it yields for one must not depend on the others: resuming
after a kill asks for fewer of them.
"""


def _torch(
    model_path: str | Path,
    shards: list[Shard],
    sampling: config.Sampling,
    engine: config.Generate,
    note: Note,
    folder: Path,
) -> Iterator[tuple[int, list[Generation]]]:
    from oxa import sampler  # an engine imports the types above

    note({name: importlib.metadata.version(name) for name in ("torch", "transformers")})
    return sampler.torch_engine(model_path, shards, sampling, engine)


def _vllm(
    model_path: str | Path,
    shards: list[Shard],
    sampling: config.Sampling,
    engine: config.Generate,
    note: Note,
    folder: Path,
) -> Iterator[tuple[int, list[Generation]]]:
    from oxa import completions

    return completions.vllm_engine(model_path, shards, sampling, engine, note, folder)


ENGINES: dict[str, Engine] = {"torch": _torch, "vllm": _vllm}


class Generations(Sequence[Generation]):
    """Responses in the order of their requests, each read from disk when it is asked for: their texts are many."""

    def __init__(self, store: Store, places: list[tuple[int, int]], settings: dict[str, Any]) -> None:
        self._store = store
        self._places = places
        self.settings = settings
        """What they were drawn with: config.Sampling's values and what the engine noted."""

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Generation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Generation]: ...
    def __getitem__(self, index: int | slice) -> Generation | list[Generation]:
        if isinstance(index, slice):
            return [self._store.read(place) for place in self._places[index]]
        return self._store.read(self._places[index])


class Store:
    """Responses on disk, one a line of JSON, appended as they come.

    A line that a kill has cut, and whatever lies behind it, is dropped.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._end = 0
        self.notes: list[dict[str, Any]] = []
        self.places: dict[tuple[str, str], tuple[int, int]] = {}
        """(offset, length) by (shard's key, response_id)."""
        self._file.seek(0)
        for line in self._file:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._take(row, len(line))
        self._file.truncate(self._end)

    def __del__(self) -> None:
        self._file.close()

    def note(self, settings: dict[str, Any]) -> None:
        if settings not in self.notes:
            self._append([{"note": settings}])

    def add(self, key: str, generations: list[Generation]) -> None:
        """Keeps a shard's responses; they outlive this process when the call returns."""
        self._append([{"shard": key} | generation._asdict() for generation in generations])

    def read(self, place: tuple[int, int]) -> Generation:
        offset, length = place
        row = json.loads(os.pread(self._file.fileno(), length, offset))
        return Generation(**{name: row[name] for name in Generation._fields})

    def _append(self, rows: list[dict[str, Any]]) -> None:
        lines = [(json.dumps(row) + "\n").encode() for row in rows]
        self._file.write(b"".join(lines))  # at once: a kill hardly ever cuts a shard in two
        self._file.flush()
        for row, line in zip(rows, lines, strict=True):
            self._take(row, len(line))

    def _take(self, row: dict[str, Any], length: int) -> None:
        if "note" in row:
            if row["note"] not in self.notes:
                self.notes.append(row["note"])
        else:
            self.places[row["shard"], row["response_id"]] = self._end, length
        self._end += length


def generate(
    model_path: str | Path,
    requests: Sequence[Request],
    sampling: config.Sampling,
    engine: config.Generate,
    *,
    scratch: Path,
    description: str,
) -> Generations:
    """One response a request, in the order of `requests`; what is finished is kept in `scratch`.

    A prompt that leaves no room in the model's context gets no token. Raises DataError where all of them leave none,
    or the model computes no probabilities.
    """
    assert len({request.response_id for request in requests}) == len(requests), "response ids must be unique"
    common = _common_key(_fingerprint(model_path) if requests else "", sampling, engine)
    store = Store(scratch / f"{common}.jsonl")
    shards = _shards(requests, 1 if engine.engine == "vllm" else engine.batch_size)
    keys = [_shard_key(shard) for shard in shards]
    missing = [
        index
        for index, (key, shard) in enumerate(zip(keys, shards, strict=True))
        if any((key, request.response_id) not in store.places for request in shard)
    ]
    done = len(requests) - sum(len(shards[i]) for i in missing)
    with progress.bar(total=len(requests), initial=done, desc=description, unit="response") as bar:
        if missing:
            run = ENGINES[engine.engine]
            asked = [shards[i] for i in missing]
            for index, generations in run(model_path, asked, sampling, engine, store.note, scratch):
                store.add(keys[missing[index]], generations)
                bar.update(len(generations))
    places = {
        request.response_id: store.places[key, request.response_id]
        for key, shard in zip(keys, shards, strict=True)
        for request in shard
    }
    # what was just made is read back, too: resumed or not, the result has passed through the same file
    found = Generations(
        store, [places[request.response_id] for request in requests], _settings(sampling, engine, store.notes)
    )
    # asked of all responses, not by the engine: a resumed run may have only the longest prompts left
    if requests and not any(generation.num_tokens for generation in found):
        raise _no_room(model_path, min(requests, key=lambda request: len(request.prompt)))
    return found


def _settings(
    sampling: config.Sampling, engine: config.Generate, notes: list[dict[str, Any]]
) -> dict[str, Any]:
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

    context = AutoConfig.from_pretrained(str(model_path)).get_text_config().max_position_embeddings
    return DataError(
        f"response {shortest.response_id}: its prompt of {len(shortest.prompt)} tokens leaves no room in the "
        f"context of {context} tokens of {model_path}; drop the problem or raise max_position_embeddings"
    )


def _shards(requests: Sequence[Request], batch_size: int) -> list[Shard]:
    """Neighbours in length share a shard, so that little is padded; equal prompts lie together, to be read once."""
    ordered = sorted(requests, key=lambda request: (len(request.prompt), request.prompt, request.response_id))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def _common_key(model_key: str, sampling: config.Sampling, engine: config.Generate) -> str:
    settings: list[Any] = [sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed]
    if engine.engine == "vllm":
        settings += [engine.vllm.dtype, engine.vllm.logprobs, engine.vllm.flags]
    return _hash([engine.engine, model_key, settings])


def _shard_key(shard: Shard) -> str:
    return _hash(shard)


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
