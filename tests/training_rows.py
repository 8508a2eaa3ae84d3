"""A training set of a few rows, and the settings with which it takes six steps."""

from __future__ import annotations

from typing import Any

SHARED = {"learning_rate": 3e-3, "epochs": 2.0, "num_ce": 4, "micro_batch_size": 4, "checkpoint_every": 2}
"""2 passes over 12 CE rows: 6 steps."""


WITH_UL = {"num_ul": 4, "ul_weight": 0.5}


def row(index: int, objective: str, completion: str) -> dict[str, Any]:
    return {
        "response_id": f"{objective}{index}",
        "problem_id": f"p{index}",
        "prompt": f"What is {index} + {index}?",
        "completion": completion,
        "objective": objective,
        "ppl": 2.0,
        "num_tokens": len(completion),
        "finish_reason": "stop",
    }


ROWS = [row(i, "ce", f"<think>{'go ' * (i % 7)}</think>{2 * i}") for i in range(12)] + [
    row(i, "ul", f"<think>{'no ' * (i % 5 + 1)}</think>{2 * i + 1}") for i in range(8)
]
