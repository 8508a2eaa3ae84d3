"""What params.yaml holds never reaches a shell, and placeholders are filled from DVC's name of the stage."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from pipelines import environment, make_repository

from oxa.runtime import launch


def test_placeholders_are_filled_from_the_stages_name(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "arm": "@arm",
        "seed": "@seed",
        "data": Path("data/@arm/x"),
        "output": Path("models/@key-rl"),
        "n": 3,
    }
    monkeypatch.setenv("DVC_STAGE", "train@oxa_full-12")
    assert launch.filled(options) == {
        "arm": "oxa_full",
        "seed": "12",
        "data": Path("data/oxa_full/x"),
        "output": Path("models/oxa_full-12-rl"),
        "n": 3,
    }
    monkeypatch.setenv("DVC_STAGE", "verify@self")
    assert launch.filled({"output": Path("data/@key.parquet")}) == {"output": Path("data/self.parquet")}
    for name in ("evaluate_base", "train@$(touch owned)-0"):
        monkeypatch.setenv("DVC_STAGE", name)
        assert launch.filled(options) == options
    monkeypatch.delenv("DVC_STAGE")
    assert launch.filled(options) == options


def test_what_an_arm_goes_on_from_is_filled_from_the_parameters() -> None:
    after = {"sft_ul": "sft", "third": "sft_ul"}

    def begun(arm: str) -> list[str]:
        options = {"model": Path("models/@start"), "trained": Path("data/@from"), "arm": arm, "seed": "7"}
        filled = launch.begun(options, after)
        assert (filled["arm"], filled["seed"]) == (arm, "7")
        return [str(filled["model"]), str(filled["trained"])]

    assert begun("sft") == ["models/base", "data"]
    assert begun("sft_ul") == ["models/sft-7", "data/sft"]
    assert begun("third") == ["models/sft_ul-7", "data/sft_ul"]
    assert launch.begun({"model": Path("models/@start"), "n": 3}, after) == {
        "model": Path("models/base"),
        "n": 3,
    }


HOSTILE = ["`touch owned`", "$(touch owned)", "it's; touch owned; '"]


@pytest.mark.whole
def test_no_name_in_params_is_obeyed_by_a_shell(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repository")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["arms"], params["seeds"] = HOSTILE, ["$(touch owned)"]
    for section in (params["selection"]["ce"], params["train"]["arms"]):
        section |= dict.fromkeys(HOSTILE, section["sft"])
    params["gates"]["$(touch owned)"] = params["gates"]["world"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    inputs = [
        "problems.parquet",
        "apart.parquet",
        "pass_rates.parquet",
        *(f"{name}/teacher.parquet" for name in ("responses", "verdicts", "scores")),
    ]
    paths = [*(f"data/{name}" for name in inputs), "models/base/file"]
    for arm in HOSTILE:
        paths += [f"data/train/{arm}/ce.parquet", f"models/{arm}-$(touch owned)/file"]
    for path in paths:  # stands for what the stages before have made
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    # train comes last: DVC removes a stage's outputs before its command, and these are what the others need
    done = subprocess.run(
        ["dvc", "repro", "--single-item", "--keep-going", "gates", "evaluate", "selection_ce", "train"],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.stdout.count("exited with 2") == 11, (
        done.stdout
    )  # each stage has begun, and refused the names
    assert not list(folder.rglob("owned"))
