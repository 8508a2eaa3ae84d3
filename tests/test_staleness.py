"""What a change makes stale: the stages that it touches, and no others. No stage runs here."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx
import pytest
import yaml
from dvc.repo import Repo
from pipelines import ROOT, make_repository

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with a stand-in for every output, and a dvc.lock that takes it for just made."""
    folder = make_repository(tmp_path_factory.mktemp("staleness") / "repository")
    with contextlib.chdir(folder), Repo() as repo:
        for out in repo.index.outs:
            path = Path(out.fs_path)
            (path if path.suffix else path / "file").parent.mkdir(parents=True, exist_ok=True)
            (path if path.suffix else path / "file").write_text(path.name)
        repo.commit(force=True)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Iterator[Path]:
    copy = Path(shutil.copytree(template, tmp_path / "copy", symlinks=True))
    with contextlib.chdir(copy):
        yield copy


def stale() -> set[str]:
    """Stages of which something that they depend on has changed, without those that follow from them."""
    with Repo() as repo:
        return set(repo.status())


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1))


def change(**sections: Any) -> None:
    """Replaces sections of params.yaml; None leaves one out."""
    params = yaml.safe_load(Path("params.yaml").read_text()) | sections
    Path("params.yaml").write_text(
        yaml.safe_dump({name: value for name, value in params.items() if value is not None})
    )


def stages() -> dict[str, set[str]]:
    """Every stage of the graph, with all that it waits for."""
    with Repo() as repo:
        graph = repo.index.graph
        return {
            stage.addressing: {one.addressing for one in networkx.descendants(graph, stage)}
            for stage in graph
        }


def test_nothing_is_stale_before_a_change(folder: Path) -> None:
    assert stale() == set()


def test_a_comment_in_the_reports_section_makes_the_report_stale_alone(folder: Path) -> None:
    edit("oxa/config/report.py", "    resamples:", "    # the paper says nothing of it\n    resamples:")
    assert stale() == {"report"}


def test_a_new_field_of_rlvr_leaves_training_as_it_is(folder: Path) -> None:
    edit("oxa/config/rlvr.py", "    top_p:", "    clip: Positive = 0.2\n    top_p:")
    assert stale() == {"rlvr@sft-0", "rlvr@oxa_full-0"}


def test_another_unlikelihood_set_leaves_every_ce_set_as_it_is(folder: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["selection"]["ul"]["oxa_full"]["num"] += 1
    change(selection=params["selection"])
    assert stale() == {"selection_ul@oxa_full"}


def test_an_arm_without_unlikelihood_waits_for_no_self_sample(folder: Path) -> None:
    own = {"sample", "verify@self", "score@self", "selection_ul@oxa_full"}
    waits = stages()
    assert own <= waits["train@oxa_full-0"]
    for stage in ("train@sft-0", "rlvr@sft-0", "evaluate_rlvr@sft-0"):
        assert not own & waits[stage]


def test_without_an_exam_or_a_ul_set_there_are_no_such_stages(folder: Path) -> None:
    assert "gates@world" in stages()
    params = yaml.safe_load(Path("params.yaml").read_text())
    del params["selection"]["ul"]
    change(gates=None, selection=params["selection"])
    assert not {name for name in stages() if name.startswith(("gates", "selection_ul"))}
    assert stale() == set()


def test_an_arm_of_two_passes_waits_for_the_first_and_is_trained_again_with_it(folder: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["selection"]["ce"]["third"] = params["selection"]["ce"]["sft_ul"] = "random"
    params["train"]["arms"] |= {"third": {}, "sft_ul": {}}
    params["train"]["after"] = {"third": "sft_ul", "sft_ul": "sft"}
    change(
        arms=[*params["arms"], "third", "sft_ul"], **{name: params[name] for name in ("selection", "train")}
    )
    before, new = stages(), {"third", "sft_ul"}
    assert "train@sft-0" in before["train@sft_ul-0"]
    assert {"train@sft-0", "train@sft_ul-0", "begin@sft_ul"} <= before["train@third-0"]
    assert "train@third-0" in before["rlvr@third-0"] & before["report"]
    assert not {"begin@third", "begin@sft_ul"} & before["train@oxa_full-0"]
    plain = stale()
    assert {name for name in plain if "train@" in name} == {f"train@{arm}-0" for arm in new}
    for arm in new:
        Path(f"data/train/{arm}/after.json").parent.mkdir(parents=True, exist_ok=True)
        Path(f"data/train/{arm}/after.json").write_text("{}")
        Path(f"data/trained/{arm}").mkdir(parents=True, exist_ok=True)
        Path(f"data/trained/{arm}/0.json").write_text("{}")
    with Repo() as repo:
        repo.commit("begin@sft_ul", force=True)
    assert "begin@sft_ul" not in stale()
    Path("data/trained/sft/0.json").write_text("of other weights")
    assert "begin@sft_ul" in stale()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_the_graph_of_every_preset_holds_what_it_names(folder: Path, preset: Path) -> None:
    shutil.copy(preset, "params.yaml")
    params = yaml.safe_load(preset.read_text())
    names = set(stages())
    assert {f"selection_ce@{arm}" for arm in params["arms"]} <= names
    assert {f"selection_ul@{arm}" for arm in params["selection"]["ul"]} <= names
    assert {name.partition("@")[2] for name in names if name.startswith("gates@")} == {
        *params.get("gates", {})
    }
