"""The comparison of the arms as files: summary.json, a Markdown table, pictures, CSV for `dvc plots`, and index.html.

Everything is read from the files of earlier stages; the numbers are those of oxa/comparison/arms.py.
An arm after RL is a checkpoint of its own, `ARM-rl`; where no arm has been through RL, or none was traced, those parts
are left out.

    summary.json          all numbers that the others show
    table.md              for a terminal
    index.html            the page (oxa/report/page.py), one file
    *.png                 pictures for MLflow (oxa/report/figures.py)
    plots/                CSV with a column an arm, for `dvc plots`: pass_at_k*.csv, and folders train, rlvr, along_rl
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oxa.comparison import drawn, outcomes, predictors, room
from oxa.comparison.arms import summarize
from oxa.comparison.measures import Summary, question
from oxa.comparison.outcomes import BASE, RL, Outcomes
from oxa.config.report import Report
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.report import markdown
from oxa.report.wording import with_answer
from oxa.runtime import files, journal

if TYPE_CHECKING:
    from oxa.report.curves import Curves


def run(
    section: Report,
    arms: list[str],
    seeds: list[int],
    exams: list[str],
    suppressing: list[str],
    *,
    metrics: Path,
    scores: Path,
    train_sets: Path,
    generations: Path,
    entropies: Path,
    traces: Path,
    summary: Path,
    output: Path,
    log: journal.Log,
    scratch: Path,
) -> dict[str, Any]:
    """Writes `summary` (JSON) and, into the folder `output`, everything else; returns the summary.

    `exams` are those that the base was measured by (gates), `suppressing` the arms with a UL set. Reads, under
    `metrics`, the stages' metrics and journals; under the other folders, their tables.
    `scratch` stays empty: a rerun takes seconds.
    """
    from oxa.report import curves, figures, funnel, page, training_sets, viewer

    selections = training_sets.selections(metrics, arms, suppressing)
    training_sets.check_trained(metrics, selections, seeds)
    numbers = _summary(section, arms, seeds, metrics=metrics, generations=generations, entropies=entropies)
    numbers["gates"] = _gates(metrics, exams, numbers)
    numbers["predictors"] = predictors.summarize(
        numbers,
        {
            arm: predictors.means(
                [files.read_json(metrics / "predictors" / f"{arm}-{seed}.json") for seed in seeds]
            )
            for arm in arms
        },
        resamples=section.resamples,
        seed=section.seed,
    )
    numbers["selection"] = {arm: _selection(selection) for arm, selection in selections.items()}
    sides = funnel.sides(metrics, selections)
    panels = training_sets.panels(selections, scores=scores, train_sets=train_sets)
    training = curves.read(metrics / "train", arms, seeds, curves.TRAINING)
    rlvr = curves.read(metrics / "rlvr", arms, seeds, curves.RLVR) if numbers["steps"] else {}
    numbers["weights"] = {arm: float(values.mean()) for arm, (_, values) in rlvr.get("weight", {}).items()}
    traced = _traces(traces, arms)

    output.mkdir(parents=True, exist_ok=True)
    figures.ppl(output / "ppl.png", arms, panels)
    figures.pass_at_k(output / "pass_at_k.png", numbers)
    figures.training(output / "training.png", arms, training)
    figures.funnel(output / "funnel.png", arms, sides)
    if rlvr:
        figures.rlvr(output / "rlvr.png", arms, rlvr)
    curves.write(output / "plots" / "train", training)
    curves.write(output / "plots" / "rlvr", rlvr)
    for name, ending in (("pass_at_k", ""), ("pass_at_k_after_rl", RL)):
        if rows := _pass_at_k(numbers, arms, ending):
            curves.write_csv(output / "plots" / f"{name}.csv", ["k", *arms], rows)
    if numbers["steps"]:
        curves.write(output / "plots" / "along_rl", _along_rl(numbers))
    with files.atomic(output / "table.md") as temporary:
        temporary.write_text(markdown.table(numbers), encoding="utf-8")
    files.write_json(summary, numbers)
    html = page.render(
        numbers,
        _made(section, arms, seeds, summary),
        sides=sides,
        losses=funnel.losses(metrics, selections, seeds),
        panels=panels,
        origins=_origins(scores),
        training=training,
        rlvr=rlvr,
        traces=viewer.data(traced) if traced else None,
        pass_rates=files.read_json(metrics / "pass_rate.json"),
    )
    with files.atomic(output / "index.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return numbers


def _summary(
    section: Report,
    arms: list[str],
    seeds: list[int],
    *,
    metrics: Path,
    generations: Path,
    entropies: Path,
) -> dict[str, Any]:
    def read(name: str) -> Outcomes:
        return outcomes.outcomes(generations / name, entropies=entropies / name)

    results = {BASE: [read(f"{BASE}.parquet")]}
    for arm in arms:
        results[arm] = [read(f"{arm}-{seed}.parquet") for seed in seeds]
    after = {arm: [f"{arm}-{seed}{RL}.parquet" for seed in seeds] for arm in arms}
    along: dict[str, list[dict[int, Outcomes]]] = {}
    if any((generations / name).is_file() for names in after.values() for name in names):
        along = {
            arm: [outcomes.along_rl(generations / name, entropies=entropies / name) for name in names]
            for arm, names in after.items()
        }
        for arm, runs in along.items():
            results[f"{arm}{RL}"] = [run[max(run)] for run in runs]
    _check_drawn_alike(generations, [BASE, *(f"{arm}-{seed}" for arm in arms for seed in seeds)])
    numbers = with_answer(summarize(section, results, along))
    benchmarks = files.read_json(metrics / "ingest.json")["benchmarks"]
    numbers["guess_rate"] = {
        name: benchmarks[name]["guess_rate"] for name in numbers["groups"] if name in benchmarks
    }
    return numbers


def _check_drawn_alike(generations: Path, names: Sequence[str]) -> None:
    """DataError where the answers of two checkpoints, or of steps of RL, were drawn with other settings."""
    first = drawn.settings(generations / f"{BASE}.parquet")
    for name in (f"{name}{ending}" for name in names for ending in ("", RL)):
        path = generations / f"{name}.parquet"
        for step, settings in (drawn.by_step(path) if path.is_file() else {}).items():
            if why := drawn.unlike(settings, first):
                of_step = f" at step {step}" if step else ""
                raise DataError(
                    f"{name}{of_step} and {BASE} cannot be compared: {why}; evaluate both again with dvc repro"
                )


def _gates(metrics: Path, exams: Sequence[str], numbers: Summary) -> dict[str, Any]:
    """What the stage `gates` measured of the base and, where the benchmark of that name is there, G5."""
    for exam in exams:  # there is one at most
        measured: dict[str, Any] = files.read_json(metrics / "evaluate" / f"gates-{exam}.json")
        arm, arms = numbers["baseline"], numbers["arms"]
        if exam in numbers["groups"] and f"{arm}{RL}" in arms:
            before, after = arms[arm][exam], arms[f"{arm}{RL}"][exam]
            k = before["num_samples"]
            measured["gates"]["G5"] = room.judge(
                arm, k, before["pass_at_1"], before[f"pass_at_{k}"], after["pass_at_1"]
            )
        return measured
    return {"applies": False}


def _selection(described: dict[str, Any]) -> dict[str, Any]:
    sets = {name: described[name] for name in ("ce", "ul") if name in described}
    keys = ("chosen", "eligible", "problems", "ppl_mean", "mean_tokens")
    return {name: {key: part[key] for key in keys} for name, part in sets.items()} | {
        "shortage": described["shortage"]
    }


def _traces(folder: Path, arms: Sequence[str]) -> dict[str, Any]:
    """The traced responses by arm; nothing where no arm was traced."""
    if not folder.is_dir():
        return {}
    return {arm: tables.read(folder / f"{arm}.parquet", schemas.TRACES) for arm in arms}


def _origins(scores: Path) -> dict[str, Any]:
    """ppl of everything that was scored, by origin; the student's own only where an arm needed it."""
    from oxa.report import training_sets

    names = {"teacher": "ce", "self": "ul"}
    return {
        origin: training_sets.scored(scores, objective)["ppl"].to_numpy()
        for origin, objective in names.items()
        if origin == "teacher" or (scores / f"{origin}.parquet").is_file()
    }


