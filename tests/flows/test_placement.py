"""What a stage asks a scheduler for. That schedulers give it is tested on real ones: tests/whole/test_placement.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from pipelines import ROOT

from flows import placement
from oxa.config.operations import Needs, Placement
from oxa.errors import ConfigError

SETTINGS = Placement.model_validate(
    {
        "by": "slurm",
        "flags": ["--partition=long"],
        "needs": [
            {"stages": "*", "memory": 32, "hours": 0.5},
            {"stages": "train", "gpus": 8, "cpus": 64},
            {"stages": "train@sft-*", "gpus": 2},
            {"stages": "base", "where": "head"},
        ],
    }
)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in (placement.VARIABLE, "DVC_STAGE", "OXA_LAUNCH", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def test_of_every_key_the_last_entry_that_names_a_stage_counts() -> None:
    assert placement.needed("train@sft-0", loads_model=True, settings=SETTINGS) == Needs(
        stages="train@sft-0", memory=32, hours=0.5, gpus=2, cpus=64
    )
    assert placement.needed("train@oxa-0", loads_model=True, settings=SETTINGS).gpus == 8
    assert placement.needed("score@self", loads_model=True, settings=SETTINGS).gpus == 1
    assert placement.needed("ingest", loads_model=False, settings=SETTINGS).gpus == 0
    bare = Placement(gpus=False)
    assert placement.needed("score@self", loads_model=True, settings=bare).gpus == 0


def test_what_is_needed_is_asked_for_in_the_schedulers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = placement.needed("train@sft-0", loads_model=True, settings=SETTINGS)
    words = placement.way("train@sft-0", needs, SETTINGS)
    wanted = {
        "--gres=gpu:2",
        "--cpus-per-task=64",
        "--mem=32768M",
        "--time=30",
        "--nodes=1",
        "--partition=long",
    }
    assert words[0] == "srun"
    assert wanted < {*words}
    assert "--exact" not in words
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "--exact" in placement.way("train@sft-0", needs, SETTINGS)
    pytest.importorskip("ray")
    monkeypatch.setenv(placement.VARIABLE, "ray")
    words = placement.way("train@sft-0", needs, SETTINGS)
    assert words[:3] == [sys.executable, "-m", "flows.ray_task"]
    assert {*words[3:]} == {"--nodes=1", "--gpus=2", "--cpus=64", f"--memory={32 * 2**30}", "--"}


def test_a_stage_stays_here_by_hand_by_params_and_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.send("ingest", ["ingest"], SETTINGS) is None, "not under DVC"
    monkeypatch.setenv("DVC_STAGE", "base")
    assert placement.send("base", ["base"], SETTINGS) is None, "where: head"
    monkeypatch.setenv("DVC_STAGE", "ingest")
    assert placement.send("ingest", ["ingest"], Placement()) is None
    monkeypatch.setenv(placement.VARIABLE, "local")
    assert placement.send("ingest", ["ingest"], SETTINGS) is None


def test_what_cannot_be_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    several = SETTINGS.model_copy(update={"needs": [Needs(stages="train*", nodes=2)]})
    no_launcher = "train@sft-0 asks for 2 nodes, and OXA_LAUNCH is not set"
    with pytest.raises(ConfigError, match=no_launcher):
        placement.check(["ingest", "train@sft-0"], several)
    placement.check(["ingest", "train@sft-0"], several.model_copy(update={"by": "local"}))
    monkeypatch.setenv("DVC_STAGE", "train@sft-0")
    with pytest.raises(ConfigError, match=no_launcher):
        placement.send("train", ["train"], several)
    monkeypatch.setenv("OXA_LAUNCH", "torchrun")
    placement.check(["ingest", "train@sft-0"], several)
    everywhere = SETTINGS.model_copy(update={"needs": [Needs(stages="*", nodes=2)]})
    with pytest.raises(ConfigError, match="ingest asks for 2 nodes, which only "):
        placement.check(["train@sft-0", "ingest"], everywhere)
    monkeypatch.setenv("DVC_STAGE", "ingest")
    with pytest.raises(ConfigError, match="ingest asks for 2 nodes"):
        placement.send("ingest", ["ingest"], everywhere)
    at_the_head = Needs(stages="ingest", where="head")
    placement.check(["ingest"], everywhere.model_copy(update={"needs": [*everywhere.needs, at_the_head]}))
    misspelt = SETTINGS.model_copy(update={"needs": [Needs(stages="trian@*", gpus=8)]})
    with pytest.raises(ConfigError, match="names no stage; `dvc stage list`"):
        placement.check(["train@sft-0"], misspelt)
    monkeypatch.setenv(placement.VARIABLE, "lsf")
    with pytest.raises(ConfigError, match="OXA_PLACEMENT: expected local, slurm or ray, found 'lsf'"):
        placement.send("ingest", ["ingest"], SETTINGS)
