"""The report on small but whole inputs: every file that the earlier stages leave, made up with known differences."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from oxa.config.prompt import Prompt
from oxa.config.report import Report
from oxa.config.selection import CeRule, SelectionShared, UnlikelihoodSet
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.report import markdown, training_sets
from oxa.runtime import files as records
from oxa.stages import report, selection_ce, selection_ul

SECTION = Report(baseline="sft", resamples=300)


class Arm(NamedTuple):
    """Rule of its CE set, and its UL set where it has one."""

    ce: CeRule
    ul: UnlikelihoodSet | None = None


ALL = {
    "sft": Arm("random"),
    "sft_lp": Arm("lowest"),
    "oxa_mle": Arm("gaussian"),
    "oxa_full": Arm("gaussian", UnlikelihoodSet(num=150, min_ppl=1.02)),
}
CURVES = (
    "ce_loss",
    "ce_entropy",
    "grad_norm",
    "ul_loss",
    "ul_entropy",
    "ul_probability",
    "tokens_per_second",
)
RL_CURVES = (
    "reward",
    "entropy",
    "kl",
    "mean_tokens",
    "truncated",
    "all_right",
    "all_wrong",
    "grad_norm",
    "loss",
)


def make_inputs(
    folder: Path,
    arms: dict[str, Arm] = ALL,
    seeds: Sequence[int] = (0,),
    *,
    benchmarks: dict[str, int] = {"world": 80},  # noqa: B006  read only
    num_samples: int = 8,
    rates: dict[str, float] = {},  # noqa: B006  read only
    num_steps: int = 120,
    rl_steps: Sequence[int] = (),
    question: str = "2 + 3 =",
) -> dict[str, Path]:
    """Writes every input and returns the keywords of `report.run`; `rates`: chance of a right answer by arm.

    `rl_steps`: steps of RL that were evaluated; 0.05 more right answers each. None: no RL.
    """
    draws = np.random.default_rng(5)
    data = folder / "data"
    select(folder, arms, draws)
    totals = {
        "rows": 260,
        "problems": 250,
        "responses_read": 1040,
        "responses": 1000,
        "benchmark_problems": 80,
    }
    totals["dropped"] = {"contaminated": 4, "duplicate_response": 21, "too_long": 1, "empty": 2}
    exams = {name: {"guess_rate": 1.8 / (place + 100)} for place, name in enumerate(benchmarks)}
    records.write_json(folder / "metrics" / "ingest.json", {"totals": totals, "benchmarks": exams})
    for origin, verdicts in (
        ("teacher", {"correct": 900, "incorrect": 80, "timeout": 1, "unparsable": 19}),
        ("self", {"correct": 400, "incorrect": 500, "unparsable": 100}),
    ):
        records.write_json(
            folder / "metrics" / "verify" / f"{origin}.json", {"responses": 1000, "verdicts": verdicts}
        )
    for name in ["base", *(f"{arm}-{seed}" for arm in arms for seed in seeds)]:
        rate = rates.get(name.split("-")[0], 0.4)
        tables.write(
            data / "generations" / f"{name}.parquet",
            generations(draws, benchmarks, num_samples, rate),
            schemas.GENERATIONS,
        )
    for arm, chosen in arms.items():
        for seed in seeds:
            names = [name for name in CURVES if chosen.ul or not name.startswith("ul_")]
            write_journal(folder / "metrics" / "train" / f"{arm}-{seed}.jsonl", draws, names, num_steps)
            if rl_steps:
                write_journal(
                    folder / "metrics" / "rlvr" / f"{arm}-{seed}.jsonl", draws, RL_CURVES, rl_steps[-1]
                )
                rows = []
                for place, step in enumerate(rl_steps):
                    rate = min(0.5, rates.get(arm, 0.4) + 0.05 * (place + 1))
                    rows += generations(draws, benchmarks, num_samples, rate, step)
                tables.write(data / "generations" / f"{arm}-{seed}-rl.parquet", rows, schemas.GENERATIONS)
        tables.write(data / "traces" / f"{arm}.parquet", traces(arm, question), schemas.TRACES)
    return {
        "metrics": folder / "metrics",
        "scores": data / "scores",
        "train_sets": data / "train",
        "generations": data / "generations",
        "traces": data / "traces",
        "summary": folder / "metrics" / "summary.json",
        "output": folder / "reports",
        "scratch": folder,
    }


def select(folder: Path, arms: dict[str, Arm], draws: np.random.Generator) -> None:
    """Scored responses, four a problem, and the arms' sets as the stages of the selection make them."""
    data, num = folder / "data", 1000
    names = [f"p{i:04d}" for i in range(num // 4)]
    tables.write(
        data / "problems.parquet",
        [
            {
                "problem_id": name,
                "source": "t",
                "question": "q",
                "answers": ["1"],
                "tier": "",
                "split": "train",
            }
            for name in names
        ],
        schemas.PROBLEMS,
    )
    paths: dict[str, dict[str, Path]] = {}
    for origin, right in (("teacher", "correct"), ("self", "incorrect")):
        ids = [f"{origin}{i:05d}" for i in range(num)]
        share = 0.9 if origin == "teacher" else 0.5
        verdict = np.where(draws.random(num) < share, right, "unparsable")
        scored = np.flatnonzero(verdict == right)
        ppl = 1 + draws.lognormal(-0.5 if origin == "teacher" else -2, 0.5, len(scored))
        paths[origin] = {
            "problems": data / "problems.parquet",
            "responses": data / f"{origin}.parquet",
            "verdicts": data / f"{origin}_verdicts.parquet",
            "scores": data / "scores" / f"{origin}.parquet",
        }
        columns: dict[str, Any] = {"response_id": ids, "problem_id": [names[i // 4] for i in range(num)]}
        columns |= {
            "origin": [origin] * num,
            "model": ["m"] * num,
            "sample_index": [0] * num,
            "seed": [0] * num,
        }
        columns |= {
            "text": ["<think></think> 1"] * num,
            "num_tokens": [9] * num,
            "finish_reason": ["stop"] * num,
        }
        tables.write(paths[origin]["responses"], columns | {"mean_entropy": [0.1] * num}, schemas.RESPONSES)
        columns = {"response_id": ids, "verdict": verdict.tolist(), "predicted": [""] * num}
        tables.write(paths[origin]["verdicts"], columns, schemas.VERDICTS)
        columns = {
            "response_id": [ids[i] for i in scored],
            "scorer": ["base"] * len(scored),
            "mean_nll": np.log(ppl),
        }
        columns |= {"ppl": ppl, "num_tokens": draws.integers(40, 150, len(scored)).astype(np.int32)}
        columns |= {"truncated": [False] * len(scored), "mean_entropy": [0.1] * len(scored)}
        tables.write(paths[origin]["scores"], columns, schemas.SCORES)
    shared = SelectionShared(num_ce=150, mean=1.9, std=0.15, max_shortage=0.5)
    for arm, chosen in arms.items():
        for objective, origin, stage, rule in (
            ("ce", "teacher", selection_ce, chosen.ce),
            ("ul", "self", selection_ul, chosen.ul),
        ):
            if rule is None:
                continue
            described = stage.run(
                shared,
                rule,
                Prompt(suffix=""),
                **paths[origin],
                output=data / "train" / arm / f"{objective}.parquet",
                log=lambda step, **values: None,
                scratch=folder,
            )
            records.write_json(folder / "metrics" / "selection" / objective / f"{arm}.json", described)


def generations(
    draws: np.random.Generator, benchmarks: dict[str, int], num_samples: int, rate: float, step: int = 0
) -> list[dict[str, Any]]:
    rows = []
    for benchmark, num_problems in benchmarks.items():
        for i in range(num_problems):
            chance = rate * 2 * (i + 0.5) / num_problems  # the same problems are hard for every arm
            for sample in range(num_samples):
                right = draws.random() < chance
                rows.append(
                    {
                        "benchmark": benchmark,
                        "problem_id": f"{benchmark}{i:03d}",
                        "tier": "easy" if i % 2 else "hard",
                        "step": step,
                        "sample_index": sample,
                        "text": "",
                        "num_tokens": int(draws.integers(30, 160)),
                        "finish_reason": "length" if draws.random() < 0.1 else "stop",
                        "verdict": "correct" if right else "incorrect",
                        "predicted": "7" if right else str(draws.integers(3)),
                        "mean_entropy": float(draws.gamma(4, 0.05)),
                    }
                )
    return rows


def write_journal(path: Path, draws: np.random.Generator, names: Sequence[str], num_steps: int) -> None:
    rows = [
        {
            "step": step,
            "time": 1.7e9 + step,
            "name": name,
            "value": (0.2 + 0.5 * np.exp(-step / 30)) * draws.gamma(60, 1 / 60),
        }
        for step in range(1, num_steps + 1)
        for name in names
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def traces(arm: str, question: str) -> list[dict[str, Any]]:
    """One CE example and a response beside it."""
    shared = {
        "example_id": f"{arm}t",
        "problem_id": "p0",
        "question": question,
        "answers": ["5"],
        "cut": False,
    }
    shared |= {"num_tokens": 3, "tokens": ["2+3", " is", " 5"], "before": [-2.0, -0.5, -0.1]}
    return [
        shared
        | {"role": "example", "objective": "ce", "response_id": f"{arm}t", "origin": "teacher"}
        | {"verdict": "correct", "ppl": 1.3, "after": [-0.5, -0.4, -0.1]},
        shared
        | {"role": "beside", "objective": "", "response_id": f"{arm}s", "origin": "self"}
        | {"verdict": "incorrect", "ppl": float("nan"), "after": [-3.0, -0.6, -0.1]},
    ]


def run(
    paths: dict[str, Path], log: Any, arms: Sequence[str] = tuple(ALL), seeds: Sequence[int] = (0,)
) -> dict:
    """The exam and the UL sets are those that lie there."""
    exams = [path.stem.removeprefix("gates-") for path in paths["metrics"].glob("evaluate/gates-*.json")]
    return report.run(SECTION, list(arms), list(seeds), exams, suppressing(paths, arms), **paths, log=log)


def suppressing(paths: dict[str, Path], arms: Sequence[str]) -> list[str]:
    return [arm for arm in arms if (paths["metrics"] / "selection" / "ul" / f"{arm}.json").is_file()]


def selections(paths: dict[str, Path], arms: Sequence[str]) -> training_sets.Selections:
    return training_sets.selections(paths["metrics"], arms, suppressing(paths, arms))


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
    assert numbers["mean_entropy"] == pytest.approx(np.mean([row["mean_entropy"] for row in rows]), rel=1e-6)
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
    (mle,) = [line for line in lines if line.startswith("| oxa_mle − sft ")]
    (full,) = [line for line in lines if line.startswith("| oxa_full − sft ")]
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


def test_a_second_run_gives_the_same_bytes_whatever_the_clock_said(
    paths: dict[str, Path], summary: dict, log: Any
) -> None:
    first = contents(paths)
    for journal in (paths["metrics"] / "train").iterdir():
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
    assert summary["groups"] == ["a", "z", "pooled"]
    for group, num_problems in (("a", 20), ("z", 30), ("pooled", 50)):
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
    assert "## pooled: 50 problems, 4 samples a problem\n" in markdown.table(summary)


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
    rows = tables.read(paths["generations"] / "base.parquet", schemas.GENERATIONS).to_pylist()
    for row in rows:
        row["mean_entropy"] = float("nan")
    tables.write(paths["generations"] / "base.parquet", rows, schemas.GENERATIONS)
    summary = run(paths, log, list(arms))
    assert summary["arms"]["base"]["world"]["mean_entropy"] is None
    assert "mean_entropy" not in summary["differences"]["base"]["world"]
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


def test_every_loss_is_listed_with_its_reason(paths: dict[str, Path]) -> None:
    from oxa.report import funnel

    num_lost = {
        (loss.where, loss.reason): loss.num_lost
        for loss in funnel.losses(paths["metrics"], selections(paths, list(ALL)))
    }
    assert num_lost["ingestion, teacher", "duplicate response"] == 21
    assert num_lost["ingestion, teacher", "too long"] == 1
    assert num_lost["CE set of sft", "verdict timeout"] == 1
    assert num_lost["UL set of oxa_full", "verdict unparsable"] == 100
    assert ("UL set of oxa_full", "verdict incorrect") not in num_lost


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
