"""Tables of generations, as an evaluation writes them, with a known chance of a right answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oxa.records import schemas, tables


def write(
    path: Path,
    rate: float,
    *,
    seed: int = 0,
    benchmarks: Mapping[str, int] = {"world": 80},
    num_samples: int = 8,
    steps: tuple[int, ...] = (0,),
    entropy: float = 0.4,
    sampling: Mapping[str, Any] | None = None,
    **fixed: Any,
) -> Path:
    """Generations of a checkpoint that is right with this chance on the mean problem; `fixed` columns.

    Beside them, at `apart(path)`, the responses that entropy is measured on, two a problem, the second ten times as
    long as the first and `0.1 * entropy` lower in it.
    `sampling`: settings that are kept with them as an evaluation keeps its own.
    """
    draws, rows = np.random.default_rng(seed), []
    for step in steps:
        for benchmark, num_problems in benchmarks.items():
            ease = np.random.default_rng(7).uniform(-0.2, 0.2, num_problems)
            for place in range(num_problems):
                for index in range(num_samples):
                    right = draws.random() < rate + ease[place]
                    row = {
                        "benchmark": benchmark,
                        "problem_id": f"{benchmark}{place:03d}",
                        "tier": "hard" if place % 2 else "easy",
                        "step": step,
                        "sample_index": index,
                        "text": "",
                        "num_tokens": int(draws.integers(20, 60)),
                        "finish_reason": "length" if draws.random() < 0.1 else "stop",
                        "verdict": "correct" if right else "incorrect",
                        "predicted": "1" if right else str(draws.integers(2, 5)),
                    }
                    rows.append(row | fixed)
    noted = [f"sampling.{step}" for step in steps] if len(steps) > 1 else ["sampling"]
    tables.write(path, rows, schemas.GENERATIONS, dict.fromkeys(noted, sampling) if sampling else None)
    tables.write(apart(path), entropies(rows, entropy, seed), schemas.ENTROPIES)
    return path


def apart(path: Path) -> Path:
    """Where the entropies of these generations lie."""
    return path.parent / "entropies" / path.name


def entropies(generations: list[dict[str, Any]], entropy: float, seed: int) -> list[dict[str, Any]]:
    """Rows of records.ENTROPIES, two to every problem and step of these generations."""
    draws = np.random.default_rng([seed, 1])
    places = {(row["benchmark"], row["problem_id"], row["tier"], row["step"]) for row in generations}
    rows = []
    for place in sorted(places):
        for index, num_tokens in enumerate((10, 100)):
            each = entropy * (1 - 0.1 * index) + 0.05 * draws.standard_normal()
            row = dict(zip(("benchmark", "problem_id", "tier", "step"), place, strict=True))
            row |= {"sample_index": index, "text": "", "finish_reason": "stop"}
            rows.append(row | {"num_tokens": num_tokens, "entropy": each * num_tokens})
    return rows
