"""What a row's cells may hold: the shapes of public data sets, chats, and values that make a row unusable."""

from __future__ import annotations

import json
import math
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from conftest import SHARED_DATA
from oxa.config.sources import Mapping, Source, Sources
from oxa.data import sources
from oxa.data.cells import exchange
from oxa.data.counts import oddities
from oxa.data.mappings import Purpose, Record, Reject, layout_of, record_of
from oxa.errors import DataError

CASES = SHARED_DATA.parent / "cases" / "inputs"
PLAIN = {"question": "q", "answer": "a", "responses": "r"}
CHAT = {"question": "messages", "answer": "answer", "responses": "messages"}
SPLIT = PLAIN | {"reasoning": "thinking"}


def record(
    columns: dict[str, Any], mapping: str | dict[str, Any] = PLAIN, purpose: Purpose = "teacher"
) -> Record | Reject:
    source = Source.model_validate({"source": "data.jsonl", "mapping": mapping})
    return record_of(0, "data.jsonl:1", columns, layout_of(source, purpose), purpose)


def reason(columns: dict[str, Any], mapping: str | dict[str, Any] = PLAIN) -> tuple[str, str]:
    found = record(columns, mapping)
    assert isinstance(found, Reject), found
    return found.reason, found.detail


def user(content: Any, **other: Any) -> dict[str, Any]:
    return {"role": "user", "content": content} | other


