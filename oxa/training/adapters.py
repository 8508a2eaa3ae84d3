"""Trains a low-rank adapter in place of a model's weights (LoRA, arXiv 2106.09685), by peft through TRL's trainers.

    W x  becomes  W x + alpha / rank · B A dropout(x)      W [out, in] frozen, A [rank, in], B [out, rank] float32

A is drawn from the training's seed, B is 0: the first step sees the base itself. So does a reference, at any step, with
the adapter switched off: neither KTO nor RL holds a second model. Embeddings and the head are never adapted, so that
log-probabilities come from the fused head as without an adapter.

What comes out is a plain checkpoint: the adapter merged into the base's weights, read anew and in their own type
(oxa/model/adapters.py), whatever they were rounded to while it trained.

With `dtype: bfloat16` the frozen matrices lie in bfloat16, but where FSDP or DeepSpeed spreads them. That saves half of
their memory and changes no bit: bfloat16 arithmetic would round them at every use. With `quantize: nf4` they lie in 4
bits (QLoRA, arXiv 2305.14314, with its double quantisation), and the adapter learns to make up for that rounding as
well, which the merged model does not have.

Dropout is drawn for each micro-batch: with any, the result depends on how a step is cut into micro-batches and
processes, which without it changes nothing. A resumed run draws on where it stopped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from oxa.config.fine_tuning import Adapter, Optimizer
from oxa.errors import ConfigError
from oxa.model import adapters, loading
from oxa.training import resume

FOLDER = "adapter"
"""Of a checkpoint: the adapter by itself, where it is kept."""
OPTIMIZERS: dict[Optimizer, str] = {
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""transformers' names; `adamw` is its default, by torch."""


def check(adapter: Adapter | None, optimizer: Optimizer = "adamw") -> None:
    """Raises ConfigError where this machine, or the way it was launched, lacks what the settings need."""
    needs: list[tuple[str, str, str]] = []
    if optimizer != "adamw":
        needs.append(("optimizer", optimizer, "adamw"))
    if adapter is not None and adapter.quantize is not None:
        needs.append(("adapter.quantize", adapter.quantize, "null"))
    for key, value, instead in needs:
        if not torch.cuda.is_available():
            raise ConfigError(f"{key}: {value} runs on CUDA alone, and there is none here; take {instead}")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                f'{key}: {value} needs bitsandbytes, which is not installed; `pip install "oxa[quantized]"`, or take '
                f"{instead}"
            )
        if resume.spread_by():
            raise ConfigError(
                f"{key}: {value} keeps whole matrices in every process, and OXA_LAUNCH spreads them by "
                f"{resume.spread_by()}; take {instead}, or launch with presets/accelerate/multi-gpu.yaml"
            )


def load(model: Path, adapter: Adapter | None, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer) to be trained, in float32 on the CPU; with `quantize` in 4 bits on this process's GPU."""
    if adapter is None or adapter.quantize is None:
        return loading.load(model, dtype=torch.float32, device=torch.device("cpu"))
    from transformers import BitsAndBytesConfig

    in_4_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=adapter.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # as torchrun and accelerate set it
    return loading.load(model, dtype=torch.float32, device=device, quantization=in_4_bits)


def settings(adapter: Adapter | None, network: Any) -> Any:
    """peft's LoraConfig for TRL's `peft_config`; None without an adapter.

    Raises ConfigError where a name in `targets` ends that of no linear layer, or of the head, which is never adapted.
    """
    if adapter is None:
        return None
    from peft import LoraConfig

    if adapter.targets != "all-linear":
        head = network.get_output_embeddings()
        linear = [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        ]
        for target in adapter.targets:
            if not any(name == target or name.endswith(f".{target}") for name in linear):
                ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
                raise ConfigError(
                    f"adapter.targets: {target} is no linear layer of this model's but the head; take of {ends}"
                )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets if adapter.targets == "all-linear" else list(adapter.targets),
    )


def round_frozen(network: Any) -> None:
    """Puts the matrices of linear layers into bfloat16, in place; a head that is tied to the embeddings stays."""
    embeddings = network.get_input_embeddings().weight
    for module in network.modules():
        weight = module.weight if isinstance(module, nn.Linear) else embeddings
        if (
            weight is not embeddings and weight.dtype == torch.float32
        ):  # those in 4 bits are packed into integers
            weight.data = weight.data.bfloat16()


def keep_float32(trainer: Any) -> None:
    """Puts what is trained back into float32: TRL rounds the adapter of a quantised model to bfloat16."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save(trainer: Any, base: Path, output: Path, adapter: Adapter) -> None:
    """Writes the merged model as a checkpoint folder, and the adapter into its `adapter/` where it is to be kept.

    Every process calls this. peft loads that folder onto the base: `PeftModel.from_pretrained(base, "…/adapter")`.
    """
    own = output / FOLDER
    trainer.save_model(str(own))
    if trainer.is_world_process_zero():
        for path in own.iterdir():
            if path.name not in (adapters.CONFIG, adapters.WEIGHTS):
                path.unlink()
        config = json.loads((own / adapters.CONFIG).read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": None, "target_modules": sorted(config["target_modules"])}
        (own / adapters.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        dtype = AutoConfig.from_pretrained(base).dtype or torch.float32
        network, tokenizer = loading.load(base, dtype=dtype, device=torch.device("cpu"))
        adapters.merge(network, own).save_pretrained(output)
        tokenizer.save_pretrained(output)
        if not adapter.save:
            shutil.rmtree(own)
    trainer.accelerator.wait_for_everyone()
