"""The recipe of the shipped student, followed: what comes out of it passes the small world's gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oxa import cli

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "presets" / "small-world-from-scratch.yaml"


@pytest.mark.whole
def test_a_student_pretrained_by_the_recipe_passes_the_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    params = ["--params", str(RECIPE)]
    assert (
        cli.main(["base", *params, *_paths(output="student", metrics="base.json", journal="base.jsonl")]) == 0
    )
    made = _paths(model="student", output="answers.parquet", metrics="gates.json")
    assert cli.main(["gates", *params, "--exam", "world", *made]) == 0
    gates = json.loads((tmp_path / "gates.json").read_text())["gates"]
    rows = [(what, row) for gate in gates.values() for what, row in gate["rows"].items()]
    assert len(rows) == 11
    assert [(what, row) for what, row in rows if not row["passed"]] == []


def _paths(**options: str) -> list[str]:
    return [word for name, path in options.items() for word in (f"--{name}", path)]
