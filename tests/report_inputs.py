"""All that the report reads, small but whole, made up with known differences between the arms; and the report on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from generations import entropies

from oxa.config.fine_tuning import FineTuning
from oxa.config.prompt import Prompt
from oxa.config.report import Report
from oxa.config.selection import CeSet, SelectionShared, UnlikelihoodSet
from oxa.records import schemas, tables
from oxa.report import training_sets
from oxa.runtime import files as records
from oxa.stages import report, selection_ce, selection_ul

SECTION = Report(baseline="sft", resamples=300)


class Arm(NamedTuple):
    """Rule of its CE set, and its UL set where it has one."""

    ce: CeSet
    ul: UnlikelihoodSet | None = None


ALL = {
    "sft": Arm(CeSet(rule="random")),
    "sft_lp": Arm(CeSet(rule="lowest")),
    "oxa_mle": Arm(CeSet(rule="gaussian")),
    "oxa_full": Arm(CeSet(rule="gaussian"), UnlikelihoodSet(num=150, min_ppl=1.02)),
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
    "token_entropy",
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
    records.write_json(folder / "metrics" / "warm_up.json", {})
    of_rl = {"num_problems": 20, "pass_rate": 0.4875, "truncated": 0.1, "histogram": [5, 3, 4, 4, 4]}
    records.write_json(folder / "metrics" / "pass_rate.json", {"rlvr": of_rl})
    for origin, verdicts in (
        ("teacher", {"correct": 900, "incorrect": 80, "timeout": 1, "unparsable": 19}),
        ("self", {"correct": 400, "incorrect": 500, "unparsable": 100}),
    ):
        records.write_json(
            folder / "metrics" / "verify" / f"{origin}.json", {"responses": 1000, "verdicts": verdicts}
        )
    for name in ["base", *(f"{arm}-{seed}" for arm in arms for seed in seeds)]:
        rate = rates.get(name.split("-")[0], 0.4)
        write_answers(data, name, generations(draws, benchmarks, num_samples, rate))
    for arm, chosen in arms.items():
        parts = [name for name, of in (("ce", True), ("ul", chosen.ul)) if of]
        sets = {part: folder / "metrics" / "selection" / part / f"{arm}.json" for part in parts}
        counts = {f"{part}_rows": records.read_json(path)[part]["chosen"] for part, path in sets.items()}
        for seed in seeds:
            found = {"held_out_nll": 0.4, "kl_base_arm": 0.01 * len(arm), "kl_arm_base": None}
            records.write_json(folder / "metrics" / "predictors" / f"{arm}-{seed}.json", found)
            records.write_json(folder / "metrics" / "train" / f"{arm}-{seed}.json", counts)
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
                write_answers(data, f"{arm}-{seed}-rl", rows)
        tables.write(data / "traces" / f"{arm}.parquet", traces(arm, question), schemas.TRACES)
    return {
        "metrics": folder / "metrics",
        "scores": data / "scores",
        "train_sets": data / "train",
        "generations": data / "generations",
        "entropies": data / "entropies",
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
    tables.write(data / "apart.parquet", [], schemas.APART)
    paths: dict[str, dict[str, Path]] = {}
    for origin, right in (("teacher", "correct"), ("self", "incorrect")):
        ids = [f"{origin}{i:05d}" for i in range(num)]
        share = 0.9 if origin == "teacher" else 0.5
        verdict = np.where(draws.random(num) < share, right, "unparsable")
        scored = np.flatnonzero(verdict == right)
        ppl = 1 + draws.lognormal(-0.5 if origin == "teacher" else -2, 0.5, len(scored))
        paths[origin] = {
            "problems": data / "problems.parquet",
            "apart": data / "apart.parquet",
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
        columns |= {"train_tokens": [200] * len(scored)}
        tables.write(paths[origin]["scores"], columns, schemas.SCORES, {schemas.CONTEXT: 512})
    shared = SelectionShared(num_ce=150, mean=1.9, std=0.15, max_shortage=0.5)
    for arm, chosen in arms.items():
        for objective, origin, stage, rule in (
            ("ce", "teacher", selection_ce, chosen.ce),
            ("ul", "self", selection_ul, chosen.ul),
        ):
            if rule is None:
                continue
            beside = {"pass_rates": data / "pass_rates.parquet"} if objective == "ce" else {}
            described = stage.run(
                shared,
                rule,
                Prompt(suffix=""),
                FineTuning(),
                **paths[origin],
                **beside,
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
                    }
                )
    return rows


def write_answers(data: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """A checkpoint's generations, and the responses that its entropy is measured on."""
    tables.write(data / "generations" / f"{name}.parquet", rows, schemas.GENERATIONS)
    apart = entropies(rows, 0.2, seed=len(name))
    tables.write(data / "entropies" / f"{name}.parquet", apart, schemas.ENTROPIES)


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
