"""A low-rank adapter on disk (LoRA, arXiv 2106.09685), as peft saves it: what it stands on, and merged into that.

    W  becomes  W + alpha / rank · B A      W [out, in], A [rank, in], B [out, rank]

B A is computed in float32 and added in W's type; what comes out is a model like any other.
Nothing of an adapter's folder is executed or unpickled: its weights are safetensors, and its settings are those of a
plain LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from oxa.errors import DataError
from oxa.model import loading

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = [CONFIG, WEIGHTS, "tokenizer*", "*_tokens*.json", "chat_template.jinja", "vocab.json", "merges.txt"]
"""Of a hub's adapter: what is fetched."""
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")
"""peft's others move a part of the base's weights into the adapter, which then fits no plain base."""
REMEDY = "merge it where it was trained (peft's merge_and_unload), and name the merged folder"


class Based(NamedTuple):
    """What an adapter stands on."""

    folder: Path
    """Its own files."""
    base: str | Path
    """Hub id or folder of the model that it changes."""
    revision: str | None
    """Of the base on the hub."""
    tokenizer: str | Path
    """Where the tokenizer is read: from the adapter's folder where it brings one."""


def folder(model: str | Path, revision: str | None = None) -> Path | None:
    """Where the files of an adapter lie, those of a hub id after a download; None where it is no adapter.

    Reads none of them.
    """
    if Path(model).is_dir():
        return Path(model) if (Path(model) / CONFIG).exists() else None
    from huggingface_hub import snapshot_download
    from transformers.utils import find_adapter_config_file

    try:
        if find_adapter_config_file(str(model), revision=revision) is None:
            return None
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=FILES))
    except (OSError, ValueError):
        return None  # out of reach, or no hub id at all: reading it as a model tells why


def stands_on(where: Path, settings: Mapping[str, Any]) -> Based:
    """What the adapter in the folder `where` changes, by its settings; DataError where that cannot be told or merged.

    A base that is no hub id is a folder, from the working directory or from the adapter's own.
    """
    config, kind = where / CONFIG, settings.get("peft_type")
    if kind != "LORA":
        raise DataError(f"{config}: an adapter of kind {kind!r}, and LORA alone is merged here; {REMEDY}")
    start = settings.get("init_lora_weights", True)
    if start not in INITIALISATIONS or settings.get("megatron_config"):
        what = "megatron_config" if settings.get("megatron_config") else f"init_lora_weights {start!r}"
        raise DataError(f"{config}: {what} fits no plain base; {REMEDY}")
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    remedy = f"write its folder or hub id as base_model_name_or_path in {config}"
    if not name or not isinstance(name, str):
        raise DataError(f"{config}: an adapter, and the model that it changes is not named; {remedy}")
    folders = [at for at in (Path(name), where / name) if at.is_dir()]
    is_hub_id = name.count("/") == 1 and name[0] not in "./~"
    if not folders and not is_hub_id:
        raise DataError(f"{config}: an adapter of {name!r}, which is no folder here; {remedy}")
    base = folders[0] if folders else name
    brings = (where / "tokenizer_config.json").exists()
    return Based(
        where,
        base,
        None if folders or not isinstance(revision, str) else revision,
        str(where) if brings else base,
    )


def check_fit(based: Based) -> None:
    """Raises DataError where the adapter's weights are not those of a LoRA on its base, by names and shapes.

    No weight is read, and none takes memory.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    config = loading.load_config(based.base, revision=based.revision)
    if getattr(config, "quantization_config", None):
        raise DataError(
            f"{based.folder}: an adapter of {based.base}, which is quantised; write the model that this was made from "
            f"as base_model_name_or_path in {based.folder / CONFIG}"
        )
    if isinstance(based.base, Path):
        network, _ = loading.load(based.base, device=torch.device("meta"), dtype=torch.float32)
    else:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
    num_rows = network.get_input_embeddings().num_embeddings
    num_tokens = len(loading.load_tokenizer(based.tokenizer, revision=based.revision))
    if num_tokens > num_rows:
        raise DataError(
            f"{based.folder}: its tokenizer has {num_tokens} tokens and its base {based.base} only {num_rows}; {REMEDY}"
        )
    try:
        with torch.device("meta"):
            adapted = _wrap(network, based.folder)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{based.folder}: an adapter that does not fit its base {based.base}: {loading.first_line(error)}"
        ) from None
    expected = {
        name: tuple(value.shape)
        for name, value in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
    }
    with safe_open(based.folder / WEIGHTS, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise DataError(
            f"{based.folder}: an adapter that does not fit its base {based.base}: {len(wrong)} weights are missing "
            f"or of another shape, {wrong[0]} for one; take it anew, or name the base that it was trained on"
        )


def merge(network: Any, where: Path) -> Any:
    """The model with the adapter in the folder `where` added to its weights, which are changed in place."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    with torch.random.fork_rng(devices=[]):  # layers draw their first weights, which are replaced
        adapted = _wrap(network, where)
    set_peft_model_state_dict(adapted, load_file(where / WEIGHTS))
    return adapted.merge_and_unload().eval()


def _wrap(network: Any, where: Path) -> Any:
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(where))
    config.init_lora_weights = False  # a start that is looked for would take data
    return PeftModel(network, config)
