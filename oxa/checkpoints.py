"""Checkpoints that a run goes on from after a kill: which of those in a folder was written to its end."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

# Of several processes on CPUs each has a numbered device (`cpu:0`), which torch saves and cannot load
torch.serialization.register_package(
    5, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


def last_whole(folder: Path, may_remove: bool) -> str | None:
    """The newest checkpoint that was written to its end; half-written ones are removed."""
    found = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*")}
    for _, path in sorted(found.items(), reverse=True):
        if _is_whole(path):
            return str(path)
        if may_remove:
            shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether the file that the Trainer writes last is there and none is cut.

    safetensors checks its header against the file's size; a file of torch.save is a zip, whose index comes last. FSDP
    and DeepSpeed keep weights in folders.
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
    return has_weights and all(zipfile.is_zipfile(path) for path in checkpoint.glob("*.pt*"))
