from pathlib import Path

import pytest

from oxa import prompts
from oxa.model import loading


def test_prompt_and_response_are_tokenized_apart_and_verbatim(checkpoint: Path):
    tokenizer = loading.load_tokenizer(checkpoint)
    ids = prompts.prompt_ids(tokenizer, prompts.user_turn("1+1?", "\nThink."))
    assert tokenizer.decode(ids) == "<|user|>1+1?\nThink.<|assistant|>"
    text = "<think> two\n\n é </think> \\boxed{2}"
    assert tokenizer.decode(prompts.response_ids(tokenizer, text, end=False)) == text
    assert prompts.response_ids(tokenizer, text, end=True)[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ("<think>a</think> b", " b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("a</think>", ""),
        ("<think>a", None),
        ("", None),
    ],
)
def test_the_answer_follows_the_last_think_tag(text: str, tail: str | None):
    assert prompts.answer_part(text) == tail


def test_without_required_tags_the_whole_text_is_the_answer():
    assert prompts.answer_part("so 4", require_think=False) == "so 4"
    assert prompts.answer_part("<think>3</think>4", require_think=False) == "4"
