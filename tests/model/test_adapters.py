"""An adapter as `base.model`: merged into the base that it names, and refused in a sentence where it cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from oxa.config.base import Checkpoint
from oxa.config.prompt import Prompt
from oxa.errors import DataError
from oxa.model import loading, preflight
from oxa.stages import base

NO_SUFFIX = Prompt(suffix="")


def make_adapter(folder: Path, model: Path, **changes: Any) -> Path:
    """An adapter as peft and TRL leave it, with the tokenizer and a card; of random values in B."""
    torch.manual_seed(3)
    network, tokenizer = loading.load(model)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"])
    adapted = get_peft_model(network, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit(folder, **changes)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), checkpoint)


def take(model: Path, output: Path, **edits: Any) -> Path:
    base.take_over(Checkpoint(kind="checkpoint", model=str(model), **edits), output)
    return output


@torch.no_grad()
def test_the_base_gets_the_merged_weights(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    assert preflight.check_checkpoint(adapter, NO_SUFFIX) == []
    output = take(adapter, tmp_path / "base", max_position_embeddings=4000)
    assert {path.name for path in output.iterdir()} == {path.name for path in checkpoint.iterdir()}
    assert preflight.check_checkpoint(output, NO_SUFFIX) == []
    ids = torch.arange(5, 60)[None]
    expected = PeftModel.from_pretrained(loading.load(checkpoint)[0], str(adapter))(ids).logits
    found = loading.load(output)[0]
    torch.testing.assert_close(found(ids).logits, expected, rtol=0, atol=1e-5)
    assert found.config.max_position_embeddings == 4000
    before, after = (load_file(at / "model.safetensors") for at in (checkpoint, output))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {
        f"model.layers.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }


def test_a_base_beside_the_adapter_may_be_named_from_its_folder(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "mine" / "llama")
    moved = Path(shutil.copytree(adapter, tmp_path / "mine" / "lora"))
    edit(moved, base_model_name_or_path="../llama")
    for path in moved.glob("*token*"):  # it may bring none
        path.unlink()
    output = take(moved, tmp_path / "base")
    assert loading.load_tokenizer(output).get_vocab() == loading.load_tokenizer(checkpoint).get_vocab()


def pickled(at: Path) -> None:
    weights = at / "adapter_model.safetensors"
    torch.save(load_file(weights), at / "adapter_model.bin")
    weights.unlink()


def reshaped(at: Path) -> None:
    weights = load_file(at / "adapter_model.safetensors")
    name = min(weights)
    save_file(weights | {name: weights[name][:, :-1].contiguous()}, at / "adapter_model.safetensors")


def incomplete(at: Path) -> None:
    weights = load_file(at / "adapter_model.safetensors")
    weights.pop(min(weights))
    save_file(weights, at / "adapter_model.safetensors")


def poisoned(at: Path) -> None:
    weights = load_file(at / "adapter_model.safetensors")
    weights[min(weights)][0, 0] = torch.nan
    save_file(weights, at / "adapter_model.safetensors")


def grown(at: Path) -> None:
    tokenizer = loading.load_tokenizer(str(at))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(at)


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no base": (
        lambda at: edit(at, base_model_name_or_path=None),
        "the model that it changes is not named; write its folder or hub id as base_model_name_or_path in",
    ),
    "base elsewhere": (
        lambda at: edit(at, base_model_name_or_path="/home/somebody/llama"),
        "an adapter of '/home/somebody/llama', which is no folder here; write its folder or hub id",
    ),
    "base that nobody has": (
        lambda at: edit(at, base_model_name_or_path="nobody/nothing"),
        "nobody/nothing: no usable",
    ),
    "base that is an adapter": (
        lambda at: edit(at, base_model_name_or_path=str(at)),
        "which base.model alone takes",
    ),
    "pickle": (pickled, "an adapter without adapter_model.safetensors; merge it where it was trained"),
    "cut": (
        lambda at: (at / "adapter_model.safetensors").write_bytes(b"\x08"),
        "adapter_model.safetensors: not whole safetensors",
    ),
    "other kind": (
        lambda at: edit(at, peft_type="IA3"),
        "an adapter of kind 'IA3', and LORA alone is merged here",
    ),
    "moved base": (
        lambda at: edit(at, init_lora_weights="pissa"),
        "init_lora_weights 'pissa' fits no plain base",
    ),
    "code of megatron's": (
        lambda at: edit(at, megatron_config={"a": 1}, megatron_core="evil"),
        "megatron_config",
    ),
    "other shape": (reshaped, "1 weights are missing or of another shape"),
    "incomplete": (incomplete, "1 weights are missing or of another shape"),
    "no such layer": (lambda at: edit(at, target_modules=["w1"]), "does not fit its base"),
    "grown tokenizer": (grown, "its tokenizer has 262 tokens and its base"),
    "code": (
        lambda at: (at / "tokenizer_config.json").write_text('{"auto_map": {}}'),
        "asks for code of its own",
    ),
    "not JSON": (lambda at: (at / "adapter_config.json").write_text("{"), "not valid JSON"),
    "not a number": (poisoned, "1 of its weights hold NaN or infinity, base_model.model"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_adapter_that_cannot_be_taken_is_refused_in_a_sentence(
    adapter: Path, tmp_path: Path, name: str
) -> None:
    damage, said = UNUSABLE[name]
    folder = Path(shutil.copytree(adapter, tmp_path / "lora"))
    damage(folder)
    if name == "not a number":
        (fault,) = preflight.check_checkpoint(folder, NO_SUFFIX)
        assert said in fault
        return
    with pytest.raises(DataError) as caught:
        take(folder, tmp_path / "base")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


def test_a_sampler_cannot_be_an_adapter(adapter: Path) -> None:
    with pytest.raises(DataError, match=r"an adapter, which base\.model alone takes; merge it"):
        preflight.check_checkpoint(adapter, NO_SUFFIX, is_student=False)


def test_an_adapter_of_the_hubs_is_fetched_with_its_tokenizer(
    checkpoint: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, as a machine without a network has it."""
    from huggingface_hub import constants

    commit = "0" * 40
    cache = tmp_path / "hub" / "models--me--lora"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    shutil.copytree(adapter, cache / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    output = tmp_path / "base"
    base.take_over(Checkpoint(kind="checkpoint", model="me/lora"), output)
    assert preflight.check_checkpoint(output, NO_SUFFIX) == []
    before, after = (load_file(at / "model.safetensors") for at in (checkpoint, output))
    assert not torch.equal(
        before["model.layers.0.self_attn.q_proj.weight"], after["model.layers.0.self_attn.q_proj.weight"]
    )