def assistant(content: Any, **other: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | other


SAID = "<think>\nwell\n</think>\n\n\\boxed{2}"
TURNS = [user("1 + 1?"), assistant(SAID)]


@pytest.mark.parametrize(
    ("mapping", "columns"),
    [
        pytest.param(
            {"question": "problem", "answer": "expected_answer", "responses": "generated_solution"},
            {"problem": "1 + 1?", "expected_answer": "2", "generated_solution": SAID},
            id="OpenMathReasoning",
        ),
        pytest.param(
            {
                "question": "question",
                "answer": "solution",
                "responses": ["gemini_attempt", "deepseek_attempt"],
                "reasoning": ["gemini_thinking_trajectory", "deepseek_thinking_trajectory"],
            },
            {
                "question": "1 + 1?",
                "solution": "2",
                "gemini_attempt": "\\boxed{2}",
                "gemini_thinking_trajectory": "well",
                "deepseek_attempt": None,
                "deepseek_thinking_trajectory": None,
            },
            id="s1K-1.1",
        ),
        pytest.param(
            {"question": "prompt", "answer": "reward_model.ground_truth", "responses": "completion"},
            {
                "prompt": [user("1 + 1?")],
                "reward_model": {"ground_truth": '["2"]', "style": "rule"},
                "completion": [assistant(SAID)],
            },
            id="DAPO, verl, TRL, Skywork-OR1",
        ),
        pytest.param(
            {"question": "0.value", "answer": "1.ground_truth.value", "responses": "said"},
            {
                "0": {"from": "human", "value": "1 + 1?"},
                "1": {"from": "assistant", "ground_truth": {"value": "2"}},
                "said": SAID,
            },
            id="Open-Reasoner-Zero",
        ),
        pytest.param(
            {"question": "conversations", "answer": "gold", "responses": "conversations", "system": "drop"}
            | {"think": ["<|begin_of_thought|>", "<|end_of_thought|>"]},
            {
                "system": "You are …",
                "conversations": [
                    {"from": "system", "value": "You are …"},
                    {"from": "user", "value": "1 + 1?"},
                    {"from": "gpt", "value": "<|begin_of_thought|>\nwell\n<|end_of_thought|>\n\n\\boxed{2}"},
                ],
                "gold": "2",
            },
            id="OpenThoughts, Bespoke-Stratos, Sky-T1",
        ),
        pytest.param("messages", {"messages": TURNS, "answer": 2}, id="messages"),
        pytest.param(
            CHAT | {"responses": "all"}, {"messages": TURNS, "answer": "2", "all": [TURNS]}, id="a list"
        ),
    ],
)
def test_the_shapes_of_public_data_sets_are_read(mapping: Any, columns: dict[str, Any]) -> None:
    assert record(columns, mapping) == Record(0, "1 + 1?", ["2"], [SAID], "")


@pytest.mark.parametrize(
    "turns",
    [
        [user("1 + 1?"), assistant("\\boxed{2}", reasoning_content="well")],
        [user("1 + 1?"), assistant("\\boxed{2}", reasoning="well", reasoning_content=None)],
        [user("1 + 1?"), assistant("\\boxed{2}", thinking="<think>well</think>")],
        [user("1 + 1?"), assistant(SAID, reasoning_content="well")],
        [user("1 + 1?", name=None), assistant(SAID, tool_calls=None)],
        [user([{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]), assistant([SAID])],
        [user("1 + 1?"), assistant([{"type": "thinking", "thinking": "well"}, {"type": "text", "text": "\\boxed{2}"}])],
        [{"role": "system", "content": " "}, *TURNS],
        [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": SAID}],
        [{"role": "<|user|>", "content": "1 + 1?"}, {"role": "Model", "text": SAID}],
        [{"role": "user", "content": "1 + 1?", "value": None}, {"role": "assistant", "content": None, "value": SAID}],
    ],
)  # fmt: skip
def test_chats_of_one_exchange_are_read_in_every_spelling(turns: Any) -> None:
    assert exchange(turns, "reject") == ("1 + 1?", SAID)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([*TURNS, user("and?")], ("multi_turn", "2 user turns")),
        ([*TURNS, assistant("\\boxed{2}")], ("multi_turn", "2 assistant turns")),
        ([user("1?"), assistant("I add."), {"role": "tool", "content": "1"}, assistant("1")], ("multi_turn", "a tool")),
        ([{"from": "human", "value": "1?"}, {"from": "observation", "value": "1"}], ("multi_turn", "a tool")),
        ([user("1?"), assistant("", tool_calls=[{"name": "add"}])], ("multi_turn", "a tool")),
        ([user("1?"), assistant([{"type": "tool_use", "name": "add"}])], ("multi_turn", "a tool")),
        (TURNS[::-1], ("multi_turn", "the assistant speaks before")),
        ([{"role": "developer", "content": "Add."}, *TURNS], ("system_turn", "in `mapping`, with `system: drop`")),
        ([{"role": "narrator", "content": "He thinks."}, *TURNS], ("bad_value", "role is 'narrator'")),
        ([user([{"type": "image_url", "image_url": "x"}]), *TURNS[1:]], ("bad_value", "a part of type 'image_url'")),
        ([*TURNS, "text"], ("bad_value", "found str in it")),
        ([user({"parts": []})], ("bad_value", "expected text as turn, found dict")),
        ("text", ("bad_value", "expected a chat, which is a list of turns, found text")),
        ([], ("bad_value", "expected a chat")),
        (None, ("empty_problem", "no question")),
    ],
)  # fmt: skip
def test_any_other_chat_is_dropped_with_the_reason(turns: Any, expected: tuple[str, str]) -> None:
    found, detail = reason({"messages": turns, "answer": "2"}, "messages")
    assert found == expected[0]
    assert expected[1] in detail


def test_a_system_prompt_in_a_column_of_its_own_is_not_lost_in_silence() -> None:
    columns = {"system": "Answer in French.", "messages": TURNS, "answer": "2"}
    assert reason(columns, "messages")[0] == "system_turn"
    assert isinstance(record(columns | {"system": math.nan}, "messages"), Record)
    assert isinstance(record(columns, CHAT | {"system": "drop"}), Record)


@pytest.mark.parametrize(
    "missing",
    [math.nan, Decimal("nan"), "nan", "NaN", "None", "null ", "N/A", "-", "proof", "notfound", ["nan"], '["None"]'],
)  # fmt: skip
def test_what_stands_for_a_missing_answer_is_no_gold(missing: Any) -> None:
    found, detail = reason({"q": "1?", "a": missing, "r": SAID})
    assert found == "no_answer"
    assert detail == "no gold answer" or "stands for a missing answer" in detail


def test_what_stands_for_a_missing_question_is_none() -> None:
    for missing in ("", " \n", None, math.nan):
        assert reason({"q": missing, "a": "1", "r": SAID})[0] == "empty_problem"


def test_beside_a_missing_answer_others_count_and_words_that_hold_one_are_answers() -> None:
    for given, expected in (
        (["nan", "2"], ["2"]),
        ("banana", ["banana"]),
        ("\\text{None of them}", ["\\text{None of them}"]),
        (5.0, ["5"]),
        (0.25, ["0.25"]),
        (Decimal("2.50"), ["2.50"]),
        (b"2", ["2"]),
        (1e300, ["1e+300"]),
    ):
        found = record({"q": "1?", "a": given, "r": SAID})
        assert isinstance(found, Record)
        assert found.answers == expected
    assert reason({"q": "1?", "r": "\\boxed{None}"}, {"question": "q", "responses": "r"})[0] == "no_answer"


@pytest.mark.parametrize(
    "bad", [True, {"a": "1"}, datetime(2020, 1, 1), math.inf, b"\xff", [["1"]], [None, False]]
)
@pytest.mark.parametrize("column", ["q", "a", "r"])
def test_a_bad_value_drops_its_row(column: str, bad: Any) -> None:
    found, detail = reason({"q": "1?", "a": "1", "r": SAID} | {column: bad})
    assert found == "bad_value"
    assert detail.startswith(("expected text as", "question:", "answer:", "response:"))


def test_missing_responses_are_none_and_empty_ones_are_counted_by_whoever_drops_them() -> None:
    for value, expected in (
        (None, []),
        (math.nan, []),
        ("", [""]),
        (["a", None, math.nan], ["a", "", ""]),
    ):
        found = record({"q": "1?", "a": "1", "r": value})
        assert isinstance(found, Record)
        assert found.responses == expected


def test_reasoning_of_another_number_than_the_responses_drops_the_row() -> None:
    columns: dict[str, Any] = {"q": "1?", "a": "1", "r": ["\\boxed{1}", "1"], "thinking": ["well", None]}
    found = record(columns, SPLIT)
    assert isinstance(found, Record)
    assert found.responses == ["<think>\nwell\n</think>\n\n\\boxed{1}", "1"]
    assert reason(columns | {"thinking": ["well"]}, SPLIT) == (
        "bad_value",
        "1 pieces of reasoning for 2 responses",
    )
    with pytest.raises(ValueError, match="`reasoning` needs one column for each of `responses`"):
        Mapping(question="q", responses=("r", "s"), reasoning="thinking")


def test_dotted_names_lead_into_objects_and_lists_but_a_column_of_that_name_comes_first() -> None:
    mapping = PLAIN | {"answer": "meta.gold"}
    for columns, expected in (
        ({"meta": {"gold": "1"}}, ["1"]),
        ({"meta.gold": "2", "meta": {"gold": "1"}}, ["2"]),
    ):
        found = record({"q": "1?", "r": SAID} | columns, mapping)
        assert isinstance(found, Record)
        assert found.answers == expected
    assert reason({"q": "1?", "r": SAID, "meta": None}, mapping)[0] == "no_answer"
    assert reason({"q": "1?", "r": SAID, "a": []}, PLAIN | {"answer": "a.3"})[0] == "no_answer"
    with pytest.raises(DataError, match=r"no column 'meta\.gold'; found \['q', 'r', 'meta'\]"):
        record({"q": "1?", "r": SAID, "meta": {"other": "1"}}, mapping)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ('["one", "two"]', "a list that became text"),
        ("['one', 'two']", "a list that became text"),
        (json.dumps(TURNS), "a list that became text"),
        ("<think>well\\n\\nso</think> \\boxed{1}", "escaped twice"),
        ("<think>well\n\n</think> \\\\boxed{1}", "escaped twice"),
        ("[THINK]well[/THINK] 1", "think: ['[THINK]', '[/THINK]']"),
        ("\\begin{cases} 1 \\\\ \\frac{1}{2} \\\\\\frac{1}{3}\\end{cases}\n\\neq [1]", ""),
        ("<think>[THINK]well[/THINK]</think> 1", ""),
    ],
)
def test_text_that_was_written_wrongly_is_read_and_told(response: str, expected: str) -> None:
    found = record({"q": "1?", "a": "1", "r": response})
    assert isinstance(found, Record)
    assert found.responses == [response]
    odd = oddities(found)
    assert len(odd) == bool(expected)
    assert expected in "".join(odd)


