"""Stage `warm_up`: makes the self-sampler out of a base that does not write <think> and \\boxed{} when asked to.

The paper's self-samples come from a sibling of the base that writes reasoning chains. Most bases have none, and asked
by the prompt's instruction alone they answer in some other form: nothing can be read as an answer, so nothing is known
to be wrong and there is nothing to suppress. A short plain fine-tuning on some verified teacher solutions teaches the
form. Only sampling uses its result: the base still scores, and every arm starts from the base.

What it changes is measured: the same problems, which it was not tuned on, are answered before and after.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oxa import hashes, prompts
from oxa.config.fine_tuning import TrainArm
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.sample import NUM_PROBED, Sample, WarmUp
from oxa.config.section import Verdict
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.generation import generate
from oxa.generation.requests import Generation, Request
from oxa.grading.grader import Grader
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.runtime import guard, journal
from oxa.selection import candidates
from oxa.training import fine_tuning

FEW = 0.5  # share of answers that can be read, below which the result is a poor sampler

logger = logging.getLogger(__name__)


def run(
    section: Sample,
    engine: Generate,
    prompt: Prompt,
    verify: Verify,
    *,
    model: Path,
    problems: Path,
    responses: Path,
    verdicts: Path,
    output: Path,
    apart: Path,
    scratch: Path,
    log: journal.Log,
) -> dict[str, Any]:
    """Writes the sampler, a checkpoint folder, and records.APART, the problems that no arm may use.

    Without `sample.warm_up` the folder holds a line that says so, the table no row, and nothing is returned. Else
    returns the counts of the fine-tuning and, `before` and `after` it, of `probed` answers: the share that is
    `parsable` (a verdict other than unparsable), the share that is `correct`, the share that max_tokens cut, and the
    verdicts. Logs what training logs. Raises DataError where there are too few verified solutions.
    """
    warm_up = section.warm_up
    if warm_up is None:
        output.mkdir(parents=True)
        (output / "README.md").write_text("The base itself samples: params.yaml has no sample.warm_up.\n")
        tables.write(apart, [], schemas.APART)
        return {}
    solutions, rest = _choose(warm_up, prompt, model, problems, responses, verdicts)
    tables.write(scratch / "data" / "ce.parquet", solutions, schemas.TRAIN)
    trained = fine_tuning.run(
        warm_up,
        TrainArm(),
        model=model,
        data=scratch / "data",
        output=output,
        scratch=scratch,
        seed=warm_up.seed,
        log=log,
    )
    held = [row["problem_id"] for row in solutions] if warm_up.apart else []
    tables.write(apart, {"problem_id": held}, schemas.APART)
    metrics: dict[str, Any] = {"num_apart": len(held), "probed": len(rest), "training": trained}
    if rest and guard.is_first_process():
        with Grader(verify) as grader:
            for when, sampler in (("before", model), ("after", output)):
                metrics[when] = _probe(rest, when, sampler, section, engine, prompt, grader, scratch)
        if metrics["after"]["parsable"] < FEW:
            logger.warning(
                "after the warm-up %.0f%% of %d answers can be read (%.0f%% before it; %.0f%% were cut by "
                "sample.max_tokens): raise sample.warm_up.num, epochs or learning_rate, or sample.max_tokens",
                *(100 * metrics["after"]["parsable"], len(rest), 100 * metrics["before"]["parsable"]),
                100 * metrics["after"]["truncated"],
            )
    return metrics


class Problem(NamedTuple):
    problem_id: str
    question: str
    answers: list[str]


QUESTIONS = (
    "A pen costs 3 dollars. How much do 4 pens cost?",
    "Ben has 12 apples and gives 5 of them away. How many are left?",
    "What is 17 + 26?",
    "A train runs 60 miles an hour. How far does it come in 3 hours?",
)


def num_in_form(model: Path, prompt: Prompt) -> int:
    """To how many of QUESTIONS the model answers, greedily and within 64 tokens, with a <think> or </think>."""
    tokenizer = loading.load_tokenizer(model)
    if prompts.opened_thought(tokenizer, ""):
        return len(QUESTIONS)
    questions = {str(i): question for i, question in enumerate(QUESTIONS)}
    section, engine = Sample(max_tokens=64, temperature=0.0), Generate(engine="torch")
    with tempfile.TemporaryDirectory() as scratch:
        made = _answers(
            tokenizer, model, questions, "asking the base", section, engine, prompt, Path(scratch)
        )
        return sum(prompts.THINK in one.text or prompts.END_THINK in one.text for one in made)


def _answers(
    tokenizer: Any,
    model: Path,
    questions: Mapping[str, str],
    description: str,
    section: Sample,
    engine: Generate,
    prompt: Prompt,
    scratch: Path,
) -> list[Generation]:
    """One answer to each question, by its id."""
    requests = [
        Request(name, prompts.prompt_ids(tokenizer, prompts.user_turn(question, prompt.suffix)))
        for name, question in questions.items()
    ]
    return list(generate.generate(model, requests, section, engine, scratch=scratch, description=description))


def _choose(
    section: WarmUp, prompt: Prompt, model: Path, problems: Path, responses: Path, verdicts: Path
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Rows of records.TRAIN, one a problem, and problems for the probe, which are none of theirs.

    Problems come in the order of a hash of (seed, problem_id), and of each its first verified solution by such a hash.
    """
    table = tables.read(problems, schemas.PROBLEMS, ["problem_id", "question", "answers", "split"])
    table = table.filter(pc.equal(table["split"], "train"))
    rows = _verified(table["problem_id"], section.seed, responses, verdicts)
    tokenizer = loading.load_tokenizer(model)
    longest = min(section.max_length, loading.context_length(loading.load_config(model)))
    at = {problem_id: row for row, problem_id in enumerate(table["problem_id"].to_pylist())}
    questions = table["question"]
    chosen: list[dict[str, Any]] = []
    for row in _texts(responses, rows):
        user = prompts.user_turn(questions[at[row["problem_id"]]].as_py(), prompt.suffix)
        text = row.pop("text")
        response = prompts.response_ids(tokenizer, text, end=True)
        if len(prompts.prompt_ids(tokenizer, user)) + len(response) <= longest:
            row |= {"prompt": user, "completion": text, "objective": "ce"}
            chosen.append(row | {"ppl": np.nan, "num_tokens": len(response) - 1})
        if len(chosen) == section.num:
            break
    else:
        raise DataError(
            f"{responses}: sample.warm_up asks for {section.num} verified solutions of different problems, and "
            f"{len(chosen)} can be had ({len(rows)} before those longer than {longest} tokens, the prompt included); "
            "lower sample.warm_up.num, raise its max_length or bring more teacher data"
        )
    taken = {row["problem_id"] for row in chosen}
    others = [problem_id for problem_id in at if problem_id not in taken]
    others.sort(key=lambda problem_id: hashes.lot(section.seed, problem_id))
    probed = table.take([at[problem_id] for problem_id in others[:NUM_PROBED]])
    return chosen, [Problem(row["problem_id"], row["question"], row["answers"]) for row in probed.to_pylist()]


