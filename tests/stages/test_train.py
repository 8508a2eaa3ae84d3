"""Arms of one pass and of two: what a training begins with, and what it leaves for one that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import training_sets
from safetensors.torch import load_file
from training_rows import ROWS, SHARED

from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.stages import begin, train


def run(folder: Path, name: str, model: Path, data: Path, log: Any, **arm: Any) -> dict[str, Any]:
    """The checkpoint is `models/NAME-3`, its word `trained/NAME/3.json`."""
    scratch, word = folder / "scratch" / name, folder / "trained" / name / "3.json"
    for path in (scratch, word.parent):
        path.mkdir(parents=True)
    given = {
        "output": folder / f"models/{name}-3",
        "trained": word,
        "scratch": scratch,
        "seed": 3,
        "log": log,
    }
    return train.run(FineTuning(**SHARED), TrainArm(**arm), model=model, data=data, **given)


def test_a_second_pass_goes_on_from_the_first_and_tells_what_both_have_seen(
    tmp_path: Path, checkpoint: Path, log: Any
) -> None:
    ce, both = (
        training_sets.write(tmp_path / "data" / name, rows)
        for name, rows in (("sft", ROWS[:12]), ("sft_ul", ROWS))
    )
    first = run(tmp_path, "sft", checkpoint, ce, log)
    assert "tokens_before" not in first
    place = {"scratch": tmp_path, "log": log}
    begin.run(trained=tmp_path / "trained/sft", output=both / "after.json", **place)
    word = json.loads((tmp_path / "trained/sft/3.json").read_text())
    assert json.loads((both / "after.json").read_text()) == {"arm": "sft", "runs": {"3": word}}
    arm = {"num_ul": 4, "ul_weight": 1.0}
    second = run(tmp_path, "sft_ul", tmp_path / "models/sft-3", both, log, **arm)
    assert second["tokens_before"] == first["tokens"] == word["tokens"]
    assert second["steps"] == first["steps"], "a budget of its own, as large as any arm's"
    after = json.loads((tmp_path / "trained/sft_ul/3.json").read_text())
    assert after["tokens"] == {kind: n + second["tokens"][kind] for kind, n in first["tokens"].items()}
    assert after["md5"] != word["md5"]
    alone = run(tmp_path, "alone", checkpoint, both, log, **arm)
    assert "tokens_before" not in alone, "a word that was left behind is not about the base"
    ends = [load_file(tmp_path / f"models/{name}-3/model.safetensors") for name in ("sft_ul", "alone")]
    assert any(not (ends[0][name] == ends[1][name]).all() for name in ends[0])
    run(tmp_path, "again", checkpoint, ce, log)
    same = json.loads((tmp_path / "trained/again/3.json").read_text())
    assert same == word, "of the same weights"
