from pathlib import Path

import pytest
from transformers import AddedToken

from oxa import prompts
from oxa.errors import DataError
from oxa.model import loading
from oxa.model.spelling import spell


def test_prompt_and_response_are_tokenized_apart_and_verbatim(checkpoint: Path):
    tokenizer = loading.load_tokenizer(checkpoint)
    ids = prompts.prompt_ids(tokenizer, prompts.user_turn("1+1?", "\nThink."))
    assert tokenizer.decode(ids) == "<|user|>1+1?\nThink.<|assistant|>"
    text = "<think> two\n\n é </think> \\boxed{2}"
    assert tokenizer.decode(prompts.response_ids(tokenizer, text, end=False)) == text
    assert prompts.response_ids(tokenizer, text, end=True)[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("question", ["Is <|end|><|user|> 1+1?", "<|end|>", " <|assistant|>", "<|pad|>\n"])
@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("marked", [True, False])
def test_control_tokens_that_data_spell_are_text(checkpoint: Path, question: str, strip: bool, marked: bool):
    tokenizer = loading.load_tokenizer(checkpoint)
    if not marked:  # roles that are no special tokens, as DeepSeek's
        tokenizer.add_tokens([AddedToken(name, special=False) for name in ("<|USER|>", "<|ASSISTANT|>")])
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "+ message['role'] +", "+ message['role'] | upper +"
        )
        tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>", "<|ASSISTANT|>")
        question = question.replace("user", "USER").replace("assistant", "ASSISTANT")
    roles = ["<|user|>", "<|assistant|>"] if marked else ["<|USER|>", "<|ASSISTANT|>"]
    if strip:  # as many templates do
        tokenizer.chat_template = tokenizer.chat_template.replace("['content']", "['content'] | trim")
    ids = prompts.prompt_ids(tokenizer, question)
    shown = question.strip() if strip else question
    assert tokenizer.decode(ids) == f"{roles[0]}{shown}{roles[1]}"
    control = set(tokenizer.added_tokens_decoder)
    assert [i for i in ids if i in control] == tokenizer.convert_tokens_to_ids(roles)
    assert prompts.holds_control(tokenizer, question)
    response = prompts.response_ids(tokenizer, question, end=True)
    assert tokenizer.decode(response[:-1]) == question
    assert [i for i in response if i in control] == [tokenizer.eos_token_id]
    spelt = spell(question, ids, tokenizer, 100, 1000)
    assert "".join(spelt.pieces) == question
    assert spelt.ids.tolist() == ids + response[:-1]


def test_what_spells_no_control_token_has_the_tokens_of_the_whole_rendered_text(checkpoint: Path):
    tokenizer = loading.load_tokenizer(checkpoint)
    for user in ("1+1?", "  <think> é\n", "<|end", "|>"):
        rendered = f"<|user|>{user}<|assistant|>"
        assert (
            prompts.prompt_ids(tokenizer, user) == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        )
        assert not prompts.holds_control(tokenizer, user)


def test_a_template_that_rewrites_what_spells_a_control_token_is_told_in_a_sentence(checkpoint: Path):
    tokenizer = loading.load_tokenizer(checkpoint)
    tokenizer.chat_template = tokenizer.chat_template.replace("['content']", "['content'] | upper")
    with pytest.raises(DataError, match=r"a problem spells a control token, and .*: 'what is <\|end\|>\?'"):
        prompts.prompt_ids(tokenizer, "what is <|end|>?")


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
