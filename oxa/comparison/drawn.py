"""With which settings a table's generations were drawn, as its evaluation has kept them beside it.

Two checkpoints that answered at other temperatures or with other limits differ by these, whatever they were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oxa.records import tables

NOTE = "sampling"
VERSIONS = ("torch", "transformers", "vllm")
"""Of what generated: two of them give other samples of the same distribution."""

Settings = Mapping[str, str]
"""By name: the engine, and all of config.Sampling's and of the engine's own; empty where none were kept."""


def by_step(path: Path) -> dict[int | None, Settings]:
    """Of every step of RL that the table notes, in order; None: the only one that it holds."""
    kept: dict[int | None, Settings] = {}
    for key, value in tables.notes(path).items():
        name, _, step = key.partition(".")
        if name == NOTE:
            kept[int(step) if step else None] = _flat(value)
    return dict(sorted(kept.items(), key=lambda item: item[0] or 0))


def settings(path: Path, step: int | None = None) -> Settings:
    """Of this step, by default of the last one in the table."""
    kept = by_step(path)
    return kept.get(step) or (list(kept.values())[-1] if kept and (step is None or None in kept) else {})


def _flat(note: Mapping[str, Any]) -> Settings:
    """Where a run went on with another version, the values of both."""
    values: dict[str, list[str]] = {}
    made_by = note.get("made_by", [])
    for part in ({key: value for key, value in note.items() if key != "made_by"}, *made_by):
        for key, value in part.items():
            values.setdefault(key, []).append(value if isinstance(value, str) else json.dumps(value))
    return {key: " or ".join(dict.fromkeys(each)) for key, each in values.items()}


def differences(ours: Settings, theirs: Settings) -> list[str]:
    """`temperature 1.0 and 0.6`, for every setting that the two do not share."""
    if not ours or not theirs:
        return [] if ours == theirs else ["settings that are kept for one of them alone"]
    return [
        f"{name} {ours.get(name, 'none')} and {theirs.get(name, 'none')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def unlike(ours: Settings, theirs: Settings) -> str:
    """Why the difference between two checkpoints would not be the checkpoints' own; "" where it would."""
    found = [text for text in differences(ours, theirs) if text.split()[0] not in VERSIONS]
    return f"drawn with {', '.join(found)}" if found else ""
