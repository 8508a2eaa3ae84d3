"""The stage that grades a checkpoint; METHOD §6 points 7 (verdicts, verbatim text) and 8 (unbiased pass@k, seeds)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from oxa import hashes, prompts
from oxa.config.evaluate import Evaluate
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.generation import generate, requests
from oxa.grading.grader import Grader
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.stages import evaluate

SECTION = Evaluate(max_tokens=12, num_samples=3, seed=4)


def _problems(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """From (question, split, tier); every gold answer is 8."""
    table = [
        {
            "problem_id": hashes.problem_id(question),
            "source": "test",
            "question": question,
            "answers": ["8"],
            "tier": tier,
            "split": split,
        }
        for question, split, tier in rows
    ]
    tables.write(folder / "problems.parquet", table, schemas.PROBLEMS)
    return folder / "problems.parquet"


ROWS = [
    ("a", "train", ""),
    ("r", "rlvr", ""),
    ("b", "aime", ""),
    ("c", "world", "easy"),
    ("d", "world", "hard"),
    ("e", "world", "hard"),
]


def _run(
    section: Evaluate, model: Path, problems: Path, folder: Path, log: Any, batch_size: int = 8
) -> dict[str, Any]:
    return evaluate.run(
        section,
        Generate(batch_size=batch_size),
        Prompt(suffix=""),
        Verify(workers=1),
        model=model,
        problems=problems,
        output=folder / "generations.parquet",
        entropies=folder / "entropies.parquet",
        scratch=folder / "scratch",
        log=log,
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    return tables.read(folder / "generations.parquet", schemas.GENERATIONS).to_pylist()


def _apart(folder: Path) -> list[dict[str, Any]]:
    return tables.read(folder / "entropies.parquet", schemas.ENTROPIES).to_pylist()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], tuple[str, str]]], None]:
    """Puts another engine behind `generate`: text and finish_reason by the request's place."""

    def install(script: Callable[[int], tuple[str, str]]) -> None:
        def engine(_: Any, shards: list[requests.Shard], *__: Any) -> Any:
            place = itertools.count()
            for index, shard in enumerate(shards):
                made = [(request.response_id, *script(next(place))) for request in shard]
                yield (
                    index,
                    [requests.Generation(i, text, len(text), reason, 0.5) for i, text, reason in made],
                )

        monkeypatch.setitem(generate.ENGINES, "torch", engine)

    return install


