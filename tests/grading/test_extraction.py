"""Where a response says its answer."""

from __future__ import annotations

import time

import pytest

from oxa.grading.extraction import Answer, boxed, find


def text_of(response: str, *, require_think: bool = True) -> str | None:
    answer = find(response, require_think=require_think)
    return answer.text if answer else None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>a</think> so \boxed{42}", "42"),
        (r"<think>\boxed{1}</think> so \boxed{2} is a step. In all it is \boxed{3}.", "3"),
        (r"<think>a</think>b</think>\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"<think></think>\boxed{x = \boxed{5}}", "5"),
        (r"<think></think>\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"<think></think>\boxed{7} and then \boxed{8", "7"),
        (r"<think></think>} \boxed {9}", "9"),
        ("<think></think>\\boxed{1\n}", "1"),
        (r"<think></think>\fbox{6}", "6"),
        (r"<think></think>\boxed 5", "5"),
        ("<think></think>\x08oxed{5}", "5"),
        (r"<think></think>\boxed{5 \}", "5"),
        (r"<think></think>\boxed{5}. Remember the format \boxed{answer} and \boxed{}.", "5"),
        (r"<think></think>The roots are \boxed{2} and \boxed{3}.", "2, 3"),
        (r"<think></think>It is $\boxed{12}$ or $\boxed{13}$.", "12, 13"),
        (r"<think></think>\boxed{12}. Wait, that is wrong: \boxed{13}", "13"),
        (r"<think></think>I would write \boxed{12} if it were even. So the answer is 13.", "13"),
        (r"<think></think>It is not \boxed{12}.", None),
        (r"<think></think>\boxed{12} is incorrect.", None),
        (r"<think></think>\boxed{}", None),
        ("<think>\\boxed{4}</think> \n", None),
        (r"<think> \boxed{4}", None),
        ("", None),
        ("<think></think> The answer is 5.\n", "5"),
        ("<think></think> **Final Answer: 73**", "73"),
        ("<think></think>#### 42", "42"),
        ("<think></think><answer>42</answer>", "42"),
        ("<think></think>所以答案是 $5$。", "$5$"),
        ("<think></think>Answer: (D)", "(D)"),
        ("<think></think>**Yes**", "Yes"),
        ("<think></think>The answer is 12. Or maybe 13.", None),
        ("<think></think>The answer is not 12.", None),
        ("<think></think>Suppose the answer is 12.", None),
        ("<think></think>There is no such number 12.", None),
    ],
)
def test_the_answer_is_what_stands_in_the_last_box_or_is_said_to_be_it(text: str, answer: str | None) -> None:
    assert text_of(text) == answer
    tail = text.rpartition("</think>")[2]
    if "</think>" in text:
        assert boxed(text) == boxed(tail) == (answer if "box" in tail or "oxed" in tail else None)


def test_the_only_number_of_the_last_sentence_is_an_answer_of_which_nothing_is_certain() -> None:
    text = "</think>Each box costs 3 dollars.\nThere are four boxes, so together they cost $12$ dollars."
    assert find(text, require_think=True) == Answer("12", (), certain=False)
    assert find("</think>We add 3 and 4 in this step to have 7.", require_think=True) is None


def test_all_boxes_are_kept_for_a_gold_answer_of_as_many() -> None:
    text = (
        r"</think>(a) The first part gives \boxed{2}. (b) By what was shown before, the second is \boxed{3}."
    )
    assert find(text, require_think=True) == Answer("3", ("2", "3"))


def test_without_the_need_for_reasoning_tags_the_whole_text_is_searched() -> None:
    assert text_of(r"so \boxed{4}", require_think=False) == "4"
    assert text_of("4", require_think=False) == "4"
    assert text_of(r"\boxed{3}</think>\boxed{4}", require_think=False) == "4"


@pytest.mark.parametrize(
    "piece",
    [
        r"\boxed{",
        "{",
        "}",
        r"\boxed",
        "\\",
        r"\boxed  ",
        "</think",
        r"{\boxed{}",
        "answer is ",
        r"\boxed{1} ",
        "$1$ ",
    ],
)
def test_finding_the_answer_takes_time_linear_in_the_text(piece: str) -> None:
    def seconds(length: int) -> float:
        text = "</think>" + piece * (length // len(piece))
        start = time.process_time()
        find(text, require_think=True)
        return time.process_time() - start

    assert min(seconds(400_000) for _ in range(3)) < 40 * max(min(seconds(50_000) for _ in range(3)), 1e-4)
