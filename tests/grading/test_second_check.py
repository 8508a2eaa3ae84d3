"""The second check reads plain numbers exactly, and says nothing of anything else."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxa.grading.second_check import number, surely_wrong


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" $-42$ ", -42),
        ("+7.", 7),
        (r"1{,}234\,567", 1_234_567),
        ("0.125", Fraction(1, 8)),
        ("-.5", Fraction(-1, 2)),
        ("1234.125", Fraction(9873, 8)),
        ("3/4", Fraction(3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\dfrac{1{,}000}{8}", 125),
    ],
)
def test_plain_numbers_are_read_exactly(text: str, value: Fraction) -> None:
    answer = number(text)
    assert answer is not None
    assert answer.value == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "-",
            "x",
            "2x",
            "1 2",
            "1 1/2",
            "50%",
            "5 cm",
            "(1,2)",
            "1e5",
            "3/0",
            "1/2/3",
            "2^10",
            "--1",
        ),
        *("0,125", "2,500", "1,234,567", "100,200", "1.234", "-12.500"),  # thousands, decimals or two numbers
        *(r"\frac12", r"\sqrt{2}", r"\pi", "inf", "nan", "__import__('os')", "٣", "9" * 101, r"1\,23"),
    ],
)
def test_of_everything_else_it_has_no_opinion(text: str) -> None:
    assert number(text) is None
    assert not surely_wrong(["1"], text)
    assert not surely_wrong([text], "1")


@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_a_number_is_never_wrong_in_another_form_of_itself(gold: Fraction, other: Fraction) -> None:
    latex = rf"${'-' * (gold < 0)}\frac{{{abs(gold.numerator)}}}{{{gold.denominator}}}$"
    for form in (str(gold), latex):
        assert not surely_wrong([str(gold)], form)
        assert not surely_wrong([str(other), str(gold)], form), "any accepted answer will do"
    if abs(gold - other) > 0.5 + max(abs(gold), abs(other)) / 50:
        assert surely_wrong([str(other)], latex)


@given(st.fractions(-50, 50, max_denominator=99), st.integers(0, 5))
def test_a_rounding_is_never_wrong(gold: Fraction, places: int) -> None:
    assert not surely_wrong([str(gold)], f"{float(gold):.{places}f}")
    assert not surely_wrong([f"{float(gold):.{places}f}"], str(gold))


def test_whole_numbers_differ_by_one_and_others_by_more_than_rounding() -> None:
    assert surely_wrong(["951"], "950")
    assert not surely_wrong(["1/3"], "0.3")
    assert not surely_wrong(["3.14"], "3")
    assert not surely_wrong(["951"], "951.2")
    assert surely_wrong(["1/3"], "0.4")
    assert surely_wrong(["3.14"], "4")
    assert not surely_wrong([], "3")
    assert not surely_wrong(["3"], None)
