"""Scored responses to select from, as rows and as the tables of one origin."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from oxa.config.selection import SelectionShared
from oxa.records import schemas
from oxa.records import tables as records

MASK = 2**64 - 1


class Row(NamedTuple):
    """A response with all that the tables say about it; verdict or ppl None: not judged, not scored."""

    id: str
    problem: str
    ppl: float | None = 2.0
    num_tokens: int = 10
    verdict: str | None = "correct"
    finish: str = "stop"
    truncated: bool = False
    predicted: str | None = "1"
    train_tokens: int = 20
    measures: dict[str, float] = {}  # noqa: RUF012  what score.measures adds


CONTEXT = 32
"""Of the model that scored."""


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hashed(seed: int, text: str) -> int:
    raw = text.encode()
    state = mix(len(raw))
    for start in range(0, len(raw), 8):
        state = mix(state ^ int.from_bytes(raw[start : start + 8], "little"))
    return mix(state ^ mix(seed))


def reference_lowest(rows: Sequence[Row], num: int, cap: int, seed: int) -> list[str]:
    given_: Counter[str] = Counter()
    chosen = []
    for row in sorted(rows, key=lambda r: (r.ppl, hashed(seed, r.id))):
        if given_[row.problem] < cap and len(chosen) < num:
            given_[row.problem] += 1
            chosen.append(row.id)
    return chosen


def small(**changes: Any) -> SelectionShared:
    """Bins of half a ppl from 1 to 3: asks for little, so that a table of 40 can give it."""
    values = {"num_ce": 6, "mean": 2.0, "std": 0.5, "ppl_min": 1.0, "ppl_max": 3.0, "bin_width": 0.5}
    return SelectionShared(**{**values, **changes})


def write_tables(
    folder: Path,
    teacher: Sequence[Row],
    own: Sequence[Row],
    splits: dict[str, str] | None = None,
    apart: Sequence[str] = (),
    pass_rates: Sequence[dict[str, Any]] = (),
) -> dict[str, dict[str, Path]]:
    """Writes the nine tables; the path keywords of a selection's `run` by origin."""
    names = sorted({row.problem for row in (*teacher, *own)})
    records.write(
        folder / "problems.parquet",
        [
            {
                "problem_id": name,
                "source": "test",
                "question": f"what is {name}?",
                "answers": ["1"],
                "tier": "",
                "split": (splits or {}).get(name, "train"),
            }
            for name in names
        ],
        schemas.PROBLEMS,
    )
    records.write(folder / "apart.parquet", {"problem_id": list(apart)}, schemas.APART)
    paths = {}
    for prefix, responses_name, rows in (("teacher", "teacher", teacher), ("self", "self_responses", own)):
        paths[prefix] = {
            "problems": folder / "problems.parquet",
            "apart": folder / "apart.parquet",
            "responses": folder / f"{responses_name}.parquet",
            "verdicts": folder / f"{prefix}_verdicts.parquet",
            "scores": folder / f"{prefix}_scores.parquet",
        }
        records.write(
            paths[prefix]["responses"],
            [
                {
                    "response_id": row.id,
                    "problem_id": row.problem,
                    "origin": prefix,
                    "model": "m",
                    "sample_index": 0,
                    "seed": -1,
                    "text": f"<think>text of\n{row.id} ü</think> \\boxed{{1}}",
                    "num_tokens": -1,
                    "finish_reason": row.finish,
                    "mean_entropy": float("nan"),
                }
                for row in rows
            ],
            schemas.RESPONSES,
        )
        records.write(
            paths[prefix]["verdicts"],
            [
                {"response_id": r.id, "verdict": r.verdict, "predicted": r.predicted}
                for r in reversed(rows)
                if r.verdict
            ],
            schemas.VERDICTS,
        )
        records.write(
            paths[prefix]["scores"],
            [
                {
                    "response_id": row.id,
                    "scorer": "base",
                    "mean_nll": math.log(row.ppl),
                    "ppl": row.ppl,
                    "num_tokens": row.num_tokens,
                    "truncated": row.truncated,
                    "mean_entropy": 0.1,
                    "train_tokens": row.train_tokens,
                    **row.measures,
                }
                for row in sorted(rows, key=lambda row: row.num_tokens)
                if row.ppl is not None
            ],
            schemas.scores(next((row.measures for row in rows), {})),
            {schemas.CONTEXT: CONTEXT},
        )
    paths["teacher"]["pass_rates"] = folder / "pass_rates.parquet"
    records.write(paths["teacher"]["pass_rates"], pass_rates or [], schemas.PASS_RATES)
    return paths


def spread(num: int, verdict: str = "correct", prefix: str = "t") -> list[Row]:
    """Two responses a problem, ppl spread over [1, 3)."""
    return [
        Row(f"{prefix}{i:04d}", f"p{i // 2:03d}", 1 + 2 * ((i * 7919) % num) / num, 5 + i % 9, verdict)
        for i in range(num)
    ]
