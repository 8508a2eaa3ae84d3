"""The data of the report's trace viewer (viewer.html, viewer.css, viewer.js), as one small JSON value.

    {"tokens": [text, …],
     "problems": [{"question", "answers"}, …],
     "responses": [{"problem", "origin", "verdict", "ppl", "num_tokens", "cut", "tokens", "before"}, …],
     "arms": [{"name", "examples": [{"objective", "response", "after", "beside": [{"response", "after"}, …]}, …]}, …]}

Nothing is stored twice: token texts, problems and responses are named by their place in their list, and a response's
log-probabilities under the base serve every arm. `before` and `after` hold -ln p in 1/100 nat, rounded; a ppl that
nobody measured is null.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa


def data(tables: dict[str, pa.Table]) -> dict[str, Any]:
    """The viewer's JSON from every arm's records.TRACES, arms and rows in their order."""
    tokens: dict[str, int] = {}
    problems: dict[str, int] = {}
    responses: dict[str, int] = {}
    lists: dict[str, list[dict[str, Any]]] = {"problems": [], "responses": [], "arms": []}
    for name, table in tables.items():
        examples: list[dict[str, Any]] = []
        for row in table.to_pylist():
            if row["problem_id"] not in problems:
                problems[row["problem_id"]] = len(problems)
                lists["problems"].append({key: row[key] for key in ("question", "answers")})
            if row["response_id"] not in responses:
                responses[row["response_id"]] = len(responses)
                lists["responses"].append(
                    {key: row[key] for key in ("origin", "verdict", "num_tokens", "cut")}
                    | {
                        "problem": problems[row["problem_id"]],
                        "ppl": round(row["ppl"], 4) if math.isfinite(row["ppl"]) else None,
                        "tokens": [tokens.setdefault(piece, len(tokens)) for piece in row["tokens"]],
                        "before": _hundredths(row["before"]),
                    }
                )
            shown = {"response": responses[row["response_id"]], "after": _hundredths(row["after"])}
            if row["role"] == "example":
                examples.append({"objective": row["objective"], "beside": []} | shown)
            else:
                examples[-1]["beside"].append(shown)
        lists["arms"].append({"name": name, "examples": examples})
    return {"tokens": list(tokens)} | lists


def _hundredths(log_probs: list[float]) -> list[int]:
    """-ln p in 1/100 nat."""
    return np.rint(np.asarray(log_probs) * -100).astype(int).tolist()
