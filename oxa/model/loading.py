"""A checkpoint from a folder or the hub: model, tokenizer, end tokens.

Safetensors alone, and no code of the checkpoint's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oxa.errors import DataError


def default_device() -> torch.device:
    """This process's GPU, of as many as there are on its machine, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place = int(os.environ.get("LOCAL_RANK", "0"))  # as torchrun and accelerate set it
    device = torch.device("cuda", place % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    revision: str | None = None,
    quantization: Any = None,
) -> tuple[Any, Any]:
    """Loads (model, tokenizer) from a checkpoint folder or a hub id, in eval mode.

    `dtype` is float32 on a CPU and bfloat16 on CUDA unless named; on the device `meta` no weight is read.
    `quantization`: transformers' quantization_config, by which the weights are rounded on their way to the device.

    Raises DataError where there is no checkpoint, no safetensors weights, no tokenizer, a weight is missing, of another
    shape (transformers would draw it at random) or of a layer that the model does not have, a package that reads
    quantised weights is missing, or the checkpoint wants to run code of its own.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    device = device or default_device()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    tokenizer = load_tokenizer(path, revision=revision)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            revision=revision or "main",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **({"device_map": device} if device.type == "meta" or quantization else {}),
            **({"quantization_config": quantization} if quantization else {}),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: no usable model: {first_line(error)}") from None
    except ImportError as error:
        raise DataError(
            f"{path}: no usable model: a package is missing ({first_line(error)}); install it, or, where this is "
            "for quantised weights, take the checkpoint that is not quantised"
        ) from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise DataError(
            f"{path}: no usable model: its weights have other shapes than config.json says; take the checkpoint anew"
        ) from None
    if report["missing_keys"]:
        raise DataError(
            f"{path}: no usable model: {len(report['missing_keys'])} of its weights are missing, "
            f"{min(report['missing_keys'])} for one; take the checkpoint anew"
        )
    unused = [key for key in report["unexpected_keys"] if ".layers." in key]  # others may be of another task
    if unused:
        raise DataError(
            f"{path}: no usable model: {len(unused)} of its weights have no place in what config.json describes, "
            f"{min(unused)} for one; take the checkpoint anew"
        )
    return model.eval() if quantization else model.to(device).eval(), tokenizer


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> Any:
    """Loads the tokenizer alone; DataError where there is none."""
    from transformers import AutoTokenizer

    if isinstance(path, Path) and not (path / "config.json").is_file():
        raise DataError(f"{path}: not a checkpoint folder (no config.json); `dvc repro base` makes the base")
    try:
        return AutoTokenizer.from_pretrained(str(path), revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no usable tokenizer: {first_line(error)}") from None


def load_config(path: str | Path, *, revision: str | None = None) -> Any:
    """Reads config.json alone; DataError where it is none."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented all the same
    from transformers import AutoConfig

    try:
        if not Path(path).is_dir():
            validate_repo_id(str(path))
    except HFValidationError:
        raise DataError(
            f"{path}: no usable model: there is no such folder, nor is it a hub id (owner/name); correct its name"
        ) from None
    try:
        return AutoConfig.from_pretrained(str(path), revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no usable model: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def context_length(config: Any) -> int:
    """The longest sequence, tokens; of a model whose configuration names none, more than there will ever be."""
    longest: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest or 2**31 - 1


def end_ids(model: Any, tokenizer: Any) -> Tensor:
    """The tokens that end a response: the generation config's, else the tokenizer's; DataError where none is named."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise DataError(
            f"{model.config.name_or_path}: neither generation_config.json nor the tokenizer names an end token"
        )
    return torch.tensor(ends, device=model.device).reshape(-1)
