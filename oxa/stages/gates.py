"""Stage `gates`: a student of the small world answers its exam, left alone and forced (oxa/data/gates.py judges it)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oxa import hashes, prompts
from oxa.config.gates import Gates
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.sources import World
from oxa.config.verify import Verify
from oxa.data import world
from oxa.data.gates import Trial, judge, overlap
from oxa.errors import ConfigError
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.grading.grader import Grader
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.runtime import files, journal


def run(
    section: Gates,
    world_: World,
    engine: Generate,
    prompt: Prompt,
    verify: Verify,
    *,
    model: Path,
    output: Path,
    scratch: Path,
    log: journal.Log,
) -> dict[str, Any]:
    """Lets the base answer held-out problems, left alone and forced, grades that into records.GENERATIONS (`benchmark`
    is the trial) and returns what `judge` finds.

    Problems are the first `num_problems` of the benchmark's enumeration, which goes on behind the benchmark's own.
    """
    examples = _problems(section, world_)
    unanswered, requests = _requests(section, prompt, examples, loading.load_tokenizer(model))
    generations = generate.generate(model, requests, section, engine, scratch=scratch, description="gates")
    texts = [
        (world.opening(trial.forced) if trial.forced else "") + generation.text
        for trial, generation in zip(unanswered, generations, strict=True)
    ]
    items = [
        ([examples[trial.problem].answer], text, generation.finish_reason)
        for trial, text, generation in zip(unanswered, texts, generations, strict=True)
    ]
    with Grader(verify) as grader:
        grades = grader.grade(items)
    trials = []
    with files.atomic(output) as temporary, tables.Writer(temporary, schemas.GENERATIONS) as writer:
        writer.note("sampling", generations.settings)
        for trial, generation, text, grade in zip(unanswered, generations, texts, grades, strict=True):
            writer.add(
                benchmark=trial.forced or "free",
                problem_id=hashes.problem_id(examples[trial.problem].question),
                tier=trial.tier,
                step=0,
                sample_index=trial.sample_index,
                text=text,
                num_tokens=generation.num_tokens,
                finish_reason=generation.finish_reason,
                verdict=grade.verdict,
                predicted=grade.predicted,
            )
            trials.append(
                trial._replace(strategy=world.strategy_of(text), correct=grade.verdict == "correct")
            )
    return {
        "applies": True,
        "num_problems": len(examples),
        "num_samples": section.num_samples,
        "temperature": section.temperature,
        "gates": judge(trials, examples, overlap(world_, examples)),
    }


def _problems(section: Gates, world_: World) -> list[world.Example]:
    try:
        return list(
            world.benchmark_examples(world_.model_copy(update={"num_benchmark": section.num_problems}))
        )
    except ConfigError as error:
        raise ConfigError(f"gates.world.num_problems: {error}") from None


def _requests(
    section: Gates, prompt: Prompt, examples: Sequence[world.Example], tokenizer: Any
) -> tuple[list[Trial], list[Request]]:
    """Every trial, to be filled, and its request."""
    openings = {
        name: prompts.response_ids(tokenizer, world.opening(name), end=False) for name in world.STRATEGIES
    }
    trials: list[Trial] = []
    requests: list[Request] = []
    for problem, example in enumerate(examples):
        ids = prompts.prompt_ids(tokenizer, prompts.user_turn(example.question, prompt.suffix))
        name = hashes.problem_id(example.question)
        wanted = [("", index) for index in range(section.num_samples)] + [(forced, 0) for forced in openings]
        for forced, index in wanted:
            key = hashes.response_id(name, "gates", forced, f"{section.seed}/{index}")
            requests.append(Request(key, [*ids, *openings.get(forced, [])]))
            trials.append(Trial(problem, example.tier, index, forced))
    return trials, requests
