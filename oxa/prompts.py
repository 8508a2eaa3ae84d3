"""The text around a response: the user turn, the chat template, and where reasoning ends.

One definition for sampling, scoring, training and evaluation, so that all see the same tokens.

Control tokens, those that a tokenizer marks as special and those that the chat template writes round a message, come
from the template alone. Where a problem or a response spells one (`<|im_end|>`), it is read as the characters that it
is written in: data neither end a turn nor begin one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import Any

from oxa.errors import DataError

THINK, END_THINK = "<think>", "</think>"
PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ (message['role'] | capitalize) + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""A chat template that any model can have: roles as words, and no token but the tokenizer's own begin and end."""
AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True}
"""Options of a tokenizer that reads nothing as control."""
MARK = "\x01message\x01"  # stands for a message where it is asked what a template writes round it


def user_turn(question: str, suffix: str) -> str:
    """The user's message: the problem and the instruction."""
    return question + suffix


def prompt_ids(tokenizer: Any, user: str) -> list[int]:
    """Token ids up to where the response begins: the rendered user turn with the generation prompt."""
    rendered = _rendered(tokenizer, user)
    if not holds_control(tokenizer, user):
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    before, _, after = _rendered(tokenizer, MARK).partition(MARK)
    for message in (user, user.strip()):  # many templates strip it
        if rendered == before + message + after:
            ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after)]
            return [*ids[0], *text_ids(tokenizer, [message])[0], *ids[1]]
    raise DataError(
        f"a problem spells a control token, and the chat template does not show it as it is written: {user[:80]!r}; "
        "drop the problem, or take a template that keeps the user's message as it is"
    )


def text_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of texts in which nothing is control."""
    parts = [_parts(tokenizer, text) for text in texts]
    pieces = list(chain.from_iterable(parts))
    encoded = tokenizer(pieces, **AS_TEXT)["input_ids"] if pieces else []
    each = iter(encoded)
    return [list(chain.from_iterable(islice(each, len(part)))) for part in parts]


def text_ends(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """The same of one text, and where in it each token ends; the tokenizer must be a fast one."""
    ids: list[int] = []
    ends: list[int] = []
    start = 0
    for part in _parts(tokenizer, text):
        encoded = tokenizer(part, return_offsets_mapping=True, **AS_TEXT)
        ids += encoded["input_ids"]
        ends += [start + end for _, end in encoded["offset_mapping"]]
        start += len(part)
    return ids, ends


def holds_control(tokenizer: Any, text: str) -> bool:
    """Whether a text spells a control token."""
    return any(pattern and pattern.search(text) for pattern in _control(tokenizer))


def _parts(tokenizer: Any, text: str) -> list[str]:
    """The text, cut within the control tokens that AS_TEXT does not keep the tokenizer from reading."""
    _, unmarked = _control(tokenizer)
    cuts = [found.start() + 1 for found in unmarked.finditer(text)] if unmarked else []
    return [text[low:high] for low, high in pairwise([0, *cuts, len(text)])]


def _control(tokenizer: Any) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """What spells a control token that is marked as special, and one that is not; None where there are none."""
    return _control_of(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _control_of(tokenizer: Any, template: str) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    around = _rendered(tokenizer, MARK) if tokenizer.chat_template else ""
    special: list[str] = []
    unmarked: list[str] = []  # DeepSeek's roles, for one
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            special.append(token.content)
        elif token.content in around and token.content not in (THINK, END_THINK):
            unmarked.append(token.content)
    marked, others = (
        re.compile("|".join(map(re.escape, texts))) if texts else None for texts in (special, unmarked)
    )
    return marked, others


def opened_thought(tokenizer: Any, user: str) -> str:
    """A <think> that the template itself writes at the end of the prompt, with its white space; else "".

    Reasoning models' templates do (DeepSeek-R1-Distill's): what they generate lacks the opening tag.
    """
    text = _rendered(tokenizer, user)
    return text[text.rindex(THINK) :] if text.rstrip().endswith(THINK) else ""


def _rendered(tokenizer: Any, user: str) -> str:
    messages = [{"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def response_ids(tokenizer: Any, text: str, *, end: bool) -> list[int]:
    """Token ids of a response, verbatim; with `end`, the end-of-sequence token that closes it.

    Prompt and response are tokenised apart, so that sampling, scoring and training agree on the boundary.
    """
    (ids,) = text_ids(tokenizer, [text])
    return [*ids, tokenizer.eos_token_id] if end else ids


def answer_part(text: str, *, require_think: bool = True) -> str | None:
    """What follows the last </think>; without one, None, or the whole text if `require_think` is off."""
    _, tag, tail = text.rpartition(END_THINK)
    if tag:
        return tail
    return None if require_think else text