def _texts(responses: Path, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """These rows, in this order; some of their texts are in memory at a time."""
    columns = ["response_id", "problem_id", "text", "finish_reason"]
    for start in range(0, len(rows), candidates.TEXT_ROWS):
        piece = rows[start : start + candidates.TEXT_ROWS]
        yield from candidates.take(responses, schemas.RESPONSES, columns, piece).to_pylist()


def _verified(train: pa.ChunkedArray, seed: int, responses: Path, verdicts: Path) -> np.ndarray:
    """Rows of `responses` with verified, whole solutions to training problems: one of each, in the order of lots."""
    judged = tables.read(verdicts, schemas.VERDICTS, ["response_id", "verdict"])
    correct = judged.filter(pc.equal(judged["verdict"], "correct"))["response_id"]
    table = tables.read(responses, schemas.RESPONSES, ["response_id", "problem_id", "finish_reason"])
    keep = pc.and_(
        pc.and_(pc.is_in(table["response_id"], correct), pc.is_in(table["problem_id"], train)),
        pc.not_equal(table["finish_reason"], "length"),
    )
    (rows,) = keep.to_numpy().nonzero()
    problem, response = (
        hashes.mix(hashes.hash_texts(table[name].combine_chunks().take(pa.array(rows))) ^ np.uint64(seed))
        for name in ("problem_id", "response_id")
    )
    order = np.lexsort((response, problem))
    first = np.append(True, np.diff(problem[order]) != 0) if len(order) else order
    return rows[order[first]]


def _probe(
    probed: Sequence[Problem],
    when: str,
    sampler: Path,
    section: Sample,
    engine: Generate,
    prompt: Prompt,
    grader: Grader,
    scratch: Path,
) -> dict[str, Any]:
    tokenizer = loading.load_tokenizer(sampler)
    questions = {
        hashes.response_id(one.problem_id, "warm_up", when, str(section.seed)): one.question for one in probed
    }
    description = f"answers {when} the warm-up"
    generations = _answers(tokenizer, sampler, questions, description, section, engine, prompt, scratch)
    opening = prompts.opened_thought(tokenizer, "")
    grades = grader.grade(
        [
            (one.answers, opening + made.text, made.finish_reason)
            for one, made in zip(probed, generations, strict=True)
        ],
        "",
    )
    verdicts = Counter(dict.fromkeys(get_args(Verdict), 0)) + Counter(grade.verdict for grade in grades)
    return {
        "parsable": 1 - verdicts["unparsable"] / len(grades),
        "correct": verdicts["correct"] / len(grades),
        "truncated": sum(made.finish_reason == "length" for made in generations) / len(grades),
        "verdicts": {name: verdicts[name] for name in get_args(Verdict)},
    }