def test_every_benchmark_problem_gets_its_samples_and_training_problems_none(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    section = SECTION.model_copy(update={"num_samples_by_benchmark": {"aime": 5}})
    metrics = _run(section, checkpoint, _problems(tmp_path, ROWS), tmp_path, log)
    rows = _rows(tmp_path)
    expected = [("aime", "b")] * 5 + [("world", question) for question in "cde" for _ in range(3)]
    assert [(row["benchmark"], row["problem_id"]) for row in rows] == [
        (benchmark, hashes.problem_id(question)) for benchmark, question in expected
    ]
    assert [row["sample_index"] for row in rows] == [*range(5), *[0, 1, 2] * 3]
    sizes = {name: (m["num_problems"], m["num_samples"]) for name, m in metrics["benchmarks"].items()}
    assert sizes == {"aime": (1, 5), "world": (3, 3)}
    assert (metrics["pooled"]["num_problems"], metrics["pooled"]["num_samples"]) == (4, 3)


def test_tiers_are_given_only_where_a_benchmark_has_them(checkpoint: Path, tmp_path: Path, log: Any) -> None:
    benchmarks = _run(SECTION, checkpoint, _problems(tmp_path, ROWS), tmp_path, log)["benchmarks"]
    assert "tiers" not in benchmarks["aime"]
    tiers = benchmarks["world"]["tiers"]
    assert {tier: numbers["num_problems"] for tier, numbers in tiers.items()} == {"easy": 1, "hard": 2}
    assert set(tiers["easy"]) == set(benchmarks["world"]) - {"tiers"}


def test_checkpoints_answer_with_common_random_numbers(checkpoint: Path, tmp_path: Path, log: Any) -> None:
    """Two copies of one checkpoint under different names give the same text; another seed gives others."""
    import shutil

    twin = Path(shutil.copytree(checkpoint, tmp_path / "another-name"))
    problems = _problems(tmp_path, ROWS)
    _run(SECTION, checkpoint, problems, tmp_path / "1", log)
    _run(SECTION, twin, problems, tmp_path / "2", log, batch_size=5)
    texts = [[row["text"] for row in _rows(tmp_path / name)] for name in "12"]
    assert texts[0] == texts[1]
    _run(SECTION.model_copy(update={"seed": 5}), checkpoint, problems, tmp_path / "3", log)
    assert not set(texts[0]) & {row["text"] for row in _rows(tmp_path / "3")}


def test_checkpoints_along_rl_are_evaluated_step_after_step_each_as_if_alone(
    checkpoint: Path, talker: Path, tmp_path: Path, log: Any
) -> None:
    import shutil

    along = tmp_path / "along"
    for step, source in ((10, checkpoint), (9, talker)):
        shutil.copytree(source, along / f"step-{step}")
    problems = _problems(tmp_path, ROWS)
    metrics = _run(SECTION, along, problems, tmp_path, log)
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == [9] * 12 + [10] * 12
    for step, source in ((9, talker), (10, checkpoint)):
        alone = _run(SECTION, source, problems, tmp_path / str(step), log)
        expected = [row | {"step": step} for row in _rows(tmp_path / str(step))]
        assert [row for row in rows if row["step"] == step] == expected
        expected = [row | {"step": step} for row in _apart(tmp_path / str(step))]
        assert [row for row in _apart(tmp_path) if row["step"] == step] == expected
        for numbers in alone["benchmarks"].values():
            numbers.pop("tiers", None)
        assert metrics["steps"][str(step)] == alone
    assert metrics["pooled"] == metrics["steps"]["10"]["pooled"]


def test_two_runs_write_equal_bytes_and_metrics(checkpoint: Path, tmp_path: Path, log: Any) -> None:
    problems = _problems(tmp_path, ROWS)
    assert _run(SECTION, checkpoint, problems, tmp_path / "a", log) == _run(
        SECTION, checkpoint, problems, tmp_path / "b", log
    )
    for table in ("generations", "entropies"):
        a, b = ((tmp_path / name / f"{table}.parquet").read_bytes() for name in "ab")
        assert a == b


def test_verdicts_stay_apart_and_text_stays_verbatim(
    checkpoint: Path, tmp_path: Path, log: Any, scripted: Callable[..., None]
) -> None:
    texts = [
        "<think>\n3 + 5\r\n\n\tis 8 </think>\n\n\\boxed{8}\n",
        "<think> x </think> \\boxed{9}",
        "no end of thinking \\boxed{8}",
        "<think> cut </think> \\boxed{",
    ]
    scripted(lambda i: (texts[i % 4], "length" if i % 4 == 3 else "stop"))
    section = SECTION.model_copy(update={"num_samples": 4})
    metrics = _run(section, checkpoint, _problems(tmp_path, [("b", "aime", "")]), tmp_path, log)
    by_text = {row["text"]: row for row in _rows(tmp_path)}
    assert set(by_text) == set(texts)
    assert [by_text[text]["verdict"] for text in texts[:3]] == ["correct", "incorrect", "unparsable"]
    assert by_text[texts[0]]["predicted"] == "8"
    with Grader(Verify(workers=1)) as grader:
        cut = grader.grade([(["8"], texts[3], "length")])[0]
    assert (by_text[texts[3]]["verdict"], by_text[texts[3]]["predicted"]) == cut
    numbers = metrics["benchmarks"]["aime"]
    assert numbers["pass_at_1"] == 0.25
    assert numbers["truncated"] == 0.25
    shares = sum(numbers[verdict] for verdict in ("incorrect", "unsure", "unparsable", "timeout", "bad_gold"))
    assert numbers["pass_at_1"] + shares == pytest.approx(1)


def test_wrong_answers_that_are_equal_are_noted_beside_the_table_whatever_their_step(
    checkpoint: Path, tmp_path: Path, log: Any, scripted: Callable[..., None]
) -> None:
    import shutil

    answers = ["9", "1/3", r"\frac13", "8", "9.0", "7"]
    scripted(lambda i: (f"<think></think> \\boxed{{{answers[i % 6]}}}", "stop"))
    for step in (5, 6):
        shutil.copytree(checkpoint, tmp_path / "along" / f"step-{step}")
    section = SECTION.model_copy(update={"num_samples": 6})
    _run(section, tmp_path / "along", _problems(tmp_path, [("b", "aime", "")]), tmp_path, log)
    notes = tables.notes(tmp_path / "generations.parquet")
    problem = hashes.problem_id("b")
    assert notes["same_answers"] == {"aime": {problem: [["1/3", r"\frac13"], ["9", "9.0"]]}}
    scripted(lambda i: (f"<think></think> \\boxed{{{i}}}", "stop"))
    _run(section, checkpoint, _problems(tmp_path, [("b", "aime", "")]), tmp_path / "plain", log)
    assert set(tables.notes(tmp_path / "plain/generations.parquet")) == {"sampling"}


def test_a_problem_that_fills_the_context_is_kept_as_not_solved_and_counted(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    problems = _problems(
        tmp_path,
        [("b", "aime", ""), ("c" * 1100, "world", "hard"), ("d", "world", "easy"), ("e", "world", "")],
    )
    metrics = _run(SECTION, checkpoint, problems, tmp_path, log)
    rows = _rows(tmp_path)
    assert len(rows) == 12
    for row in rows[3:6]:
        assert (row["text"], row["num_tokens"], row["finish_reason"]) == ("", 0, "length")
        assert (row["verdict"], row["predicted"]) == ("unparsable", None)
    drawn = rows[:3] + rows[6:]
    assert all(row["num_tokens"] > 0 for row in drawn)
    world, pooled = metrics["benchmarks"]["world"], metrics["pooled"]
    hard = world["tiers"]["hard"]
    assert [numbers["no_room"] for numbers in (metrics["benchmarks"]["aime"], world, hard, pooled)] == [
        0,
        3,
        3,
        3,
    ]
    assert (pooled["num_problems"], world["num_problems"], hard["num_problems"]) == (4, 3, 1)
    assert (hard["token_entropy"], hard["mean_tokens"], hard["unparsable"], hard["pass_at_1"]) == (
        None,
        0,
        1,
        0,
    )
    assert [row["num_tokens"] for row in _apart(tmp_path) if row["entropy"] == 0] == [0]
    known = [row["entropy"] / row["num_tokens"] for row in _apart(tmp_path) if row["num_tokens"]]
    assert pooled["response_entropy"] == pytest.approx(np.mean(known))
    assert pooled["mean_tokens"] == pytest.approx(np.sum([row["num_tokens"] for row in drawn]) / 12)
    json.dumps(metrics, allow_nan=False)


def test_entropy_is_that_of_the_distributions_that_its_responses_were_drawn_from(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    """Against a float64 softmax of all logits at once; the graded answers are greedy and have no part in it."""
    section = SECTION.model_copy(update={"temperature": 0.0, "entropy_samples": 2})
    metrics = _run(section, checkpoint, _problems(tmp_path, ROWS), tmp_path, log)
    model, tokenizer = loading.load(checkpoint)
    rows = _apart(tmp_path)
    assert [(row["benchmark"], row["sample_index"]) for row in rows] == [("aime", 0), ("aime", 1)] + [
        ("world", 0),
        ("world", 1),
    ] * 3
    questions = {hashes.problem_id(question): question for question, *_ in ROWS}
    for row in rows:
        before = prompts.prompt_ids(tokenizer, questions[row["problem_id"]])
        ids = before + prompts.response_ids(tokenizer, row["text"], end=row["finish_reason"] == "stop")
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0, len(before) - 1 : -1].double().log_softmax(-1)
        assert row["num_tokens"] == len(log_p) > 0
        assert row["entropy"] == pytest.approx(-(log_p.exp() * log_p).sum().item(), rel=1e-5)
    assert len({row["text"] for row in rows}) == 8, "drawn at temperature 1"
    sums = [sum(row[name] for row in rows) for name in ("entropy", "num_tokens")]
    assert metrics["pooled"]["token_entropy"] == pytest.approx(sums[0] / sums[1])
    assert metrics["pooled"]["pass_at_2"] == metrics["pooled"]["pass_at_1"], "greedy answers are one answer"


def test_without_entropy_samples_nothing_more_is_drawn_and_the_answers_are_the_same(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    problems, answers = _problems(tmp_path, ROWS), []
    for num in (0, 1):
        section = SECTION.model_copy(update={"entropy_samples": num})
        metrics = _run(section, checkpoint, problems, tmp_path / str(num), log)
        assert len(_apart(tmp_path / str(num))) == num * 4
        assert (metrics["pooled"]["token_entropy"] is None) == (num == 0)
        answers.append((tmp_path / str(num) / "generations.parquet").read_bytes())
    assert answers[0] == answers[1]
    texts = [{row["text"] for row in rows(tmp_path / "1")} for rows in (_rows, _apart)]
    assert not texts[0] & texts[1], "their random numbers are apart"


def test_problems_that_all_fill_the_context_are_one_clear_sentence(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    with pytest.raises(DataError, match="leaves no room in the context of 1024 tokens"):
        _run(SECTION, checkpoint, _problems(tmp_path, [("b" * 1100, "aime", "")]), tmp_path, log)
    assert not (tmp_path / "generations.parquet").exists()


def test_the_settings_are_kept_with_the_generations_step_by_step(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    import shutil

    problems = _problems(tmp_path, ROWS)
    _run(SECTION, checkpoint, problems, tmp_path / "one", log)
    alone = tables.notes(tmp_path / "one" / "generations.parquet")
    assert alone["sampling"]["engine"] == "torch"
    assert alone["sampling"]["max_tokens"] == SECTION.max_tokens
    for step in (2, 10):
        shutil.copytree(checkpoint, tmp_path / "rl" / f"step-{step}")
    _run(SECTION, tmp_path / "rl", problems, tmp_path / "two", log)
    found = tables.notes(tmp_path / "two" / "generations.parquet")
    assert found == {"sampling.2": alone["sampling"], "sampling.10": alone["sampling"]}


def test_entropies_are_over_the_responses_that_have_one_and_empty_answers_are_counted() -> None:
    table = _generations({("a", "1", ""): "iic", ("a", "2", ""): "ii", ("a", "3", ""): "i"})
    rows = table.to_pylist()
    for row in (rows[0], rows[5]):  # of problem 1 the first sample, of problem 3 all
        row |= {"text": "", "num_tokens": 0, "verdict": "unparsable"}
    apart = _entropies({"1": [(0, 0.0), (10, 5.0), (1000, 50.0)], "2": [(20, 8.0)], "3": [(0, 0.0)]})
    generations = pa.Table.from_pylist(rows, schema=schemas.GENERATIONS)
    numbers = evaluate.summarize(generations, apart)["pooled"]
    assert numbers["no_room"] == 2
    assert numbers["response_entropy"] == pytest.approx(((0.5 + 0.05) / 2 + 0.4) / 2)
    assert numbers["token_entropy"] == pytest.approx((5 + 50 + 8) / 1030)
    assert numbers["mean_tokens"] == pytest.approx(((0 + 20 + 30) / 3 + 15 + 0) / 3)
    assert numbers["pass_at_1"] == pytest.approx(1 / 9)


def _generations(marks: dict[tuple[str, str, str], str]) -> pa.Table:
    """From {(benchmark, problem, tier): string of c and i}, each sample correct or incorrect."""
    rows = [
        {
            "benchmark": benchmark,
            "problem_id": problem,
            "tier": tier,
            "step": 0,
            "sample_index": i,
            "text": "x",
            "num_tokens": 10 * (i + 1),
            "finish_reason": "length" if i == 0 else "stop",
            "verdict": {"c": "correct", "i": "incorrect"}[mark],
            "predicted": None,
        }
        for (benchmark, problem, tier), string in marks.items()
        for i, mark in enumerate(string)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.GENERATIONS)


def _entropies(responses: dict[str, list[tuple[int, float]]]) -> pa.Table:
    """From {problem of benchmark a: (num_tokens, entropy) of its responses}."""
    rows = [
        {"benchmark": "a", "problem_id": problem, "tier": "", "step": 0, "sample_index": index, "text": ""}
        | {"finish_reason": "stop", "num_tokens": num_tokens, "entropy": entropy}
        for problem, each in responses.items()
        for index, (num_tokens, entropy) in enumerate(each)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.ENTROPIES)


NONE = _entropies({})


def test_pass_at_k_is_unbiased_for_every_k_and_each_problem_weighs_the_same() -> None:
    marks = {("a", "1", ""): "ciii", ("a", "2", ""): "ccii", ("b", "1", ""): "ii", ("b", "3", ""): "cc"}
    metrics = evaluate.summarize(_generations(marks), NONE)

    def brute(strings: list[str], k: int) -> float:
        return float(
            np.mean([np.mean(["c" in subset for subset in itertools.combinations(s, k)]) for s in strings])
        )

    a, pooled = metrics["benchmarks"]["a"], metrics["pooled"]
    assert [a[f"pass_at_{k}"] for k in (1, 2, 4)] == pytest.approx(
        [brute(["ciii", "ccii"], k) for k in (1, 2, 4)]
    )
    assert [key for key in pooled if key.startswith("pass_at")] == ["pass_at_1", "pass_at_2"]
    assert pooled["pass_at_2"] == pytest.approx(brute(list(marks.values()), 2))
    assert pooled["num_problems"] == 4  # problem 1 of a and problem 1 of b are two
    assert a["mean_tokens"] == 25
    assert pooled["mean_tokens"] == 20
    assert pooled["token_entropy"] is None
    assert pooled["truncated"] == pytest.approx((0.25 * 2 + 0.5 * 2) / 4)


def test_metrics_do_not_depend_on_the_order_of_rows() -> None:
    table = _generations({("a", "1", "easy"): "ciic", ("a", "2", "hard"): "ccii", ("b", "1", ""): "ii"})
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    assert evaluate.summarize(shuffled, NONE) == evaluate.summarize(table, NONE)


def test_a_benchmark_without_problems_is_named_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    section = SECTION.model_copy(update={"num_samples_by_benchmark": {"minerva": 64}})
    with pytest.raises(DataError, match=r"benchmark 'minerva' .* has no problems; found \['aime', 'world'\]"):
        _run(section, checkpoint, _problems(tmp_path, ROWS), tmp_path, log)
    with pytest.raises(DataError, match="no benchmark has a problem"):
        _run(SECTION, checkpoint, _problems(tmp_path, ROWS[:2]), tmp_path, log)
    assert not (tmp_path / "generations.parquet").exists()
