"""`oxa world check`: every gate of the small world, measured on any student, without touching the project's results.

G1 to G4 are what the stage `gates` measures. For G5 the baseline, plain SFT, is trained on that student, goes on by RL
and is evaluated before and after, with every fine-tuning seed of the params file, by the stages' own functions.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows import start
from oxa import cli
from oxa.config.params import Params
from oxa.errors import ConfigError, DataError, tell
from oxa.runtime import guard
from oxa.runtime.stages import STAGES

PASS_RATES = "pass_rates.parquet"


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
        bench = _Bench(params, Path(scratch))
        tell("G1 to G4: the student answers, left alone and forced")
        measured = bench.run("gates", {"model": model, "output": folder / "gates.parquet"}, exam="world")
        measured["gates"]["G5"] = _room(bench, model)
    print("\n".join(markdown.aligned(wording.GATE_TITLES, wording.gate_rows(measured))))
    print(
        f"{measured['num_problems']:,} held-out problems, temperature {measured['temperature']:g}; "
        f"the responses: {folder}"
    )
    warning = wording.gates(measured)
    print(warning or "All gates passed.")
    return not warning


class _Bench:
    """Runs stages in this process, each with its sections of the parameters and a scratch folder of its own."""

    def __init__(self, params: Params, folder: Path) -> None:
        self.params, self.folder = params, folder

    def run(
        self, name: str, paths: Mapping[str, Path], *, seed: int | None = None, arm: str = "", exam: str = ""
    ) -> Any:
        """What the stage returns; `paths` are its inputs and outputs, by option."""
        stage = STAGES[name]
        sections = cli.sections_of(self.params, stage, {"arm": arm, "exam": exam})
        extra = {} if seed is None else {"seed": seed}
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            run = importlib.import_module(stage.module).run
            return run(*sections, **paths, **extra, scratch=Path(scratch), log=_unlogged)

    def evaluated(self, model: Path, problems: Path) -> Mapping[str, Any]:
        """The checkpoint's metrics on the small world's benchmark."""
        written = {
            "output": self.folder / "generations.parquet",
            "entropies": self.folder / "entropies.parquet",
        }
        metrics = self.run("evaluate", {"model": model, "problems": problems} | written)
        of_world: Mapping[str, Any] = metrics["benchmarks"]["world"]
        return of_world


def _room(bench: _Bench, model: Path) -> dict[str, Any]:
    """G5, means over the fine-tuning seeds."""
    from oxa.comparison import room

    arm = bench.params.report.baseline
    problems, training_set = _training_set(bench, arm, model)
    before: list[Mapping[str, Any]] = []
    after: list[Mapping[str, Any]] = []
    for seed in bench.params.seeds:
        tell(f"G5: {arm}, seed {seed}: fine-tuning, RL, and evaluation before and after")
        tuned, ended = bench.folder / f"{arm}-{seed}", bench.folder / f"{arm}-{seed}-rl"
        bench.run("train", {"model": model, "data": training_set, "output": tuned}, arm=arm, seed=seed)
        given = {"model": tuned, "problems": problems, "pass_rates": bench.folder / PASS_RATES}
        bench.run("rlvr", given | {"output": ended}, arm=arm, seed=seed)
        before.append(bench.evaluated(tuned, problems))
        last = max(ended.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        after.append(bench.evaluated(last, problems))
    k = before[0]["num_samples"]
    return room.judge(
        arm,
        k,
        pass_at_1=_mean(before, "pass_at_1"),
        pass_at_k=_mean(before, f"pass_at_{k}"),
        after_rl=_mean(after, "pass_at_1"),
    )


def _training_set(bench: _Bench, arm: str, model: Path) -> tuple[Path, Path]:
    """The problems' table, and the folder with the arm's CE set."""
    tell(f"G5: {arm}: its training set")
    names = ("problems", "responses", "rejects", "contamination")
    written = {name: bench.folder / f"{name}.parquet" for name in names}
    bench.run("ingest", written)
    read = {name: written[name] for name in ("problems", "responses")}
    verdicts, scores = bench.folder / "verdicts.parquet", bench.folder / "scores.parquet"
    bench.run("verify", read | {"output": verdicts})
    read["verdicts"] = verdicts
    bench.run("score", read | {"model": model, "output": scores})
    read["apart"] = bench.folder / "apart.parquet"
    made = {"output": bench.folder / "sampler", "apart": read["apart"]}
    bench.run(
        "warm_up",
        {name: read[name] for name in ("problems", "responses", "verdicts")} | made | {"model": model},
    )
    training_set = bench.folder / "training-set"
    training_set.mkdir()
    pass_rates = bench.folder / PASS_RATES
    bench.run("pass_rate", {"model": model, "problems": read["problems"], "output": pass_rates})
    read |= {"scores": scores, "pass_rates": pass_rates, "output": training_set / "ce.parquet"}
    bench.run("selection_ce", read, arm=arm)
    return read["problems"], training_set


def _mean(measured: list[Mapping[str, Any]], name: str) -> float:
    return sum(metrics[name] for metrics in measured) / len(measured)


def _unlogged(step: int, **values: float) -> None:
    """No journal: what is measured is printed."""
