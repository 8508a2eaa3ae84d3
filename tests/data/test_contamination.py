"""Decontamination (METHOD §6.9): benchmark problems are found in whatever stands round them, closings are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SHARED_DATA
from oxa import hashes
from oxa.config.ingest import Decontamination
from oxa.config.prompt import PAPER_SUFFIX
from oxa.data.contamination import Overlap


def hits(training: str, benchmark: str, **section: Any) -> list[float]:
    overlap = Overlap(Decontamination(**section))
    overlap.add("exam", "benchmark id", benchmark)
    return [hit["share"] for hit in overlap.hits("training id", training)]


def test_the_share_is_of_either_problems_ngrams() -> None:
    one, other = "ant bee cat dog eel", "axe ant bee cat yak zoo"
    assert hits(one, other, ngram=3, threshold=0.3) == [1 / 3]
    assert hits(other, one, ngram=3, threshold=0.3) == [1 / 3]
    assert hits(one, other, ngram=3, threshold=0.4) == []
    overlap = Overlap(Decontamination(ngram=3, threshold=0.4))
    for number, question in enumerate(
        ("axe ant bee cat yak", "axe cat dog eel yak")
    ):  # two thirds in both together, one third in each
        overlap.add("exam", str(number), question)
    assert overlap.hits("training id", one) == []


def test_an_ngram_of_several_benchmark_problems_weighs_less() -> None:
    one = "ant bee cat dog eel"
    overlap = Overlap(Decontamination(ngram=3, threshold=0.1))
    for number, question in enumerate(("axe ant bee cat yak", "ant bee cat yak", "ant bee cat axe")):
        overlap.add("exam", str(number), question)
    overlap.add("again", "0", "axe ant bee cat yak")  # the same problem, hence no other
    # of its three 3-grams one is shared, and weighs 1/3; of the benchmark's, that one, one of two, and one of its own
    assert overlap.hits("training id", one)[0]["share"] == pytest.approx((1 / 3) / (1 / 3 + 1 / 2))


def test_words_ignore_case_punctuation_and_latex_but_not_signs_or_digits() -> None:
    assert hits("Find  $x$, (now)!", "find x now", threshold=1) == [1.0]
    assert hits("What is 3 + 4?", "What is 3 - 4?") == []
    assert hits("What is 3 \u2212 4?", "What is 3 - 4?") == [1.0]
    assert hits("What is 3 + 4?", "What is 3 + 5?") == []
    assert hits("?!", "...") == []


@given(words=st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30), ngram=st.integers(1, 12))
def test_a_text_always_hits_itself_and_never_a_text_of_other_words(words: list[str], ngram: int) -> None:
    text = " ".join(words)
    assert hits(text, text, ngram=ngram, threshold=1) == [1.0]
    assert hits(text, text.upper() + "!", ngram=ngram, threshold=1) == [1.0]
    assert hits(text, " ".join(word + "z" for word in words), ngram=ngram, threshold=0.01) == []


WRAPPERS = (
    "{}" + PAPER_SUFFIX,
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".',
    "Question: {}\nAnswer:",
)
CLOSING = "where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
ROOT_CLOSING = (
    "where $m$, $n$, and $p$ are positive integers, $m$ and $p$ are relatively prime, and $n$ is not divisible by the "
    "square of any prime. Find $m+n+p$."
)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the project's shared data")
@pytest.mark.parametrize(
    ("file", "number"), [("aime24.json", 30), ("aime25.json", 30), ("minerva.json", 272)]
)
def test_a_benchmark_problem_inside_instructions_is_found(file: str, number: int) -> None:
    questions = [one["problem"] for one in json.loads((SHARED_DATA / file).read_text("utf-8"))]
    assert len(questions) == number
    overlap = Overlap(Decontamination())
    for question in questions:
        overlap.add("exam", hashes.problem_id(question), question)
    for wrapper in WRAPPERS:
        for question in questions:
            wrapped = wrapper.replace("{}", question, 1)
            found = overlap.hits(hashes.problem_id(wrapped), wrapped)
            assert question in [hit["benchmark_question"] for hit in found]


@pytest.mark.parametrize(
    "innocent",
    [
        "A fair die is rolled twice. The probability of two sixes is $\\frac{m}{n}$, " + CLOSING,
        "The slope of the line is m/n, " + CLOSING,
        "Eight cards are drawn. The probability that all are red can be written as $\\frac{m}{n}$, "
        + CLOSING,
        "The area of the region can be expressed as $\\frac{m\\sqrt{n}}{p}$, " + ROOT_CLOSING,
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_contests_closing_makes_no_benchmark_problem(innocent: str, alone: bool) -> None:
    exam = [
        "Among the 900 residents of Aimeville, the share with a ring can be written as $\\frac mn$, "
        + CLOSING,
        "Torus $T$ rests on a sphere; the difference of their radii is $\\tfrac{m}{n}$, " + CLOSING,
        "Let the area of the rhombus be $\\frac{m\\sqrt{n}}{p}$, " + ROOT_CLOSING,
    ]
    for questions in [[one] for one in exam] if alone else [exam]:
        overlap = Overlap(Decontamination())
        for question in questions:
            overlap.add("exam", question, question)
            assert overlap.hits("training id", question + " Show your work.")
        assert overlap.hits("training id", innocent) == []


def test_a_short_benchmark_problem_is_found_where_whole_sentences_are_it() -> None:
    assert hits("Add them up: What is 3 + 4? Show your work.", "What is 3 + 4?") == [1.0]
    assert hits("What is 3 + 4?" + PAPER_SUFFIX, "What is 3 + 4?") == [1.0]
    assert hits("What is 100 - 1?" + PAPER_SUFFIX, "What is 100 - 1?") == [1.0]
    assert hits("What is 3 + 4 + 5?", "What is 3 + 4?") == []
    assert hits("What is 3 + 4.5? Show your work.", "What is 3 + 4?") == []
    assert hits("Let m = 1 and n = 2. Find m + n.", "Find m + n.") == []
