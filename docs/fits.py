"""Writes the table "What fits where" into docs/scale.md: peaks of memory by `oxa plan`, on one GPU.

    python docs/fits.py

tests/test_docs.py holds the page against this.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from oxa.config.params import check_params
from oxa.forecast import forecast
from oxa.forecast.cost import GIB
from oxa.forecast.devices import USABLE
from oxa.forecast.steps import Step

PAGE, PRESET = Path(__file__).parent / "scale.md", Path(__file__).parents[1] / "presets/paper-1.5b.yaml"
MODELS = {
    "SmolLM2-135M-Instruct": (576, 30, 9, 3, 1536, 49152, True, 8192),
    "Qwen2.5-0.5B": (896, 24, 14, 2, 4864, 151936, True, 32_768),
    "Qwen2.5-1.5B": (1536, 28, 12, 2, 8960, 151936, True, 131_072),
    "Llama-3.2-3B": (3072, 28, 24, 8, 8192, 128256, True, 131_072),
    "Qwen2.5-7B": (3584, 28, 28, 4, 18944, 152064, False, 131_072),
}
"""Sizes in the order of SIZES and the context, from each one's config.json on the hub."""
SIZES = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
LORA = {"rank": 16}
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "all weights, `adamw_8bit`": {"optimizer": "adamw_8bit"},
    "LoRA": {"adapter": LORA},
    "QLoRA": {"adapter": LORA | {"quantize": "nf4"}},
}
LENGTHS = (4096, 16_384)
GPUS = {24: 23.6, 48: 44.5, 80: 79.1}
"""GB as it is sold, and GiB as torch finds them (RTX 4090, L40S, H100)."""
TOGETHER = 16
MARKERS = re.compile(r"(<!-- fits -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def page() -> str:
    """docs/scale.md with the table in it."""
    return MARKERS.sub(lambda found: f"{found[1]}\n{table()}\n{found[2]}", PAGE.read_text("utf-8"))


def table() -> str:
    columns = [f"`{stage}` {length:,}" for stage in ("train", "rlvr", "sample") for length in LENGTHS]
    lines = [f"| model | way | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for model in MODELS:
        for way, settings in WAYS.items():
            plans = [
                stages(model, settings, length) if length <= MODELS[model][-1] else {} for length in LENGTHS
            ]
            cells = [cell(plan.get("train@sft")) for plan in plans]
            cells += ["" if "optimizer" in settings else cell(plan.get("rlvr")) for plan in plans]
            cells += ["" if settings else cell(plan.get("sample")) for plan in plans]
            lines.append(f"| {'' if settings else model} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def stages(model: str, settings: dict[str, Any], length: int) -> dict[str, Step]:
    """By name, of the paper's preset on one GPU, with sequences of this length, prompt included."""
    raw = yaml.safe_load(PRESET.read_text("utf-8"))
    raw["base"] = {"kind": "checkpoint", "model": f"shapes/{model}"}  # no config.json that may be at hand
    raw["plan"] |= {"shape": dict(zip(SIZES, MODELS[model][:-1], strict=True)), "devices": 1}
    raw["train"]["shared"] |= settings | {"max_length": length}
    adapter = {name: value for name, value in settings.items() if name == "adapter"}
    of_rollouts = {"max_tokens": length - raw["rlvr"]["max_prompt_tokens"], "batch_size": TOGETHER}
    raw["rlvr"] |= {"engine": "torch", **of_rollouts, **adapter}
    raw["generate"] = {"engine": "torch", "batch_size": TOGETHER}
    raw["sample"] |= {"max_tokens": length, "model": None}
    plan = forecast.make(check_params(raw, str(PRESET)), PRESET)
    return {step.name: step for step in plan.steps}


def cell(step: Step | None) -> str:
    """GiB, and the smallest GPU that has them; empty where sequences are longer than the model's context."""
    if step is None or step.memory is None:
        return ""
    needed = step.memory.total / GIB
    fitting = [f"{sold}" for sold, memory in GPUS.items() if needed <= USABLE * memory]
    return f"{needed:,.1f} ({fitting[0] if fitting else '–'})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