def _pass_at_k(summary: dict[str, Any], arms: Sequence[str], ending: str) -> list[dict[str, Any]]:
    """A row for each k: pass@k over all benchmarks, by arm; of a phase that there was."""
    from oxa.report import plots

    group = summary["groups"][-1]
    if arms[0] + ending not in summary["arms"]:
        return []
    return [
        {"k": k, **{arm: summary["arms"][arm + ending][group][f"pass_at_{k}"] for arm in arms}}
        for k in plots.k_values(summary, group)
    ]


def _along_rl(summary: dict[str, Any]) -> Curves:
    """pass@1, pass@n and the two entropies over all benchmarks at the evaluated steps of RL."""
    group = summary["groups"][-1]
    curves: Curves = {}
    for arm, steps in summary["steps"].items():
        rows = steps[group]
        for metric in question(rows[0]["num_samples"]):
            measured = [row for row in rows if row[metric.name] is not None]
            curves.setdefault(metric.name, {})[arm] = (
                np.array([row["step"] for row in measured]),
                np.array([row[metric.name] for row in measured]),
            )
    return curves


def _made(section: Report, arms: Sequence[str], seeds: Sequence[int], summary: Path) -> dict[str, str]:
    """What the page says of its own making; nothing that differs between two runs on the same inputs."""
    return {
        "Arms": ", ".join(arms),
        "Fine-tuning seeds": ", ".join(map(str, seeds)),
        "Baseline": section.baseline,
        "Intervals": f"{section.confidence:.0%}, at least {section.resamples:,} resamples, seed {section.seed}",
        "summary.json": f"sha256 {hashlib.sha256(summary.read_bytes()).hexdigest()}",
        "Every setting": "params.yaml, explained in oxa/config/; dvc.lock holds the hash of every input and output",
    }
