"""What was logged along fine-tuning and RL: journals, averaged over seeds, as curves for pictures and `dvc plots`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oxa.errors import DataError
from oxa.report.plots import Curve
from oxa.runtime import files, journal

TRAINING = {
    "ce_loss": ("Cross-entropy of CE responses", "nats a token"),
    "ce_entropy": ("Entropy on CE responses", "nats a token"),
    "grad_norm": ("Gradient norm before clipping", "norm"),
    "ul_loss": ("Unlikelihood of UL responses", "nats a token"),
    "ul_entropy": ("Entropy on UL responses", "nats a token"),
    "ul_probability": ("Probability of UL tokens", "mean p"),
}
RLVR = {
    "reward": ("Reward", "share of rollouts"),
    "token_entropy": ("Token entropy of the rollouts", "nats a token, at their T"),
    "kl": ("KL to the arm's checkpoint", "nats a token (k3)"),
    "mean_tokens": ("Length of the rollouts", "tokens"),
    "truncated": ("Rollouts cut by length", "share of rollouts"),
    "all_right": ("Groups with every rollout right", "share of groups"),
    "all_wrong": ("Groups with every rollout wrong", "share of groups"),
    "replaced": ("Groups replaced by further problems", "groups"),
    "weight": ("Mean weight of the rollouts", "π / μ"),
    "weight_size": ("Effective share of the rollouts", "share"),
    "weight_cut": ("Weights that the bound cut", "share"),
    "grad_norm": ("Gradient norm before clipping", "norm"),
}

Curves = dict[str, dict[str, Curve]]
"""Curves by metric, then arm, of the metrics that some arm logged."""


def read(folder: Path, arms: Sequence[str], seeds: Sequence[int], names: Iterable[str]) -> Curves:
    """Means over seeds of what the journals in `folder` hold."""
    curves: Curves = {name: {} for name in names}
    for arm in arms:
        values: dict[str, dict[int, list[float]]] = {}
        for seed in seeds:
            path = folder / f"{arm}-{seed}.jsonl"
            if not path.is_file():
                raise DataError(f"{path}: no such file; `dvc repro` makes it")
            for row in journal.read(path):
                if row["name"] in curves:
                    values.setdefault(row["name"], {}).setdefault(row["step"], []).append(row["value"])
        for name, steps in values.items():
            order = sorted(steps)
            curves[name][arm] = np.array(order), np.array([np.mean(steps[step]) for step in order])
    return {name: by_arm for name, by_arm in curves.items() if by_arm}


def write(folder: Path, curves: Curves) -> None:
    """A CSV for every metric: step, and a column an arm, which is how `dvc plots` tells lines apart."""
    for name, arms in curves.items():
        rows: dict[int, dict[str, Any]] = {}
        for arm, (steps, values) in arms.items():
            for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                rows.setdefault(step, {"step": step})[arm] = value
        write_csv(folder / f"{name}.csv", ["step", *arms], [rows[step] for step in sorted(rows)])


def write_csv(path: Path, names: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Rows by column; what a row lacks stays empty."""
    with files.atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