@pytest.mark.skipif(not CASES.exists(), reason="needs the project's shared cases")
@pytest.mark.parametrize(
    ("file", "mapping", "expected"),
    [
        ("nan_answer.jsonl", PLAIN, ["5", "no_answer"]),
        ("nan_answer.parquet", PLAIN, ["5", "no_answer"]),
        ("missing_as_words.jsonl", PLAIN, ["0", *["no_answer"] * 5]),
        ("sentinel_gold.parquet", "openr1", ["no_answer", "no_answer", "2"]),
        ("chat_tool_turn.jsonl", "messages", ["multi_turn"]),
        ("chat_thinking_key.jsonl", "messages", ["2", "3", "4"]),
        ("chat_parts.jsonl", "messages", ["5"]),
        (
            "nested_prompt_and_gold.parquet",
            {"question": "prompt", "answer": "reward_model.ground_truth"},
            ["9"],
        ),
        ("decimal_answer.parquet", PLAIN, ["2.50"]),
    ],
)
def test_inputs_that_were_misread_are_read_right(file: str, mapping: Any, expected: list[str]) -> None:
    source = Source.model_validate({"source": file, "mapping": mapping})
    purpose: Purpose = "rlvr" if file.startswith("nested") else "teacher"
    found = list(sources.read(source, Sources(folder=str(CASES)), purpose))
    assert [item.reason if isinstance(item, Reject) else item.answers[0] for item in found] == expected
    for item in found:
        if isinstance(item, Record) and purpose == "teacher":
            assert all("<think>" in text for text in item.responses)
