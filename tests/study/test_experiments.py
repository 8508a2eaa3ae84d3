"""A study's file, and what it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from oxa.config.params import check_params
from oxa.errors import ConfigError
from oxa.study import experiments

ROOT = Path(__file__).resolve().parents[2]
STUDY: dict[str, Any] = {
    "worlds": [4, 5],
    "seeds": [0, 1],
    "set": {"train.shared.epochs": 1.0, "train.arms.new": {"num_ul": 0}},
    "experiments": {
        "first": {"set": {"arms": ["sft"]}},
        "second": {"set": {"arms": ["sft"], "train.shared.epochs": 2.0}, "stages": ["evaluate_rlvr"]},
    },
    "tables": {"one": {"rows": {"a": "first/sft", "b": "second/sft"}, "baseline": "a"}},
}

HYPOTHESIS = {"table": "one", "row": "b", "metric": "pass_at_1", "claim": "more are solved"}


@pytest.fixture
def raw() -> dict[str, Any]:
    path = ROOT / "presets" / "small-world-from-scratch.yaml"
    params: dict[str, Any] = yaml.safe_load(path.read_text())
    return params


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes))
    return path


def test_the_studys_own_file_asks_for_parameters_that_hold(raw: dict[str, Any]) -> None:
    study = experiments.load(ROOT / "docs" / "study.yaml")
    assert ROOT / study.params == ROOT / "presets" / "small-world-from-scratch.yaml"
    runs = experiments.runs(study)
    assert len(study.worlds) >= 10
    assert len({run.name for run in runs}) == len(runs) >= 20
    arms = {run.experiment: experiments.changed(raw, run.changes, run.name)["arms"] for run in runs}
    experiments.refuse_empty_rows(study, arms, "docs/study.yaml")
    for run in runs:
        params = check_params(experiments.changed(raw, run.changes, run.name), run.name)
        assert params.sources.world.seed == run.world == params.base.seed  # type: ignore[union-attr]


def test_every_experiment_runs_in_every_world_with_every_seed_over_the_studys_settings(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    own = STUDY["experiments"] | {"second": STUDY["experiments"]["second"] | {"seeds": [7]}}
    runs = experiments.runs(experiments.load(written(tmp_path, experiments=own)))
    names = ["first-4-0", "first-4-1", "second-4-7", "first-5-0", "first-5-1", "second-5-7"]
    assert [run.name for run in runs] == names
    second = experiments.changed(raw, runs[-1].changes, "s")
    assert second["sources"]["world"]["seed"] == 5
    assert second["seeds"] == [7]
    assert second["selection"]["shared"]["seed"] == 7, "what sft learns from is drawn anew"
    assert second["train"]["shared"]["epochs"] == 2.0  # the experiment's own comes last
    assert second["train"]["arms"]["new"] == {"num_ul": 0}
    assert second["train"]["arms"]["sft"] == raw["train"]["arms"]["sft"]
    assert raw["sources"]["world"]["seed"] == 106  # what it began with is left alone
    assert runs[0].stages == ["evaluate_base", "evaluate"]
    assert runs[2].stages == ["evaluate_rlvr"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"word": []}, "s.yaml: word: unknown key"),
        ({"worlds": []}, "s.yaml: worlds: .*at least 1 item"),
        ({"experiments": {"A b": {}}}, "s.yaml: experiments.A b"),
        (
            {"tables": {"t": {"rows": {"a": "third/sft"}, "baseline": "a"}}},
            "'third/sft' of tables.t.rows.a is no",
        ),
        (
            {"tables": {"t": {"rows": {"a": "first/sft"}, "baseline": "b"}}},
            "'b': the baseline, and what is compared, must be among the rows",
        ),
        (
            {"tables": {"t": {"rows": {"a": "first/sft"}}}},
            "a table takes a baseline or compare, one of the two",
        ),
        (
            {"tables": {"t": {"rows": {"a": "first/sft"}, "baseline": "a", "compare": {"a": "a"}}}},
            "a table takes a baseline or compare, one of the two",
        ),
        (
            {"tables": {"t": {"rows": {"a": "first/sft"}, "compare": {"a": "a"}}}},
            "a row is compared with itself",
        ),
        (
            {"tables": {"t": {"rows": {"a": "first/sft"}, "compare": {"a": "c"}}}},
            "'c': the baseline, and what is compared",
        ),
        ({"tables": {"t": {"rows": {"a-rl": "first/sft"}, "baseline": "a-rl"}}}, "must not end in -rl"),
        ({"tables": {"t": {"rows": {"base": "first/sft"}, "baseline": "base"}}}, "no row can be called base"),
        ({"worlds": [4, 4]}, "worlds: one of them is named twice"),
        ({"seeds": [1, 0, 1]}, "seeds: one of them is named twice"),
        (
            {"experiments": {"first": {"seeds": [1, 1]}}, "tables": {}},
            "first.seeds: one of them is named twice",
        ),
        ({"set": {"selection.shared.seed": 7}}, "set: selection.shared.seed is set by the study's"),
        ({"hypotheses": [HYPOTHESIS | {"table": "two"}]}, "hypotheses.0: no table is called 'two'"),
        ({"hypotheses": [HYPOTHESIS | {"row": "a"}]}, "hypotheses.0: one compares no row 'a' with another"),
        ({"hypotheses": [HYPOTHESIS | {"row": "b-rl"}]}, "hypotheses.0: one has no rows after RL"),
        ({"explained": {"ours": "x/sft", "theirs": "first/sft"}}, "explained: 'x/sft' is of no experiment"),
        ({"set": {"base.seed": 7}}, "set: base.seed is set by the study's worlds and seeds"),
        (
            {"experiments": STUDY["experiments"] | {"first": {"set": {"evaluate": {"temperature": 0.5}}}}},
            "tables.one: first and second do not have the same student, problems or evaluation",
        ),
        (
            {"experiments": STUDY["experiments"] | {"first": {"set": {"evaluate.temperature": 0.5}}}},
            "tables.one: first and second do not have the same student, problems or evaluation",
        ),
        ({"tables": {"t": {"rows": {"a": "sft"}, "baseline": "a"}}}, "s.yaml: tables.t.rows.a: .*pattern"),
    ],
)
def test_a_file_that_is_no_study_is_refused_with_the_keys_path(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        experiments.load(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train.shared.epoch": 1.0}, "here: train.shared.epoch: unknown key"),
        ({"arms": ["sft", "kto"]}, "arm 'kto' has no entry in selection.ce"),
        ({"arms.sft": 1}, "here: arms.sft: arms holds no keys in the params file"),
    ],
)
def test_changes_that_make_no_params_are_refused(
    raw: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        experiments.changed(raw, changes, "here")


def test_a_dict_is_merged_into_what_is_there_as_dvc_does(raw: dict[str, Any]) -> None:
    params = experiments.changed(raw, {"selection.ul": {"oxa_full": {"num": 7}}}, "s")
    assert params["selection"]["ul"] == {"oxa_full": raw["selection"]["ul"]["oxa_full"] | {"num": 7}}


def test_a_row_that_no_experiment_makes_is_refused(tmp_path: Path) -> None:
    study = experiments.load(written(tmp_path))
    experiments.refuse_empty_rows(study, {"first": ["sft"], "second": ["sft"]}, "s")
    with pytest.raises(
        ConfigError, match=r"s: tables\.one\.rows\.b: second has no arm 'sft'; known here: kto"
    ):
        experiments.refuse_empty_rows(study, {"first": ["sft"], "second": ["kto"]}, "s")
    table = {"rows": {"a": "second/sft", "b": "first/sft"}, "baseline": "a", "after_rl": True}
    study = experiments.load(written(tmp_path, tables={"one": table}))
    with pytest.raises(ConfigError, match="after_rl needs evaluate_rlvr among the stages of first"):
        experiments.refuse_empty_rows(study, {"first": ["sft"], "second": ["sft"]}, "s")


def test_results_do_not_depend_on_tracking_and_the_flow_and_do_on_all_else(raw: dict[str, Any]) -> None:
    other = experiments.changed(raw, {"tracking.enabled": False, "flow.max_workers": 7}, "s")
    assert experiments.same_results(raw, other)
    assert not experiments.same_results(raw, experiments.changed(raw, {"evaluate.seed": 9}, "s"))
    assert not experiments.same_results(raw, {name: raw[name] for name in raw if name != "gates"})
