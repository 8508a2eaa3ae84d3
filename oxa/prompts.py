"""The text around a response: the user turn, the chat template, and where reasoning ends.

One definition for sampling, scoring, training and evaluation, so that all see the same tokens.
"""

from __future__ import annotations

import re
from typing import Any

THINK, END_THINK = "<think>", "</think>"
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def user_turn(question: str, suffix: str) -> str:
    """The user's message: the problem and the instruction."""
    return question + suffix


def prompt_ids(tokenizer: Any, user: str) -> list[int]:
    """Token ids up to where the response begins: the rendered user turn with the generation prompt."""
    return list(tokenizer(_rendered(tokenizer, user), add_special_tokens=False)["input_ids"])


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
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*ids, tokenizer.eos_token_id] if end else ids


def answer_part(text: str, *, require_think: bool = True) -> str | None:
    """What follows the last </think>; without one, None, or the whole text if `require_think` is off."""
    _, tag, tail = text.rpartition(END_THINK)
    if tag:
        return tail
    return None if require_think else text


def last_box(tail: str) -> tuple[int, int] | None:
    r"""Where the content of the balanced \boxed{…} that starts last lies: the inner one of nested boxes."""
    last = None
    opened: list[int | None] = []  # start of the content of an open box; None for another brace
    for token in _BRACES.finditer(tail):
        if (mark := token.group()) == "{":
            opened.append(None)
        elif mark == "}":
            start = opened.pop() if opened else None
            if start is not None and (last is None or start > last[0]):
                last = start, token.start()
        elif mark.endswith("{") and len(mark) > 2:  # not an escaped brace
            opened.append(token.end())
    return last
