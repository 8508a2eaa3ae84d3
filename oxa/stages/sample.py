"""Self-samples: what a student answers to the training problems.

Every problem of split `train` that is not kept apart gets `num_samples` responses of the sampler: the base itself,
what the stage `warm_up` has made of it, or a model that the section names. The random numbers of a response follow
from (seed, response_id), and its id from problem, model, seed and sample index, so that more samples or more problems
leave the ones that were there as they were, and several processes make what one does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from oxa import hashes, prompts
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.sample import Sample
from oxa.errors import DataError
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.model import loading, preflight
from oxa.records import schemas, tables
from oxa.runtime import files, journal
from oxa.runtime.shards import together


def run(
    section: Sample,
    engine: Generate,
    prompt: Prompt,
    *,
    model: Path,
    sampler: Path,
    problems: Path,
    apart: Path,
    output: Path,
    scratch: Path,
    log: journal.Log,
) -> dict[str, Any]:
    """Samples and writes records.RESPONSES, the samples of a problem together, in the problems' order.

    Where the sampler's template opens <think> itself, the texts begin with that tag, too: they are complete responses.
    Returns counts and means; entropies in nats a token, lengths in tokens. `no_room` counts the empty responses to
    prompts that fill the model's context: they have 0 tokens and no entropy; response_entropy is None where all are.
    `control_tokens` counts the problems that spell a control token, which is read as text. The settings that they
    were drawn with are kept with the table.
    """
    source, name = _sampler(section, model, sampler)
    table = tables.read(problems, schemas.PROBLEMS, ["problem_id", "question", "split"])
    held = tables.read(apart, schemas.APART)["problem_id"]
    is_held = pc.is_in(table["problem_id"], held)
    table = table.filter(pc.and_(pc.equal(table["split"], "train"), pc.invert(is_held)))
    if table.num_rows == 0:
        held_apart = f" ({len(held)} are kept apart by sample.warm_up)" if len(held) else ""
        raise DataError(
            f"{problems}: no problem of split 'train' to sample for{held_apart}; check the sources under ingest.teacher"
        )
    # the base has passed a preflight of its own
    faults = preflight.check_checkpoint(source, prompt, is_student=False) if section.model else []
    if faults:
        raise DataError(f"sample.model: {name} cannot sample: {' '.join(faults)}")
    tokenizer = loading.load_tokenizer(source)
    opening = prompts.opened_thought(tokenizer, "")
    rows, requests, num_control = [], [], 0
    for problem_id, question in zip(
        table["problem_id"].to_pylist(), table["question"].to_pylist(), strict=True
    ):
        ids = prompts.prompt_ids(tokenizer, prompts.user_turn(question, prompt.suffix))
        num_control += prompts.holds_control(tokenizer, question)
        for index in range(section.num_samples):
            response_id = hashes.response_id(problem_id, "self", name, f"{section.seed}/{index}")
            rows.append((problem_id, index))
            requests.append(Request(response_id, ids))
    with together() as processes:
        responses = generate.generate(
            source,
            requests,
            section,
            engine,
            scratch=scratch,
            description="self-samples",
            processes=processes,
        )
    if not processes.is_first:
        return {}

    texts: list[str] = []  # of one problem
    num_distinct = num_without_end = 0
    with files.atomic(output) as temporary, tables.Writer(temporary, schemas.RESPONSES) as writer:
        writer.note("sampling", responses.settings)
        for (problem_id, index), response in zip(rows, responses, strict=True):
            text = opening + response.text if response.num_tokens else response.text
            writer.add(
                response_id=response.response_id,
                problem_id=problem_id,
                origin="self",
                model=name,
                sample_index=index,
                seed=section.seed,
                text=text,
                num_tokens=response.num_tokens,
                finish_reason=response.finish_reason,
                mean_entropy=response.mean_entropy,
            )
            num_without_end += prompts.END_THINK not in text
            texts.append(text)
            if len(texts) == section.num_samples:
                num_distinct += len(set(texts))
                texts = []
    return {
        "num_problems": table.num_rows,
        "control_tokens": num_control,
        **_metrics(output),
        "without_end_think": num_without_end / len(rows),
        "distinct_texts": num_distinct / len(rows),
    }


def _sampler(section: Sample, base: Path, warmed_up: Path) -> tuple[str | Path, str]:
    """(what to load, its name): a folder's name or a hub id, never a path, so that ids do not depend on the machine."""
    if section.warm_up:
        return warmed_up, warmed_up.name
    if section.model is None:
        return base, base.name
    folder = Path(section.model)
    return (folder, folder.resolve().name) if folder.is_dir() else (section.model, section.model)


def _metrics(output: Path) -> dict[str, float | None]:
    columns = ["num_tokens", "finish_reason", "mean_entropy"]
    written = tables.read(output, schemas.RESPONSES, columns)
    num_tokens = written["num_tokens"].to_numpy()
    entropies = written["mean_entropy"].to_numpy().astype(np.float64)
    known = entropies[np.isfinite(entropies)]
    return {
        "num_responses": len(num_tokens),
        "no_room": int((num_tokens == 0).sum()),
        "mean_tokens": float(num_tokens.mean()),
        "response_entropy": float(known.mean()) if len(known) else None,
        "truncated": pc.mean(pc.equal(written["finish_reason"], "length")).as_py(),
    }
