"""Self-samples: what a student answers to the training problems.

Every problem of split `train` gets `num_samples` responses of the section's model (by default the base itself). The
random numbers of a response follow from (seed, response_id), and its id from problem, model, seed and sample index,
so that more samples or more problems leave the ones that were there as they were.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oxa import generate, lm, prompts, records
from oxa.config import Generate, Prompt, Sample
from oxa.errors import DataError


def run(
    section: Sample,
    engine: Generate,
    prompt: Prompt,
    *,
    model: Path,
    problems: Path,
    output: Path,
    scratch: Path,
    log: records.Log,
) -> dict[str, Any]:
    """Samples and writes records.RESPONSES, the samples of a problem together, in the problems' order.

    Where the sampler's template opens <think> itself, the texts begin with that tag, too: they are complete responses.
    Returns counts and means; entropies in nats a token, lengths in tokens. `no_room` counts the empty responses to
    prompts that fill the model's context: they have 0 tokens and no entropy.
    """
    sampler, name = _sampler(section, model)
    table = records.read(problems, records.PROBLEMS, ["problem_id", "question", "split"])
    table = table.filter(pc.equal(table["split"], "train"))
    if table.num_rows == 0:
        raise DataError(
            f"{problems}: no problem of split 'train' to sample for; check the sources under ingest.teacher"
        )
    tokenizer = lm.load_tokenizer(sampler)
    opening = prompts.opened_thought(tokenizer, "")
    rows, requests = [], []
    for problem_id, question in zip(
        table["problem_id"].to_pylist(), table["question"].to_pylist(), strict=True
    ):
        ids = prompts.prompt_ids(tokenizer, prompts.user_turn(question, prompt.suffix))
        for index in range(section.num_samples):
            response_id = records.response_id(problem_id, "self", name, f"{section.seed}/{index}")
            rows.append((problem_id, index))
            requests.append(generate.Request(response_id, ids))
    responses = generate.generate(
        sampler, requests, section, engine, scratch=scratch, description="self-samples"
    )

    responses = [
        response._replace(text=opening + response.text) if response.num_tokens else response
        for response in responses
    ]
    problem_ids, indices = zip(*rows, strict=True)
    written = pa.table(
        {
            "response_id": [response.response_id for response in responses],
            "problem_id": problem_ids,
            "origin": ["self"] * len(rows),
            "model": [name] * len(rows),
            "sample_index": indices,
            "seed": [section.seed] * len(rows),
            "text": [response.text for response in responses],
            "num_tokens": [response.num_tokens for response in responses],
            "finish_reason": [response.finish_reason for response in responses],
            "mean_entropy": [response.mean_entropy for response in responses],
        }
    )
    records.write(output, written, records.RESPONSES)
    return _metrics(responses, table.num_rows, section.num_samples)


def _sampler(section: Sample, base: Path) -> tuple[str | Path, str]:
    """(what to load, its name): a folder's name or a hub id, never a path, so that ids do not depend on the machine."""
    if section.model is None:
        return base, base.name
    folder = Path(section.model)
    return (folder, folder.resolve().name) if folder.is_dir() else (section.model, section.model)


def _metrics(responses: list[generate.Generation], num_problems: int, num_samples: int) -> dict[str, float]:
    texts = [response.text for response in responses]
    distinct = [len(set(texts[i : i + num_samples])) for i in range(0, len(texts), num_samples)]
    return {
        "num_problems": num_problems,
        "num_responses": len(responses),
        "no_room": sum(response.num_tokens == 0 for response in responses),
        "mean_tokens": float(np.mean([response.num_tokens for response in responses])),
        "mean_entropy": float(
            np.mean([response.mean_entropy for response in responses if response.num_tokens])
        ),
        "truncated": float(np.mean([response.finish_reason == "length" for response in responses])),
        "without_end_think": float(np.mean([prompts.END_THINK not in text for text in texts])),
        "distinct_texts": float(np.mean(distinct) / num_samples),
    }
