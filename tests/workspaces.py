"""What the pipeline leaves in a project folder, as far as the registry looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flows.bridge import Locked
from oxa.records import schemas, tables
from oxa.runtime import guard

Lock = dict[str, Locked]


def generations(rates: Mapping[str, list[float]], *, num_samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of records.GENERATIONS; `rates`: by benchmark, each problem's chance of a right answer."""
    draws = np.random.default_rng(seed)
    return [
        {
            "benchmark": benchmark,
            "problem_id": f"{benchmark}{place:03d}",
            "tier": "",
            "step": 0,
            "sample_index": index,
            "text": "",
            "num_tokens": 5,
            "finish_reason": "stop",
            "verdict": "correct" if draws.random() < rate else "incorrect",
            "predicted": "",
        }
        for benchmark, problems in rates.items()
        for place, rate in enumerate(problems)
        for index in range(num_samples)
    ]


def write(path: str, text: str) -> str:
    """Writes a file under the current folder and returns its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def locked_step(deps: list[str], outs: list[str]) -> Locked:
    """A stage as it is recorded when it has read and written what lies here now."""
    return Locked(
        {path: guard.dvc_md5(Path(path)) for path in deps}, {path: guard.dvc_md5(Path(path)) for path in outs}
    )


def make_workspace(
    rates: Mapping[str, float],
    *,
    num_problems: int = 60,
    num_samples: int = 4,
    benchmarks: tuple[str, ...] = ("world",),
) -> Lock:
    """Writes, into the current folder, what the pipeline leaves and returns what dvc.lock would hold.

    `rates`: chance of a right answer by checkpoint (`base`, `sft-0`); its files hold nothing but its name and rate.
    """
    write("sources/tiny.jsonl", "{}\n")
    for module in ("base", "train", "evaluate"):
        write(f"oxa/stages/{module}.py", f"# {module}\n")
    write("models/base/config.json", "{}")
    write("data/problems.parquet", f"{num_problems} {benchmarks}")
    lock = {
        "base": locked_step(
            ["sources", "oxa/stages/base.py"], ["models/base", write("metrics/base.json", "{}")]
        ),
        "ingest": locked_step(["sources"], ["data/problems.parquet"]),
    }
    for place, (name, rate) in enumerate(rates.items()):
        table = Path(f"data/generations/{name}.parquet")
        chances = {benchmark: [rate] * num_problems for benchmark in benchmarks}
        tables.write(table, generations(chances, num_samples=num_samples, seed=place), schemas.GENERATIONS)
        apart = Path(f"data/entropies/{name}.parquet")
        tables.write(apart, [], schemas.ENTROPIES)
        if name == "base":
            stage, model = "evaluate_base", "models/base"
        else:
            arm, stage, model = name.split("-")[0], f"evaluate@{name}", f"models/{name}"
            data = write(f"data/train/{arm}.parquet", arm)
            lock[f"selection@{arm}"] = locked_step(["data/problems.parquet"], [data])
            write(f"{model}/config.json", "{}")
            write(f"{model}/model.safetensors", f"{name} {rate}")
            journal = write(f"metrics/train/{name}.jsonl", "")
            lock[f"train@{name}"] = locked_step(
                ["models/base", data, "oxa/stages/train.py"], [model, journal]
            )
        inputs = [model, "data/problems.parquet", "oxa/stages/evaluate.py"]
        lock[stage] = locked_step(inputs, [str(apart), str(table)])
    return lock
