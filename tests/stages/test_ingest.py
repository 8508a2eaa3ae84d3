"""Ingestion: nothing is lost uncounted, benchmarks stay out of training, and faults leave nothing behind."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SHARED_DATA
from oxa import hashes
from oxa.config.ingest import Decontamination, Ingest
from oxa.config.sources import Source, Sources, World
from oxa.config.verify import Verify
from oxa.data import counts as ledger
from oxa.data.contamination import Overlap
from oxa.data.mappings import Record, Reject
from oxa.data.problems import Rlvr, Training, add_benchmark, guess_rate
from oxa.data.sources import read
from oxa.errors import DataError, UserError
from oxa.grading.grader import Grader
from oxa.records import tables as records
from oxa.records.schemas import CONTAMINATION, PROBLEMS, REJECTS, RESPONSES
from oxa.runtime import lines
from oxa.stages import ingest

VERIFY = Verify(workers=1)
COLUMNS = {"question": "q", "answer": "a", "responses": "r"}
LONG = "A farmer has {} sheep and {} goats; each sheep eats {} apples a day and each goat twice as many. How many?"


def row(question: str, answer: Any = "1", *responses: str) -> dict[str, Any]:
    return {"q": question, "a": answer, "r": list(responses)}


def thought(text: str) -> str:
    return f"<think>{text}</think> \\boxed{{1}}"


EXAM = {"exam": [row("in the exam alone?", "7")]}


class Ingested:
    """One run over JSONL files written for it, and what it left."""

    def __init__(
        self,
        folder: Path,
        teachers: list[list[Any]],
        exams: dict[str, list[Any]],
        reinforced: Sequence[list[Any]] = (),
        **section: Any,
    ) -> None:
        self.folder, self.data, self.scratch = folder, folder / "sources", folder / "scratch"
        self.data.mkdir(exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        named = {f"teacher{i}": rows for i, rows in enumerate(teachers)} | exams
        named |= {f"rlvr{i}": rows for i, rows in enumerate(reinforced)}
        for name, rows in named.items():
            lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
            (self.data / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        self.section = Ingest.model_validate(
            {
                "teacher": [
                    {"source": f"teacher{i}.jsonl", "mapping": COLUMNS} for i in range(len(teachers))
                ],
                "rlvr": [{"source": f"rlvr{i}.jsonl", "mapping": COLUMNS} for i in range(len(reinforced))],
                "benchmarks": {name: {"source": f"{name}.jsonl", "mapping": COLUMNS} for name in exams},
            }
            | section
        )

    def run(self, log: Any) -> dict[str, Any]:
        names = ("problems", "responses", "rejects", "contamination")
        paths = {name: self.folder / f"{name}.parquet" for name in names}
        self.metrics = ingest.run(
            self.section,
            Sources(folder=str(self.data)),
            VERIFY,
            log=log,
            scratch=self.scratch,
            **paths,
        )
        self.problems = records.read(paths["problems"], PROBLEMS).to_pylist()
        self.responses = records.read(paths["responses"], RESPONSES).to_pylist()
        self.rejects = records.read(paths["rejects"], REJECTS).to_pylist()
        self.contamination = records.read(paths["contamination"], CONTAMINATION).to_pylist()
        return self.metrics

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(one["row"], one["reason"]) for one in self.rejects]

    def questions(self, split: str) -> list[str]:
        return [one["question"] for one in self.problems if one["split"] == split]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(VERIFY) as grader:
        yield grader


# --- what is kept ---


def test_problems_and_responses_are_written_as_the_tables_demand(tmp_path: Path, log: Any) -> None:
    done = Ingested(
        tmp_path, [[row("1 + 0?", "1", thought("a"), thought("b"))]], {"exam": [row("2 + 0?", ["2", "2.0"])]}
    )
    done.run(log)
    exam, train = done.problems
    assert exam == {
        "problem_id": hashes.problem_id("2 + 0?"),
        "source": "exam.jsonl",
        "question": "2 + 0?",
        "answers": ["2", "2.0"],
        "tier": "",
        "split": "exam",
    }
    assert (train["split"], train["source"], train["answers"]) == ("train", "teacher0.jsonl", ["1"])
    assert train["problem_id"] == hashes.problem_id("1 + 0?")
    first, second = done.responses
    assert [first["text"], second["text"]] == [thought("a"), thought("b")]
    assert [first["sample_index"], second["sample_index"]] == [0, 1]
    assert first["response_id"] != second["response_id"]
    known = {"problem_id": train["problem_id"], "origin": "teacher", "model": "teacher0.jsonl", "seed": -1}
    known |= {"num_tokens": -1, "finish_reason": "stop"}
    assert first.items() >= known.items()
    assert math.isnan(first["mean_entropy"])


def test_two_runs_give_byte_equal_tables_and_equal_metrics(tmp_path: Path, log: Any) -> None:
    rows = [row(f"{number} + 0?", str(number), thought(str(number)), "") for number in range(30)]
    done = Ingested(tmp_path, [rows], {"exam": [row("2 + 0?", "2"), row("40 + 0?", "40")]})
    metrics = done.run(log)
    tables = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert len(tables) == 4
    assert done.run(log) == metrics
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")} == tables


# --- what is dropped ---


def test_every_fault_has_its_reason(tmp_path: Path, log: Any) -> None:
    good = thought("good")
    rows = [
        row("", "1", good),
        row("no answer", None, good),
        row("kept", "1", good, "  ", good, "x" * 301),
        row("Kept ", "1.0", good, thought("another")),
        row("kept", "2", thought("of another gold answer")),
        row("gold is no mathematics", "\\frac{", good, good),
        row("gold is no  mathematics", "1", good),  # the first row with a good one
        row("nothing to say", "1", ""),
        row("in the exam", "1", good),
        row("half a pair \ud800", "1", good),
    ]
    exam = [
        row("in the exam", "1"),
        row("in the exam", "1"),
        row("bad", "\\frac{"),
        row(" ", "1"),
        row("none", []),
    ]
    done = Ingested(tmp_path, [rows], {"exam": exam}, max_chars=300)
    metrics = done.run(log)
    assert done.reasons == [
        (1, "duplicate_problem"),
        (2, "bad_gold"),
        (3, "empty_problem"),
        (4, "no_answer"),
        (0, "empty_problem"),
        (1, "no_answer"),
        (2, "empty_response"),
        (2, "duplicate_response"),
        (2, "too_long"),
        (3, "duplicate_problem"),
        (3, "duplicate_response"),
        (4, "conflicting_answer"),
        (5, "bad_gold"),
        (7, "empty_response"),
        (8, "contaminated"),
        (9, "bad_unicode"),
        (7, "no_response"),
    ]
    assert [one["question"] for one in done.problems] == [
        "in the exam",
        "kept",
        "gold is no  mathematics",
    ]
    assert [one["text"] for one in done.responses] == [good, thought("another"), good]
    counts = metrics["sources"]["teacher0.jsonl"]
    assert (counts["rows"], counts["problems"], counts["responses_read"], counts["responses"]) == (
        10,
        2,
        12,
        3,
    )
    assert counts["responses_of_dropped_rows"] == 4
    assert metrics["benchmarks"]["exam"] == {
        "rows": 5,
        "problems": 1,
        "guess_rate": 1.0,
        "dropped": {"bad_gold": 1, "duplicate_problem": 1, "empty_problem": 1, "no_answer": 1},
    }
    assert metrics["totals"]["benchmark_problems"] == 1


def test_guess_rate_counts_the_best_constant_answer_of_each_tier(tmp_path: Path, log: Any) -> None:
    problems = [
        ("x", "1"),
        ("x", "1"),
        ("x", "2"),
        ("y", "3"),
        ("y", ["4", "3.0", "3"]),
        ("y", "5"),
        ("z", "1"),
    ]
    exam = [row(f"question {i}?", answer) | {"t": tier} for i, (tier, answer) in enumerate(problems)]
    exam.append(row("question 2?", "2") | {"t": "x"})  # a duplicate counts once
    done = Ingested(
        tmp_path,
        [[row("other?", "1", thought("a"))]],
        {"exam": exam},
        benchmarks={"exam": {"source": "exam.jsonl", "mapping": COLUMNS | {"tier": "t"}}},
    )
    assert done.run(log)["benchmarks"]["exam"]["guess_rate"] == pytest.approx((2 + 2 + 1) / 7)


def test_guessing_the_small_worlds_most_frequent_answer_is_all_but_useless(tmp_path: Path) -> None:
    world = World(num_benchmark=600)
    found = list(read(Source(source="world"), Sources(folder=str(tmp_path), world=world), "benchmark"))
    problems = [one for one in found if isinstance(one, Record)]
    assert len(problems) == 600
    assert len({one.answers[0] for one in problems}) >= 100
    assert 1 / 600 < guess_rate(problems) < 0.03


def test_rows_of_one_problem_are_merged_across_sources(tmp_path: Path, log: Any) -> None:
    one = [row("add?", "1", ""), row("add?", "1", thought("x"))]
    two = [row("Add?  ", "\\frac{2}{2}", thought("x"), thought("y"))]
    metrics = Ingested(tmp_path, [one, two], EXAM).run(log)
    first, second = metrics["sources"]["teacher0.jsonl"], metrics["sources"]["teacher1.jsonl"]
    assert (first["problems"], first["responses"]) == (1, 1)
    assert first["dropped"] == {"duplicate_problem": 1, "empty_response": 1}
    assert (second["problems"], second["responses"]) == (0, 1)
    assert second["dropped"] == {"duplicate_problem": 1, "duplicate_response": 1}


def test_a_response_of_200_kb_is_kept_and_a_longer_one_listed_in_part(tmp_path: Path, log: Any) -> None:
    longest = "x" * 200_000
    done = Ingested(tmp_path, [[row("a?", "1", longest, longest + "x")]], EXAM)
    done.run(log)
    assert [one["text"] for one in done.responses] == [longest]
    assert [(one["reason"], one["detail"]) for one in done.rejects] == [("too_long", "200001 characters")]
    assert len(done.rejects[0]["text"]) == 2000


def test_responses_without_think_are_kept_counted_and_warned_of(
    tmp_path: Path, log: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = [[row("a?", "1", "no marks")], [row("b?", "1", "no marks", thought("c"))]]
    done = Ingested(tmp_path, teachers, EXAM)
    metrics = done.run(log)
    assert [source["without_think"] for source in metrics["sources"].values()] == [1, 1]
    [warning] = metrics["warnings"]
    assert "teacher0.jsonl: none of its 1 responses holds a </think>" in warning
    assert "verify.require_think" in warning
    assert warning in capsys.readouterr().err
    assert "no marks" in [one["text"] for one in done.responses]


def test_gold_answers_taken_from_the_teacher_are_counted_and_warned_of(tmp_path: Path, log: Any) -> None:
    columns = {"question": "q", "responses": "r"}
    teacher = [{"source": "teacher0.jsonl", "mapping": columns}]
    metrics = Ingested(tmp_path, [[row("a?", "7", thought("x"))]], EXAM, teacher=teacher).run(log)
    assert metrics["totals"]["gold_from_response"] == 1
    assert "agreeing with that teacher" in metrics["warnings"][0]


def test_text_that_was_written_wrongly_is_counted_by_rows_and_warned_of(tmp_path: Path, log: Any) -> None:
    listed = [row(f"{number}?", "1", json.dumps([thought("a"), thought("b")])) for number in range(2)]
    escaped = row("3?", "1", "<think>well\\n\\nso</think> \\boxed{1}")
    exam = [row("Add\\n\\nup?", "7")]
    metrics = Ingested(tmp_path, [[*listed, escaped, row("4?", "1", thought("a"))]], {"exam": exam}).run(log)
    first, second, third = sorted(metrics["warnings"])
    assert first.startswith("exam: 1 rows hold text that was escaped twice")
    assert second.startswith("teacher0.jsonl: 1 rows hold text that was escaped twice")
    assert third.startswith("teacher0.jsonl: 2 rows hold a list that became text")


def test_other_marks_of_reasoning_are_warned_of_with_a_mapping_that_reads_them(
    tmp_path: Path, log: Any
) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "1?"},
                {"role": "assistant", "content": "[THINK]a[/THINK]"},
            ]
        }
    ]
    rows = [one | {"answer": "1"} for one in rows]
    source: dict[str, Any] = {"source": "teacher0.jsonl", "mapping": "messages"}
    warnings = Ingested(tmp_path, [rows], EXAM, teacher=[source]).run(log)["warnings"]
    assert "think: ['[THINK]', '[/THINK]']" in warnings[1]
    columns = {
        "question": "messages",
        "answer": "answer",
        "responses": "messages",
        "think": ["[THINK]", "[/THINK]"],
    }
    done = Ingested(tmp_path, [rows], EXAM, teacher=[source | {"mapping": columns}])
    assert done.run(log)["warnings"] == []
    assert [one["text"] for one in done.responses] == ["<think>a</think>"]


def test_problems_that_differ_in_a_superscript_are_two(tmp_path: Path, log: Any) -> None:
    rows = [row("What is 2\u00b3 + 1?", "9", thought("a")), row("What is 23 + 1?", "24", thought("b"))]
    assert Ingested(tmp_path, [rows], EXAM).run(log)["totals"]["problems"] == 2


# --- problems for RL ---


def test_problems_for_rl_follow_the_others_with_their_own_answers_and_no_response(
    tmp_path: Path, log: Any
) -> None:
    taught, fresh = row("1 + 0?", "1", thought("a")), row("3 + 0?", ["3", "3.0"], thought("never read"))
    done = Ingested(tmp_path, [[taught]], EXAM, [[fresh], [row("4 + 0?", 4)]])
    metrics = done.run(log)
    assert [one["split"] for one in done.problems] == ["exam", "train", "rlvr", "rlvr"]
    assert done.problems[2] == {
        "problem_id": hashes.problem_id("3 + 0?"),
        "source": "rlvr0.jsonl",
        "question": "3 + 0?",
        "answers": ["3", "3.0"],
        "tier": "",
        "split": "rlvr",
    }
    assert [one["text"] for one in done.responses] == [thought("a")]
    one = {"rows": 1, "problems": 1, "dropped": {}}
    assert metrics["rlvr"] == {"rlvr0.jsonl": one, "rlvr1.jsonl": one}


def test_totals_and_sources_are_those_of_the_teacher_whatever_rl_takes(tmp_path: Path, log: Any) -> None:
    teacher = [row("1 + 0?", "1", thought("a")), row("", "1")]
    alone = Ingested(tmp_path, [teacher], EXAM).run(log)
    beside = Ingested(tmp_path, [teacher], EXAM, [[row("3 + 0?", "3"), row("", "3")]]).run(log)
    assert alone.pop("rlvr") == {}
    assert beside.pop("rlvr") == {"rlvr0.jsonl": {"rows": 2, "problems": 1, "dropped": {"empty_problem": 1}}}
    assert alone == beside


def test_every_fault_of_a_problem_for_rl_has_its_reason(tmp_path: Path, log: Any) -> None:
    asked = LONG.format(12, 5, 3)
    teacher = [
        row("taught", "1", thought("a")),
        row("without a response", "1", " "),
        row("in the exam alone?", "7", thought("a")),
    ]
    first = [
        row("", "1"),
        row("no answer", None),
        row("half a pair \ud800", "1"),
        row("gold is no mathematics", "\\frac{"),
        row("Taught", "1.0"),
        row(" taught ", "2"),
        row("in the  exam alone?", "7"),
        row(asked + " Explain it!", "66"),
        row(asked + " Explain it!", "66"),
        row("kept", "1"),
        row("Kept", "\\frac{2}{2}"),
    ]
    second = [row("kept", "2"), row("without a response", "1"), row("gold is no mathematics", "3")]
    done = Ingested(tmp_path, [teacher], EXAM | {"long": [row(asked, "66")]}, [first, second])
    metrics = done.run(log)
    found = {"rlvr0.jsonl": done.questions("rlvr")[:1], "rlvr1.jsonl": done.questions("rlvr")[1:]}
    assert found == {"rlvr0.jsonl": ["kept"], "rlvr1.jsonl": ["without a response", "gold is no mathematics"]}
    assert [
        (one["source"], one["row"], one["reason"]) for one in done.rejects if one["source"].startswith("rlvr")
    ] == [
        ("rlvr0.jsonl", 0, "empty_problem"),
        ("rlvr0.jsonl", 1, "no_answer"),
        ("rlvr0.jsonl", 2, "bad_unicode"),
        ("rlvr0.jsonl", 3, "bad_gold"),
        ("rlvr0.jsonl", 4, "in_training"),
        ("rlvr0.jsonl", 5, "in_training"),
        ("rlvr0.jsonl", 6, "contaminated"),
        ("rlvr0.jsonl", 7, "contaminated"),
        ("rlvr0.jsonl", 8, "contaminated"),
        ("rlvr0.jsonl", 10, "duplicate_problem"),
        ("rlvr1.jsonl", 0, "conflicting_answer"),
    ]
    details = {one["reason"]: one["detail"] for one in done.rejects if one["source"] == "rlvr0.jsonl"}
    assert details["in_training"] == "teacher0.jsonl row 0"
    assert details["contaminated"] == f"long {hashes.problem_id(asked)}"
    assert metrics["rlvr"]["rlvr0.jsonl"]["dropped"]["in_training"] == 2
    # once each, though asked for by training and by RL, or twice by RL
    assert [(one["benchmark"], one["question"]) for one in done.contamination] == [
        ("exam", "in the exam alone?"),
        ("long", asked + " Explain it!"),
    ]
    assert len({one["problem_id"] for one in done.problems}) == len(done.problems)


def test_a_gold_answer_that_only_a_response_gives_is_none_for_rl(tmp_path: Path, log: Any) -> None:
    chats = [
        {"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "\\boxed{1}"}]},
        {"messages": [{"role": "user", "content": "2?"}], "answer": "2"},
    ]
    source = [{"source": "rlvr0.jsonl", "mapping": "messages"}]
    teacher = [row("3?", "3", thought("a"))]
    done = Ingested(tmp_path, [teacher], EXAM, [chats], rlvr=source)
    assert done.run(log)["rlvr"]["rlvr0.jsonl"] == {"rows": 2, "problems": 1, "dropped": {"no_answer": 1}}
    assert done.questions("rlvr") == ["2?"]


def test_the_small_worlds_problems_for_rl_all_pass(tmp_path: Path, log: Any) -> None:
    world = {"source": "world"}
    done = Ingested(tmp_path, [], {}, teacher=[world], rlvr=[world], benchmarks={"world": world})
    metrics = done.run(log)
    assert metrics["rlvr"] == {"world": {"rows": 600, "problems": 600, "dropped": {}}}
    assert Counter(one["split"] for one in done.problems) == {"world": 200, "train": 1500, "rlvr": 600}


# --- decontamination (METHOD §6.9) ---


def test_a_training_problem_that_repeats_a_benchmark_is_dropped_and_listed(tmp_path: Path, log: Any) -> None:
    asked = LONG.format(12, 5, 3)
    rows = [
        row("1 + 0?", "1", thought("kept")),
        row(asked.upper(), "1", thought("the same id")),
        row(asked + " Explain it!", "1", thought("two words more")),
        row(LONG.format(13, 6, 4), "1", thought("other numbers")),
    ]
    done = Ingested(
        tmp_path, [rows], {"exam": [row(asked, "66")], "other": [row(asked, "66"), row("3?", "3")]}
    )
    metrics = done.run(log)
    assert [one["question"] for one in done.problems if one["split"] == "train"] == [
        "1 + 0?",
        LONG.format(13, 6, 4),
    ]
    assert metrics["totals"]["dropped"] == {"contaminated": 2}
    assert metrics["totals"]["responses_of_dropped_rows"] == 2
    assert [(one["benchmark"], one["question"]) for one in done.contamination] == [
        ("exam", asked.upper()),
        ("other", asked.upper()),
        ("exam", asked + " Explain it!"),
        ("other", asked + " Explain it!"),
    ]
    assert all(one["benchmark_question"] == asked for one in done.contamination)
    assert [one["share"] for one in done.contamination] == [1.0] * 4
    assert len({(one["problem_id"], one["split"]) for one in done.problems}) == len(done.problems) == 5


# --- nothing is lost ---

RECORDS = st.builds(
    lambda question, answers, responses: (question, answers, responses),
    st.sampled_from(["1?", "2?", "3?", "4?", "5?"]),
    st.sampled_from([["1"], ["2"], ["1", "2"], ["\\frac{"]]),
    st.lists(st.sampled_from(["", " ", "a", "b", "</think>c", "x" * 11]), max_size=4),
)
ITEMS = st.lists(
    st.one_of(RECORDS, st.sampled_from(["empty_problem", "no_answer", "multi_turn"])), max_size=12
)


def items(drawn: list[Any]) -> list[Record | Reject]:
    return [
        Reject(number, one, "", "") if isinstance(one, str) else Record(number, one[0], one[1], one[2], "")
        for number, one in enumerate(drawn)
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    teacher=st.lists(ITEMS, min_size=1, max_size=3), reinforced=st.lists(ITEMS, max_size=2), benchmark=ITEMS
)
def test_rows_and_responses_add_up_and_every_drop_is_listed(
    tmp_path: Path,
    grader: Grader,
    teacher: list[list[Any]],
    reinforced: list[list[Any]],
    benchmark: list[Any],
) -> None:
    paths = {name: tmp_path / name for name in ("problems", "responses", "rejects", "contamination")}
    schemas = (PROBLEMS, RESPONSES, REJECTS, CONTAMINATION)
    writers = [records.Writer(path, schema) for path, schema in zip(paths.values(), schemas, strict=True)]
    tables = ledger.Tables(*writers)
    overlap = Overlap(Decontamination())
    benchmarks: dict[str, ledger.BenchmarkCount] = {}
    try:
        benchmarks["exam"] = add_benchmark("exam", "exam source", items(benchmark), tables, overlap, grader)
    except DataError:
        assert all(isinstance(one, str) or one[1] == ["\\frac{"] for one in benchmark)
        return
    finally:
        if "exam" not in benchmarks:
            for writer in writers:
                writer.__exit__(None)
    training = Training(tables, overlap, grader, max_chars=10)
    for number, drawn in enumerate(teacher):
        training.add(f"source {number}", items(drawn))
    try:
        training.finish()
    except DataError:
        assert training.counts.keys() == {f"source {number}" for number in range(len(teacher))}
    rlvr = Rlvr(tables, training, grader)
    for number, drawn in enumerate(reinforced):
        rlvr.add(f"rlvr {number}", items(drawn))
    for writer in writers:
        writer.__exit__(None)

    metrics = ledger.summary(training.counts, rlvr.counts, benchmarks)
    for number, drawn in enumerate(teacher):
        counts = metrics["sources"][f"source {number}"]
        dropped = counts["dropped"]
        assert counts["rows"] == len(drawn)
        assert counts["rows"] == counts["problems"] + sum(
            dropped.get(reason, 0) for reason in ledger.ROW_REASONS
        )
        assert counts["responses_read"] == sum(len(one[2]) for one in drawn if not isinstance(one, str))
        lost = sum(dropped.get(reason, 0) for reason in ledger.RESPONSE_REASONS)
        assert counts["responses_read"] == counts["responses"] + lost + counts["responses_of_dropped_rows"]
    exam = metrics["benchmarks"]["exam"]
    assert exam["rows"] == len(benchmark) == exam["problems"] + sum(exam["dropped"].values())
    for number, drawn in enumerate(reinforced):
        counts = metrics["rlvr"][f"rlvr {number}"]
        assert counts["rows"] == len(drawn) == counts["problems"] + sum(counts["dropped"].values())
    for key, value in metrics["totals"].items():
        if key not in ("dropped", "benchmark_problems"):
            assert value == sum(source[key] for source in metrics["sources"].values())

    problems = records.read(paths["problems"], PROBLEMS).to_pylist()
    responses = records.read(paths["responses"], RESPONSES).to_pylist()
    listed = Counter(
        (one["source"], one["reason"]) for one in records.read(paths["rejects"], REJECTS).to_pylist()
    )
    counted = Counter({("exam source", reason): n for reason, n in exam["dropped"].items()})
    for source, counts in (metrics["sources"] | metrics["rlvr"]).items():
        counted.update({(source, reason): n for reason, n in counts["dropped"].items()})
    assert listed == counted
    trained = {one["problem_id"] for one in problems if one["split"] == "train"}
    assert {one["problem_id"] for one in responses} == trained
    split_of = {one["problem_id"]: one["split"] for one in problems}
    assert len(split_of) == len(problems)
    assert Counter(split_of.values())["rlvr"] == sum(one["problems"] for one in metrics["rlvr"].values())
    assert len(trained) == metrics["totals"]["problems"]
    assert len({one["response_id"] for one in responses}) == len(responses) == metrics["totals"]["responses"]
    assert len({(one["problem_id"], one["text"]) for one in responses}) == len(responses)


# --- faults of a whole source ---


def test_gold_answers_that_were_checked_before_a_kill_are_not_checked_again(tmp_path: Path, log: Any) -> None:
    good = [row("1?", "1", thought("a")), row("2?", "2", thought("b"))]
    broken = Ingested(tmp_path, [[*good, '{"q": ']], EXAM)
    with pytest.raises(DataError):
        broken.run(log)
    verdicts = broken.scratch / "verdicts"
    ((key, _),) = lines.read(verdicts)  # the exam's; the teacher's rows were not a whole batch yet
    verdicts.write_bytes(b"".join(lines.encode([[key, "timeout"]])))
    with pytest.raises(DataError, match=r"no problem is left .*\(bad_gold 1\)"):
        Ingested(tmp_path, [good], EXAM).run(log)


@pytest.mark.parametrize(
    ("teacher", "exam", "expected"),
    [
        (
            [row("1?", "1", "a")],
            [],
            r"benchmark 'exam': no problem is left of exam\.jsonl \(no rows\); correct ingest",
        ),
        (
            [row("1?", "1", "a")],
            [row("2?", "\\frac{")],
            r"benchmark 'exam': no problem is left .*\(bad_gold 1\)",
        ),
        ([row("1?", "1")], [row("2?", "2")], r"no training problem is left \(no_response 1\)"),
        (
            [row("1?", True, "a"), row("1?", None, "a"), row("2?", {}, "a")],
            [row("2?", "2")],
            r"is left \(bad_value 2, no_answer 1; row 0: expected text as answer, found bool\)",
        ),
        ([row("2?", "2", "a")], [row("2?", "2")], r"no training problem is left \(contaminated 1\)"),
        (
            [row("1?", "1", "a"), '{"q": ', row("1?", "1", "a")],
            [row("2?", "2")],
            r"teacher0\.jsonl:2: broken JSON",
        ),
        ([row("1?", "1", "a"), {"q": "2?", "a": "2"}], [row("2?", "2")], r"teacher0\.jsonl:2: no column 'r'"),
    ],
)
def test_a_fault_of_a_whole_source_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, log: Any, teacher: list[Any], exam: list[Any], expected: str
) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        Ingested(tmp_path, [teacher], {"exam": exam}).run(log)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"sources", "scratch"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([], r"\(no rows\)"), ([row("1?", "1"), row("2?", "2")], r"\(contaminated 1, in_training 1\)")],
)
def test_sources_of_which_rl_gets_no_problem_are_one_sentence_and_leave_nothing(
    tmp_path: Path, log: Any, rows: list[Any], expected: str
) -> None:
    with pytest.raises(
        DataError, match=rf"^ingest\.rlvr: no problem is left {expected}; correct the sources"
    ):
        Ingested(tmp_path, [[row("1?", "1", "a")]], {"exam": [row("2?", "2")]}, [rows]).run(log)
    assert {path.name for path in tmp_path.iterdir()} == {"sources", "scratch"}


def test_a_missing_file_is_refused(tmp_path: Path, log: Any) -> None:
    missing = {"gone": {"source": "gone.jsonl", "mapping": COLUMNS}}
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        Ingested(tmp_path, [[row("1?", "1", "a")]], {}, benchmarks=missing).run(log)
    assert {path.name for path in tmp_path.iterdir()} == {"sources", "scratch"}


@pytest.mark.whole
@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the project's shared data")
def test_real_benchmarks_and_a_limited_gsm8k_pass_through(tmp_path: Path, log: Any) -> None:
    section = Ingest.model_validate(
        {
            "teacher": [{"source": "gsm8k_train.jsonl", "mapping": "gsm8k", "limit": 300}],
            "benchmarks": {
                "gsm8k": {"source": "gsm8k_test.jsonl", "mapping": "gsm8k", "limit": 50},
                "aime24": {"source": "aime24.json", "mapping": "math"},
                "aime25": {"source": "aime25.json", "mapping": "math"},
                "minerva": {"source": "minerva.json", "mapping": "math"},
            },
        }
    )
    paths = {name: tmp_path / name for name in ("problems", "responses", "rejects", "contamination")}
    metrics = ingest.run(
        section, Sources(folder=str(SHARED_DATA)), VERIFY, log=log, scratch=tmp_path, **paths
    )
    assert {name: counts["problems"] for name, counts in metrics["benchmarks"].items()} | {"minerva": 0} == {
        "gsm8k": 50,
        "aime24": 30,
        "aime25": 30,
        "minerva": 0,
    }
    assert (
        metrics["benchmarks"]["minerva"]["problems"] >= 265
    )  # a few of its golds name no value, such as `E_1, E_2`
    assert metrics["totals"]["problems"] == metrics["totals"]["responses"] == 300
    assert metrics["totals"]["without_think"] == 0
    assert metrics["warnings"] == []
