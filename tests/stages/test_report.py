"""The report on small but whole inputs: every file that the earlier stages leave, made up with known differences."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_inputs import ALL, CURVES, generations, make_inputs, run, selections

from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.report import markdown
from oxa.runtime import files as records


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("report"), rates={"base": 0.2, "oxa_full": 0.7, "sft_lp": 0.4})


@pytest.fixture(scope="module")
def summary(paths: dict[str, Path]) -> dict:
    return run(paths, lambda step, **values: None)


def test_summary_holds_every_arm_with_counts_intervals_tiers_and_differences(
    paths: dict[str, Path], summary: dict
) -> None:
    assert records.read_json(paths["summary"]) == json.loads(json.dumps(summary))
    assert summary["order"] == ["base", *ALL]
    for groups in summary["arms"].values():
        numbers = groups["world"]
        assert (numbers["num_problems"], numbers["num_samples"], numbers["num_seeds"]) == (80, 8, 1)
        for k in (1, 2, 4, 8):
            assert (
                0
                <= numbers[f"pass_at_{k}_low"]
                <= numbers[f"pass_at_{k}"]
                <= numbers[f"pass_at_{k}_high"]
                <= 1
            )
        assert set(numbers["tiers"]) == {"easy", "hard"}
        assert numbers["tiers"]["easy"]["num_problems"] == 40
    assert set(summary["differences"]) == {"base", "sft_lp", "oxa_mle", "oxa_full"}


def test_numbers_equal_those_counted_by_hand_from_the_generations(
    paths: dict[str, Path], summary: dict
) -> None:
    numbers = summary["arms"]["oxa_full"]["world"]
    rows = tables.read(paths["generations"] / "oxa_full-0.parquet", schemas.GENERATIONS).to_pylist()
    assert numbers["pass_at_1"] == pytest.approx(np.mean([row["verdict"] == "correct" for row in rows]))
    solved = {row["problem_id"] for row in rows if row["verdict"] == "correct"}
    assert numbers["pass_at_8"] == pytest.approx(len(solved) / 80)
    assert numbers["truncated"] == pytest.approx(np.mean([row["finish_reason"] == "length" for row in rows]))
    apart = tables.read(paths["entropies"] / "oxa_full-0.parquet", schemas.ENTROPIES).to_pylist()
    of_response = [row["entropy"] / row["num_tokens"] for row in apart]
    assert numbers["response_entropy"] == pytest.approx(np.mean(of_response))
    sums = [sum(row[name] for row in apart) for name in ("entropy", "num_tokens")]
    assert numbers["token_entropy"] == pytest.approx(sums[0] / sums[1])
    assert numbers["mean_tokens"] == pytest.approx(np.mean([row["num_tokens"] for row in rows]))
    hard = [row["verdict"] == "correct" for row in rows if row["tier"] == "hard"]
    assert numbers["tiers"]["hard"]["pass_at_1"] == pytest.approx(np.mean(hard))


def test_a_failed_gate_warns_in_the_table_and_on_the_page(
    paths: dict[str, Path], summary: dict, tmp_path: Path, log: Any
) -> None:
    assert "Beware" not in (paths["output"] / "table.md").read_text()
    assert 'class="warning"' not in (paths["output"] / "index.html").read_text()
    inputs = make_inputs(tmp_path)
    row = {"value": 0.541, "margin": 0.028, "low": 0.8, "high": 1.0, "passed": False}
    fine = {"value": 0.45, "margin": 0.02, "low": 0.2, "high": 0.65, "passed": True}
    gates = {"applies": True, "num_problems": 1200, "num_samples": 4, "temperature": 1.0}
    gates["gates"] = {
        "G1": {"passed": False, "rows": {"<b>columns</b>, forced: right": row}},
        "G3": {"passed": True, "rows": {"pass@1": fine}},
    }
    records.write_json(inputs["metrics"] / "evaluate" / "gates-world.json", gates)
    run(inputs, log)
    table = (inputs["output"] / "table.md").read_text()
    assert "Beware: the base fails G1 (competence) of the small world's gates" in table
    assert "54.1% ± 2.8" in table
    html = (inputs["output"] / "index.html").read_text()
    assert html.index("Beware: the base fails G1") < html.index('<p class="answer">')
    assert table.index("Beware") < table.index("Problems solved at the first try")
    assert "1,200 held-out problems, 4 samples each" in html
    assert "<b>columns" not in html
    records.write_json(
        inputs["metrics"] / "evaluate" / "gates-world.json", gates | {"gates": {"G3": gates["gates"]["G3"]}}
    )
    run(inputs, log)
    html = (inputs["output"] / "index.html").read_text()
    assert 'class="warning"' not in html
    assert "1,200 held-out problems" in html


def test_an_arm_that_was_trained_on_fewer_than_were_selected_is_refused(tmp_path: Path, log: Any) -> None:
    inputs = make_inputs(tmp_path, num_samples=1, num_steps=2)
    path = inputs["metrics"] / "train" / "sft_lp-0.json"
    records.write_json(path, records.read_json(path) | {"ce_rows": 70})
    with pytest.raises(DataError, match=r"sft_lp-0.json: sft_lp was trained on 70 of the 150 CE responses"):
        run(inputs, log)


@pytest.mark.parametrize("name", ["sft_lp-0", "sft-0-rl"])
def test_checkpoints_that_were_drawn_with_other_settings_are_refused(
    tmp_path: Path, log: Any, name: str
) -> None:
    inputs = make_inputs(tmp_path, num_samples=1, num_steps=2, rl_steps=(1, 2))
    drawn = {"engine": "torch", "temperature": 1.0, "max_tokens": 80, "made_by": [{"torch": "2.13.0"}]}
    for path in inputs["generations"].iterdir():
        note = drawn | {"made_by": [{"torch": "2.14.0"}]}  # another version draws from the same distribution
        if path.stem == name:
            note["temperature"] = 0.6
        keys = ["sampling.1", "sampling.2"] if name.endswith("rl") and path.stem == name else ["sampling"]
        note = {keys[-1]: note} | dict.fromkeys(keys[:-1], drawn)
        tables.write(path, tables.read(path, schemas.GENERATIONS), schemas.GENERATIONS, note)
    sentence = (
        rf"{name}( at step 2)? and base cannot be compared: drawn with temperature 0.6 and 1.0; evaluate"
    )
    with pytest.raises(DataError, match=sentence):
        run(inputs, log)


def test_differences_are_paired_by_problem(paths: dict[str, Path], summary: dict) -> None:
    difference = summary["differences"]["oxa_full"]["world"]["pass_at_1"]
    rates = []
    for name in ("oxa_full-0", "sft-0"):
        right: dict[str, list[bool]] = {}
        for row in tables.read(paths["generations"] / f"{name}.parquet", schemas.GENERATIONS).to_pylist():
            right.setdefault(row["problem_id"], []).append(row["verdict"] == "correct")
        rates.append(np.array([np.mean(right[problem]) for problem in sorted(right)]))
    assert difference["difference"] == pytest.approx((rates[0] - rates[1]).mean())
    assert difference["low"] < difference["difference"] < difference["high"]
    assert difference["difference"] > 0.15


def test_a_difference_inside_its_interval_is_not_called_a_gain(paths: dict[str, Path], summary: dict) -> None:
    assert summary["differences"]["oxa_full"]["world"]["pass_at_1"]["shown"] is True
    assert summary["differences"]["oxa_mle"]["world"]["pass_at_1"]["shown"] is False
    written = (paths["output"] / "table.md").read_text()
    lines = [line for line in written.splitlines() if line.startswith("| ")]
    mle, _ = [line for line in lines if line.startswith("| oxa_mle − sft ")]
    full, _ = [line for line in lines if line.startswith("| oxa_full − sft ")]
    assert "n.s." in mle.split("|")[2]
    assert "n.s." not in full.split("|")[2]
    assert summary["guess_rate"] == {"world": 1.8 / 100}
    guess = "always giving the most frequent answer solves 1.8%"
    assert f"## world: 80 problems, 8 samples a problem; {guess}\n" in written
    assert "no difference shown" in written
    assert "One fine-tuning seed" in written
    assert written == markdown.table(summary)
    assert written == markdown.table(records.read_json(paths["summary"]))  # whatever order JSON keeps
    assert [line.split()[1] for line in lines][1:6] == ["-" * 8, "base", "sft", "sft_lp", "oxa_mle"]


def contents(paths: dict[str, Path]) -> dict[str, bytes]:
    """What the report wrote, by file name."""
    files = [path for path in paths["output"].rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in [*files, paths["summary"]]}


@pytest.mark.whole
def test_a_second_run_gives_the_same_bytes_whatever_the_clock_said(
    paths: dict[str, Path], summary: dict, log: Any
) -> None:
    first = contents(paths)
    for journal in (paths["metrics"] / "train").glob("*.jsonl"):
        rows = [json.loads(line) for line in journal.read_text().splitlines()]
        for row in rows:
            row["time"] += 999
            row["value"] *= 2 if row["name"] == "tokens_per_second" else 1
        journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(paths, log) == summary
    assert contents(paths) == first
    assert set(first) == {
        "table.md",
        "ppl.png",
        "pass_at_k.png",
        "training.png",
        "funnel.png",
        "summary.json",
        "index.html",
        "pass_at_k.csv",
        *(f"{name}.csv" for name in CURVES if name != "tokens_per_second"),
    }
    assert all(value.startswith(b"\x89PNG") for name, value in first.items() if name.endswith(".png"))
    assert not any(b"matplotlib" in value for value in first.values())


def test_the_csv_files_hold_what_the_plots_show(paths: dict[str, Path], summary: dict) -> None:
    plots = paths["output"] / "plots"
    rows = list(csv.DictReader((plots / "pass_at_k.csv").open()))
    assert [row["k"] for row in rows] == ["1", "2", "4", "8"]
    shown = {name: float(rows[2][name]) for name in ALL}
    assert shown == {name: summary["arms"][name]["world"]["pass_at_4"] for name in ALL}
    rows = list(csv.DictReader((plots / "train" / "ce_loss.csv").open()))
    assert list(rows[0]) == ["step", *ALL]
    logged = [
        json.loads(line) for line in (paths["metrics"] / "train" / "sft-0.jsonl").read_text().splitlines()
    ]
    losses = {row["step"]: row["value"] for row in logged if row["name"] == "ce_loss"}
    assert {int(row["step"]): float(row["sft"]) for row in rows} == losses
    assert list(next(csv.DictReader((plots / "train" / "ul_loss.csv").open()))) == ["step", "oxa_full"]


def test_rl_is_drawn_from_its_journals_and_evaluated_along_its_steps(tmp_path: Path, log: Any) -> None:
    arms = {"sft": ALL["sft"]}
    paths = make_inputs(tmp_path, arms, benchmarks={"world": 10}, num_samples=2, rl_steps=(5, 8))
    summary = run(paths, log, list(arms))
    assert summary["order"] == ["base", "sft", "sft-rl"]
    steps = summary["steps"]["sft"]["world"]
    assert [row["step"] for row in steps] == [0, 5, 8]
    assert steps[0]["pass_at_1"] == summary["arms"]["sft"]["world"]["pass_at_1"]
    assert steps[-1]["pass_at_1"] == summary["arms"]["sft-rl"]["world"]["pass_at_1"]
    assert (paths["output"] / "rlvr.png").is_file()
    rows = list(csv.DictReader((paths["output"] / "plots" / "rlvr" / "reward.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert all(float(row["sft"]) > 0 for row in rows)


def test_rollouts_weights_far_from_1_are_warned_of_in_table_and_page(tmp_path: Path, log: Any) -> None:
    arms = {"sft": ALL["sft"]}
    paths = make_inputs(tmp_path, arms, benchmarks={"world": 10}, num_samples=2, rl_steps=(2,))
    warning = "mean weight of the rollouts is far from 1 for sft 0.60"
    for value, is_warned in ((0.98, False), (0.6, True)):
        for path in (paths["metrics"] / "rlvr").glob("sft-*.jsonl"):
            lines = [line for line in path.read_text().splitlines() if '"weight"' not in line]
            lines += [json.dumps({"step": step, "name": "weight", "value": value}) for step in (1, 2)]
            path.write_text("\n".join(lines) + "\n")
        summary = run(paths, log, list(arms))
        assert summary["weights"] == {"sft": pytest.approx(value)}
        for written in (markdown.table(summary), (paths["output"] / "index.html").read_text()):
            assert (warning in " ".join(written.split())) == is_warned


def test_an_arm_whose_rl_is_missing_is_named(tmp_path: Path, log: Any) -> None:
    arms = {name: ALL[name] for name in ("sft", "sft_lp")}
    paths = make_inputs(tmp_path, arms, benchmarks={"world": 10}, num_samples=2, rl_steps=(5,))
    (paths["generations"] / "sft_lp-0-rl.parquet").unlink()
    with pytest.raises(DataError, match=r"sft_lp-0-rl.parquet: no such file"):
        run(paths, log, list(arms))


def test_several_benchmarks_are_pooled_and_several_seeds_are_counted(tmp_path: Path, log: Any) -> None:
    arms = {name: ALL[name] for name in ("sft", "oxa_full")}
    paths = make_inputs(tmp_path, arms, (0, 3), benchmarks={"a": 20, "z": 30}, num_samples=4)
    summary = run(paths, log, list(arms), (0, 3))
    assert summary["groups"] == ["a", "z", "macro", "pooled"]
    for group, num_problems in (("a", 20), ("z", 30), ("macro", 50), ("pooled", 50)):
        numbers = summary["arms"]["sft"][group]
        assert (numbers["num_problems"], numbers["num_seeds"]) == (num_problems, 2)
        assert summary["arms"]["base"][group]["num_seeds"] == 1
        difference = summary["differences"]["base"][group]
        assert (difference["num_seeds"], difference["num_seeds_baseline"]) == (1, 2)
    pooled = summary["arms"]["sft"]["pooled"]["pass_at_2"]
    parts = [summary["arms"]["sft"][group]["pass_at_2"] for group in ("a", "z")]
    assert pooled == pytest.approx((20 * parts[0] + 30 * parts[1]) / 50)
    assert "One fine-tuning seed" not in markdown.table(summary)
    assert summary["guess_rate"] == {"a": 1.8 / 100, "z": 1.8 / 101}
    assert "## pooled: 50 problems, 4 samples a problem; each problem weighs the same\n" in markdown.table(
        summary
    )


def test_without_an_ul_arm_the_student_s_own_responses_are_not_needed(tmp_path: Path, log: Any) -> None:
    arms = {name: ALL[name] for name in ("sft", "oxa_mle")}
    paths = make_inputs(tmp_path, arms, benchmarks={"world": 10}, num_samples=2)
    (paths["scores"] / "self.parquet").unlink()
    (paths["metrics"] / "verify" / "self.json").unlink()
    run(paths, log, list(arms))
    assert (paths["output"] / "ppl.png").is_file()


def test_a_missing_file_is_named_and_nothing_is_written(tmp_path: Path, log: Any) -> None:
    paths = make_inputs(tmp_path)
    (paths["generations"] / "sft_lp-0.parquet").unlink()
    with pytest.raises(DataError, match=r"sft_lp-0.parquet: no such file; `dvc repro` makes it"):
        run(paths, log)
    assert not paths["summary"].exists()


def test_checkpoints_on_other_problems_are_not_compared(tmp_path: Path, log: Any) -> None:
    paths = make_inputs(tmp_path)
    draws = np.random.default_rng(0)
    tables.write(
        paths["generations"] / "sft_lp-0.parquet",
        generations(draws, {"world": 79}, 8, 0.4),
        schemas.GENERATIONS,
    )
    with pytest.raises(
        DataError, match="sft_lp and base cannot be compared: evaluated on 79 and 80 problems"
    ):
        run(paths, log)


def test_unknown_entropy_is_left_out_and_not_taken_for_zero(tmp_path: Path, log: Any) -> None:
    arms = {"sft": ALL["sft"]}
    paths = make_inputs(tmp_path, arms)
    tables.write(paths["entropies"] / "base.parquet", [], schemas.ENTROPIES)  # evaluate.entropy_samples: 0
    summary = run(paths, log, list(arms))
    for metric in ("response_entropy", "token_entropy"):
        assert summary["arms"]["base"]["world"][metric] is None
        assert metric not in summary["differences"]["base"]["world"]
    assert "| – " in markdown.table(summary)


def test_charts_draw_the_summary_s_numbers(summary: dict) -> None:
    from matplotlib.figure import Figure

    from oxa.report import plots

    axis = Figure().subplots()
    plots.pass_at_k(axis, summary, "world", summary["order"])
    drawn = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert set(drawn) == set(summary["order"])
    for arm, values in drawn.items():
        numbers = summary["arms"][arm]["world"]
        assert list(values) == [100 * numbers[f"pass_at_{k}"] for k in (1, 2, 4, 8)]

    arms = ["sft_lp", "oxa_mle", "oxa_full"]
    differences = [summary["differences"][arm]["world"]["pass_at_1"] for arm in arms]
    axis = Figure().subplots()
    plots.forest(
        axis, [plots.Row(arm, row) for arm, row in zip(arms, differences, strict=True)], 100, "points"
    )
    bars = [line for line in axis.lines if len(line.get_xdata()) == 2][:3]
    points = [line for line in axis.lines if line.get_marker() == "o"]
    for bar, point, row in zip(bars, points, differences, strict=True):
        assert list(bar.get_xdata()) == [100 * row["low"], 100 * row["high"]]
        assert list(point.get_xdata()) == [100 * row["difference"]]
        assert (point.get_markerfacecolor() != "#FFFFFF") is row["shown"]
    assert {row["shown"] for row in differences} == {True, False}


def test_an_arm_keeps_its_color_in_every_plot_and_no_two_share_one() -> None:
    from oxa.report import plots

    looks = [plots.look(list(ALL), arm) for arm in ALL]
    assert (
        len({entry["color"] for entry in looks})
        == len({str(entry["linestyle"]) for entry in looks})
        == len(ALL)
    )
    assert plots.look(list(ALL), "base")["color"] == plots.INK


def test_the_funnel_never_widens_and_names_every_loss(paths: dict[str, Path], log: Any) -> None:
    from oxa.report import funnel

    steps = funnel.teacher(paths["metrics"], selections(paths, list(ALL)))
    shared = [step.num_responses for step in steps if step.arm is None]
    assert shared == sorted(shared, reverse=True)
    assert shared[0] == 1040
    assert [step.arm for step in steps if step.arm] == list(ALL)
    assert "duplicate response 21" in steps[1].note
    assert [step.arm for step in funnel.own(paths["metrics"], selections(paths, list(ALL))) if step.arm] == [
        "oxa_full"
    ]


def test_every_loss_is_listed_with_its_reason(tmp_path: Path) -> None:
    from oxa.report import funnel

    paths = make_inputs(tmp_path)

    dropped = {"too_long": 7, "no_room": 0}
    records.write_json(paths["metrics"] / "rlvr" / "sft-0.json", {"dropped": dropped})
    described = records.read_json(paths["metrics"] / "selection" / "ce" / "sft.json")
    described["ce"]["funnel"]["fits"] -= 40
    records.write_json(paths["metrics"] / "selection" / "ce" / "sft.json", described)
    num_lost = {
        (loss.where, loss.reason): loss.num_lost
        for loss in funnel.losses(paths["metrics"], selections(paths, list(ALL)), [0])
    }
    assert num_lost["ingestion, teacher", "duplicate response"] == 21
    assert num_lost["ingestion, teacher", "too long"] == 1
    assert num_lost["CE set of sft", "verdict timeout"] == 1
    assert num_lost["UL set of oxa_full", "verdict unparsable"] == 100
    assert ("UL set of oxa_full", "verdict incorrect") not in num_lost
    assert num_lost["CE set of sft", "longer than training takes"] == 40
    assert num_lost["RL prompts of sft", "too long"] == 7
    assert ("RL prompts of sft", "no room") not in num_lost


def test_the_funnel_tells_what_the_warm_up_changed(paths: dict[str, Path], tmp_path: Path) -> None:
    from oxa.report import funnel

    metrics = Path(shutil.copytree(paths["metrics"], tmp_path / "metrics"))
    chosen = selections(paths, list(ALL))
    assert funnel.own(metrics, chosen)[0].note == ""
    answers = {"before": {"parsable": 0.0}, "after": {"parsable": 0.75}}
    (metrics / "warm_up.json").write_text(json.dumps({"training": {"ce_rows": 1200}, "probed": 64} | answers))
    assert funnel.own(metrics, chosen)[0].note == (
        "by the base after a warm-up on 1,200 solutions: 75% of its answers can be read, 0% before (64 answers)"
    )


def test_the_funnel_tells_what_the_scorer_cut(tmp_path: Path) -> None:
    from oxa.report import funnel

    arms = {"sft": ALL["sft"]}
    paths = make_inputs(tmp_path, arms)
    described = records.read_json(paths["metrics"] / "selection" / "ce" / "sft.json")
    described["ce"]["funnel"]["whole"] -= 30
    records.write_json(paths["metrics"] / "selection" / "ce" / "sft.json", described)
    (step,) = [
        step
        for step in funnel.teacher(paths["metrics"], selections(paths, ["sft"]))
        if "not cut" in step.name
    ]
    assert step.num_responses == described["ce"]["funnel"]["whole"]
    assert step.note == "−30 cut by the sampler's or the scorer's limit"
