"""Checkpoints that a run goes on from after a kill: where they lie, and which of them was written to its end."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from oxa.errors import ConfigError

# Of several processes on CPUs each has a numbered device (`cpu:0`), which torch saves and cannot load
torch.serialization.register_package(
    5, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


def folder(scratch: Path) -> Path:
    """Where this run's checkpoints lie: FSDP and DeepSpeed keep theirs in ways of their own, which no other reads."""
    kind = spread_by()
    return scratch / (f"checkpoints-{kind.lower()}" if kind else "checkpoints")


def spread_by() -> str | None:
    """What spreads the weights over processes: FSDP or DeepSpeed, as accelerate was launched; None of whole ones."""
    for kind in ("FSDP", "DeepSpeed"):
        if os.environ.get(f"ACCELERATE_USE_{kind.upper()}", "").lower() == "true":  # as accelerate sets it
            return kind
    return None


def train(trainer: Any, checkpoints: Path) -> None:
    """Trains on from the last whole checkpoint, if there is one."""
    refuse_parts(getattr(trainer.accelerator.state, "fsdp_plugin", None))
    trainer.train(resume_from_checkpoint=last_whole(checkpoints, trainer.is_world_process_zero()))


def refuse_parts(fsdp_plugin: Any) -> None:
    """Raises ConfigError where FSDP would leave each process's part of the weights and whole ones nowhere."""
    if fsdp_plugin is not None and "FULL" not in str(fsdp_plugin.state_dict_type):
        raise ConfigError(
            f"OXA_LAUNCH: with fsdp_state_dict_type {fsdp_plugin.state_dict_type.name} no model would be saved at the "
            "end; set it to FULL_STATE_DICT in accelerate's file, as presets/accelerate/fsdp.yaml does"
        )


def last_whole(folder: Path, may_remove: bool) -> str | None:
    """The newest checkpoint that was written to its end; half-written ones are removed."""
    checkpoints = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*")}
    for _, path in sorted(checkpoints.items(), reverse=True):
        if _is_whole(path):
            return str(path)
        if may_remove:
            shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether the file that the Trainer writes last is there and none is cut.

    safetensors checks its header against the file's size; a file of torch.save is a zip, whose index comes last.
    DeepSpeed keeps weights in folders.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        weights = list(checkpoint.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    has_weights = bool(weights) or any(path.is_dir() for path in checkpoint.iterdir())
    saved = [*checkpoint.glob("*.pt*"), *checkpoint.glob("*.bin")]  # the latter are FSDP's
    return has_weights and all(zipfile.is_zipfile(path) for path in saved)
