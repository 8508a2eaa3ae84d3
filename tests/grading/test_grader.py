"""Finding an answer and comparing it (tests/test_hostile.py has what is hostile)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import until, wait_until_gone

from conftest import SHARED_DATA
from oxa.config.verify import Verify
from oxa.grading.grader import MAX_CHARS, Graded, Grader


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    """For ordinary answers: a limit that a busy machine does not reach."""
    with Grader(Verify(timeout=30, workers=1)) as grader:
        yield grader


def item(golds: list[str], answer: str) -> tuple[list[str], str, str]:
    return golds, rf"<think>Some \boxed{{0}} reasoning.</think>It is $\boxed{{{answer}}}$.", "stop"


def verdict(grader: Grader, gold: str, answer: str) -> str:
    return grader.grade([item([gold], answer)])[0].verdict


# ---- comparison ----


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("025", "25"),
        ("204", "204."),
        ("1080", "1,080"),
        ("1080", r"1\,080"),
        ("2,000,000", "2000000"),
        ("72", r"72 \text{ clips}"),
        ("18", r"\$18"),
        ("50", r"50\%"),
        ("50\\%", "0.5"),
        ("4.5e33\n", r"4.5 \times 10^{33}"),
        ("3.61e-10", r"3.61 \times 10^{-10}"),
        (r"\arcsin{\frac{10}{13}}" + "\n", r"\arcsin(10/13)"),
        ("-7/3", r"-2\frac{1}{3}"),
        (r"\frac13", "0.333333"),
        ("x^2-1", "(x-1)(x+1)"),
        ("5", "x = 5"),
        (r"\frac{dx}{dt} = kx - a", r"\frac{dx}{dt} = -a + kx"),
        ("1 < x < 2", "(1, 2)"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&\frac{8}{2}\end{pmatrix}"),
        (r"\text{Sunday}", r"\text{sunday}"),
        (r"m_{p} c^{2}(\gamma^{2}-1)", r"m_{p} c^{2}(\gamma^{2}-1)"),
    ],
)
def test_an_answer_in_another_form_is_correct(grader: Grader, gold: str, answer: str) -> None:
    assert verdict(grader, gold, answer) == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("25", "52"),
        ("4.5e33", "4.5"),
        ("(1,2)", "[1,2]"),
        (r"\{1,2\}", r"\{1,3\}"),
        ("x^2-1", "x^2+1"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ],
)
def test_another_value_is_incorrect(grader: Grader, gold: str, answer: str) -> None:
    assert verdict(grader, gold, answer) == "incorrect"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(-999, 999),
    st.integers(1, 60),
    st.integers(2, 9),
    st.sampled_from([r"\frac", r"\dfrac", r"\tfrac"]),
)
def test_every_form_of_a_fraction_is_correct_and_none_of_its_neighbor(
    numerator: int, denominator: int, factor: int, command: str
) -> None:
    value = Fraction(numerator, denominator)
    up, down = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    forms = [
        f"{sign}{command}{{{up}}}{{{down}}}",
        f"{sign}{up}/{down}",
        f"{sign}{command}{{{up * factor}}}{{{down * factor}}}",
        f"x = {sign}{command}{{{up}}}{{{down}}}",
        f"{sign}{up} \\cdot {down}^{{-1}}",
        f"{sign}\\left({up} \\div {down}\\right)",
    ]
    if 10**6 % down == 0:
        forms.append(f"{float(value):.6f}")
    neighbor = value + Fraction(1, down)
    accepted = [f"{value.numerator}/{value.denominator}"]
    graded = _shared_grader().grade([item(accepted, form) for form in forms])
    assert [g.verdict for g in graded] == ["correct"] * len(forms), list(zip(forms, graded, strict=True))
    wrong = _shared_grader().grade([item(accepted, f"{neighbor.numerator}/{neighbor.denominator}")])
    assert wrong[0].verdict == "incorrect"


_kept: list[Grader] = []  # hypothesis does not go together with fixtures that last longer than an example


def _shared_grader() -> Grader:
    if not _kept:
        _kept.append(Grader(Verify(timeout=30, workers=1)))
    return _kept[0]


@pytest.fixture(scope="module", autouse=True)
def _end_the_shared_grader() -> Iterator[None]:
    yield
    while _kept:
        _kept.pop().__exit__()


def test_one_accepted_gold_answer_is_enough(grader: Grader) -> None:
    graded = grader.grade(
        [item(["3", r"\frac{1}{2}"], "0.5"), item(["3", "4"], "0.5"), item(["4", r"\frac{"], "4")]
    )
    assert [g.verdict for g in graded] == ["correct", "incorrect", "correct"]


def test_without_a_usable_gold_answer_nothing_is_incorrect(grader: Grader) -> None:
    graded = grader.grade(
        [item([r"\frac{"], "4"), item(["4", r"\frac{"], "5"), item([], "5"), item(["???"], "5")]
    )
    assert [g.verdict for g in graded] == ["bad_gold"] * 4


def test_gold_answers_are_checked_against_themselves(grader: Grader) -> None:
    golds = [["025"], ["4.5e33\n", r"4.5 \times 10^{33}"], [], [""], ["4", r"\frac{"], ["\n"], [r"\sqrt{2}"]]
    assert grader.check_golds(golds) == [True, True, False, False, False, False, True]


@pytest.mark.parametrize(
    "text",
    [
        r"no end of thinking: \boxed{4}",
        "<think>4</think>",
        r"<think>4</think>\boxed{}",
        r"<think></think>\boxed{" + "4" * (MAX_CHARS + 1) + "}",
        "<think></think>" + "4 " * 100_000,
    ],
)
def test_a_response_without_an_answer_is_unparsable_whatever_the_gold(grader: Grader, text: str) -> None:
    assert grader.grade([(["4"], text, "stop")]) == [Graded("unparsable", None)]


def test_a_response_cut_by_length_is_graded_by_what_there_is_of_it(grader: Grader) -> None:
    graded = grader.grade(
        [(["4"], r"</think>\boxed{4} is th", "length"), (["4"], r"<think>\boxed{4}", "length")]
    )
    assert graded == [Graded("correct", "4"), Graded("unparsable", None)]


# ---- what is not evidence of a wrong answer (METHOD §6, point 7) ----


@pytest.mark.parametrize(
    "answer", [r"\frac{", "???", r"\begin{cases} x & y", "((((((", "9" * 9000, "$(rm -rf /)"]
)
def test_an_answer_that_does_not_parse_is_not_incorrect(grader: Grader, answer: str) -> None:
    assert verdict(grader, "2", answer) in ("unparsable", "unsure")


def test_what_has_no_value_is_neither_gold_nor_incorrect(grader: Grader) -> None:
    assert verdict(grader, r"\frac{0}{0}", "2") == "bad_gold"
    assert verdict(grader, "2", r"\frac{0}{0}") == "unparsable"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [(r"12\pi", "37.7"), (r"\text{a circle}", r"\text{a round curve}"), ("5", r"\text{five or so}")],
)
def test_what_may_be_right_is_unsure(grader: Grader, gold: str, answer: str) -> None:
    assert verdict(grader, gold, answer) == "unsure"


def test_what_nobody_called_the_answer_is_never_incorrect(grader: Grader) -> None:
    text = "</think>There are four boxes of three pens each, so together they cost $12$ dollars."
    graded = grader.grade([(["12"], text, "stop"), (["13"], text, "stop")])
    assert [one.verdict for one in graded] == ["correct", "unsure"]


def test_each_of_several_answers_may_have_its_own_box(grader: Grader) -> None:
    text = (
        r"</think>(a) The first part gives \boxed{2}. (b) By what was shown before, the second is \boxed{3}."
    )
    graded = grader.grade([(["2, 3"], text, "stop"), (["3"], text, "stop"), (["2"], text, "stop")])
    assert [one.verdict for one in graded] == ["correct", "correct", "incorrect"]


def test_each_distinct_pair_is_graded_once(grader: Grader) -> None:
    before = grader.num_distinct
    first = grader.grade([item(["77"], "77"), item(["77"], "78"), item(["77"], "77"), item(["78"], "77")])
    assert [g.verdict for g in first] == ["correct", "incorrect", "correct", "incorrect"]
    assert grader.num_distinct == before + 3
    assert grader.grade([item(["77"], "78")]) == [first[1]]
    assert grader.num_distinct == before + 3


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing\n"
        "from oxa.config.verify import Verify\n"
        "from oxa.grading.grader import Grader\n"
        "if __name__ == '__main__':\n"
        "    with Grader(Verify(timeout=600, workers=2)) as grader:\n"
        "        grader.grade([(['1'], '</think>1', 'stop')])\n"
        "        print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "        grader.grade([(['1'], '</think>$9^{9^{9^9}}$', 'stop')])\n",
        encoding="utf-8",
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
    )
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    used = [sum(worker.cpu_times()[:2]) for worker in workers]
    until(
        lambda: any(
            sum(worker.cpu_times()[:2]) > before + 0.5 for worker, before in zip(workers, used, strict=True)
        ),
        "one of them is at the tower of powers",
        parent,
    )
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until_gone(workers)


# ---- real data ----


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="shared data is not here")
@pytest.mark.parametrize("form", ["<think>{solution}</think> \\boxed{{{tail}}}", "{tail}"])
def test_all_model_solutions_of_gsm8k_get_the_verdict_they_carry(grader: Grader, form: str) -> None:
    items, flags = [], []
    for line in (SHARED_DATA / "gsm8k_model_solutions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        gold = row["ground_truth"].rpartition("A:")[2]
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            solution = row[model]["solution"]
            tail = solution.rpartition("A:")[2]
            items.append(([gold], form.format(solution=solution, tail=tail), "stop"))
            flags.append(row[model]["is_correct"])
    assert len(flags) == 5276
    with Grader(Verify(timeout=30, workers=1, require_think="</think>" in form)) as fresh:
        verdicts = [graded.verdict for graded in fresh.grade(items)]
    assert len(verdicts) == 5276
    disagree = [
        pair for pair in zip(items, flags, verdicts, strict=True) if (pair[2] == "correct") != pair[1]
    ]
    assert disagree == []
    assert set(verdicts) <= {"correct", "incorrect", "unsure", "unparsable"}
    assert verdicts.count("unparsable") + verdicts.count("unsure") < 20  # cut off before their `A:`, or near


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="shared data is not here")
def test_the_benchmarks_gold_answers_verify_against_themselves(grader: Grader) -> None:
    aime = [
        row["answer"]
        for name in ("aime24", "aime25")
        for row in json.loads((SHARED_DATA / f"{name}.json").read_text(encoding="utf-8"))
    ]
    assert all(grader.check_golds([[str(answer)] for answer in aime]))
    minerva = [
        row["answer"] for row in json.loads((SHARED_DATA / "minerva.json").read_text(encoding="utf-8"))
    ]
    bad = [golds for golds, good in zip(minerva, grader.check_golds(minerva), strict=True) if not good]
    assert len(minerva) == 272
    assert bad == []
