"""`oxa world check`: every gate of the small world, measured on any student, without touching the project's results.

G1 to G4 are what the stage `gates` measures. For G5 the baseline, plain SFT, is trained on that student, goes on by RL
and is evaluated before and after, with every fine-tuning seed of the params file, by the stages' own functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows import start
from oxa import cli
from oxa.config.params import Params
from oxa.errors import ConfigError, DataError, tell
from oxa.runtime import guard


def check(params_path: Path, model: Path) -> bool:
    """Measures the gates, prints them; whether all are passed.

    Raises ConfigError where the parameters know no small world, DataError where the student is not usable.
    """
    from oxa.report import markdown, wording

    params = cli.load(params_path)
    if "world" not in params.gates:
        raise ConfigError(f"{params_path}: no section gates.world, which says how the student is examined")
    if "world" not in params.ingest.benchmarks:
        raise ConfigError(
            f"{params_path}: ingest.benchmarks: G5 needs the small world's, under the name `world`"
        )
    if not model.is_dir():
        raise DataError(f"{model}: no such folder; `oxa run base` makes the student")
    start.check_student(model, params)
    folder = guard.WORK / "world-check"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        measured = _gates(params, model, folder / "gates.parquet", Path(scratch))
        measured["gates"]["G5"] = _room(params, model, Path(scratch))
    print("\n".join(markdown.aligned(wording.GATE_TITLES, wording.gate_rows(measured))))
    print(
        f"{measured['num_problems']:,} held-out problems, temperature {measured['temperature']:g}; "
        f"the responses: {folder}"
    )
    warning = wording.gates(measured)
    print(warning or "All gates passed.")
    return not warning


def _gates(params: Params, model: Path, output: Path, scratch: Path) -> dict[str, Any]:
    from oxa.stages import gates

    tell("G1 to G4: the student answers, left alone and forced")
    return gates.run(
        params.gates["world"],
        params.sources.world,
        params.generate,
        params.prompt,
        params.verify,
        model=model,
        output=output,
        scratch=_folder(scratch, "gates"),
        log=_unlogged,
    )


def _room(params: Params, model: Path, scratch: Path) -> dict[str, Any]:
    """G5, means over the fine-tuning seeds."""
    from oxa.comparison import room
    from oxa.stages import rlvr, train

    arm, seeds = params.report.baseline, params.seeds
    problems, training_set = _training_set(params, arm, model, scratch)
    k = params.evaluate.num_samples_by_benchmark.get("world", params.evaluate.num_samples)
    before: list[Mapping[str, Any]] = []
    after: list[Mapping[str, Any]] = []
    for seed in seeds:
        tell(f"G5: {arm}, seed {seed}: fine-tuning, RL, and evaluation before and after")
        tuned, ended = scratch / f"{arm}-{seed}", scratch / f"{arm}-{seed}-rl"
        train.run(
            params.train.shared,
            params.train.arms[arm],
            model=model,
            data=training_set,
            output=tuned,
            scratch=_folder(scratch, f"train-{seed}"),
            seed=seed,
            log=_unlogged,
        )
        rlvr.run(
            params.rlvr,
            params.prompt,
            params.verify,
            model=tuned,
            problems=problems,
            output=ended,
            scratch=_folder(scratch, f"rlvr-{seed}"),
            seed=seed,
            log=_unlogged,
        )
        before.append(_evaluated(params, tuned, problems, scratch))
        last = max(ended.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        after.append(_evaluated(params, last, problems, scratch))
    return room.judge(
        arm,
        k,
        pass_at_1=_mean(before, "pass_at_1"),
        pass_at_k=_mean(before, f"pass_at_{k}"),
        after_rl=_mean(after, "pass_at_1"),
    )


def _training_set(params: Params, arm: str, model: Path, scratch: Path) -> tuple[Path, Path]:
    """The problems' table, and the folder with the arm's CE set."""
    from oxa.stages import ingest, score, selection_ce, verify

    tell(f"G5: {arm}: its training set")
    problems, responses, verdicts, scores = (
        scratch / f"{name}.parquet" for name in ("problems", "responses", "verdicts", "scores")
    )
    ingest.run(
        params.ingest,
        params.sources,
        params.verify,
        problems=problems,
        responses=responses,
        rejects=scratch / "rejects.parquet",
        contamination=scratch / "contamination.parquet",
        scratch=_folder(scratch, "ingest"),
        log=_unlogged,
    )
    verify.run(
        params.verify,
        problems=problems,
        responses=responses,
        output=verdicts,
        scratch=_folder(scratch, "verify"),
        log=_unlogged,
    )
    score.run(
        params.score,
        params.prompt,
        model=model,
        problems=problems,
        responses=responses,
        verdicts=verdicts,
        output=scores,
        scratch=_folder(scratch, "score"),
        log=_unlogged,
    )
    training_set = _folder(scratch, "training-set")
    selection_ce.run(
        params.selection.shared,
        params.selection.ce[arm],
        params.prompt,
        problems=problems,
        responses=responses,
        verdicts=verdicts,
        scores=scores,
        output=training_set / "ce.parquet",
        scratch=_folder(scratch, "selection"),
        log=_unlogged,
    )
    return problems, training_set


def _evaluated(params: Params, model: Path, problems: Path, scratch: Path) -> Mapping[str, Any]:
    from oxa.stages import evaluate

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        metrics = evaluate.run(
            params.evaluate,
            params.generate,
            params.prompt,
            params.verify,
            model=model,
            problems=problems,
            output=Path(folder) / "generations.parquet",
            scratch=_folder(Path(folder), "scratch"),
            log=_unlogged,
        )
    of_world: Mapping[str, Any] = metrics["benchmarks"]["world"]
    return of_world


def _mean(measured: list[Mapping[str, Any]], name: str) -> float:
    return sum(metrics[name] for metrics in measured) / len(measured)


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def _unlogged(step: int, **values: float) -> None:
    """No journal: what is measured is printed."""
