"""Tables of problems and responses, as the verifier reads them."""

from __future__ import annotations

from pathlib import Path

from oxa.records import schemas, tables


def write_problems(path: Path, golds: dict[str, list[str]]) -> Path:
    rows = [
        {
            "problem_id": name,
            "source": "test",
            "question": name,
            "answers": answers,
            "tier": "",
            "split": "train",
        }
        for name, answers in golds.items()
    ]
    tables.write(path, rows, schemas.PROBLEMS)
    return path


def write_responses(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    """Rows of (problem_id, text, finish_reason)."""
    table = [
        {
            "response_id": f"r{i}",
            "problem_id": problem,
            "origin": "self",
            "model": "m",
            "sample_index": i,
            "seed": 0,
            "text": text,
            "num_tokens": len(text),
            "finish_reason": finish,
            "mean_entropy": 1.0,
        }
        for i, (problem, text, finish) in enumerate(rows)
    ]
    tables.write(path, table, schemas.RESPONSES)
    return path
