import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config
from trl.trainer.utils import add_fused_lm_head

from oxa.config.section import Sampling
from oxa.forecast import cost
from oxa.generation import sampler
from oxa.generation.requests import Request

SIZES: dict[str, Any] = {
    "vocab_size": 307,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "max_position_embeddings": 1024,
}


def model_of(settings: Any, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(settings, dtype=torch.float32, attn_implementation=attention)


def batch(rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, SIZES["vocab_size"], (rows, longest), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


def test_parameters_are_those_of_the_model_on_disk(checkpoint: Path):
    shape = cost.shape_of(AutoConfig.from_pretrained(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert shape.parameters == model.num_parameters()
    assert shape.tied
    assert shape.head == model.get_output_embeddings().weight.numel()
    projections = [m for name, m in model.base_model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert shape.matrices == sum(m.weight.numel() for m in projections)


def test_heads_of_a_size_of_their_own_and_an_untied_head_are_seen():
    shape = cost.shape_of(LlamaConfig(**SIZES, head_dim=32, tie_word_embeddings=False))
    assert (shape.queries, shape.keys, shape.tied) == (128, 64, False)
    assert shape.cache == 2 * 2 * 64


def test_a_mixture_of_experts_is_refused_with_a_sentence():
    settings = AutoConfig.for_model("qwen2_moe", num_hidden_layers=1, num_experts=4)
    with pytest.raises(cost.DataError, match="a mixture of experts cannot be planned"):
        cost.shape_of(settings)


def test_forward_flops_are_those_that_torch_counts():
    settings = Qwen2Config(**SIZES, tie_word_embeddings=True)
    model, shape = model_of(settings, "eager"), cost.shape_of(settings)
    ids, mask = batch(3, 200)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    expected = cost.forward_flops(shape, 600, 3 * 200**2, 600)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def in_place(_: Any, one: torch.Size, other: torch.Size, **__: Any) -> int:
    """What torch's counter leaves out: the fused head adds up its gradients with addmm_."""
    return 2 * one[0] * one[1] * other[1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_flops_are_those_that_torch_counts(checkpointing: bool):
    settings = Qwen2Config(**SIZES, tie_word_embeddings=True)
    model, shape = model_of(settings, "eager").train(), cost.shape_of(settings)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids, mask = batch(3, 200)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs.sum().backward()
    expected = cost.training_flops(shape, 600, 3 * 200**2, 600, checkpointing=checkpointing)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_generation_flops_are_those_of_the_sampler():
    settings = Qwen2Config(**SIZES, tie_word_embeddings=True)
    model, shape = model_of(settings, "eager").eval(), cost.shape_of(settings)
    requests = [Request(str(i), list(range(50))) for i in range(4)]
    never = torch.tensor([SIZES["vocab_size"] + 1])
    with FlopCounterMode(display=False) as counter:
        sampler.complete(model, requests, [100] * 4, never, Sampling(max_tokens=100))
    expected = cost.generation_flops(shape, 4, 400, 4 * 100**2, 50, reused=4)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig])
def test_what_a_block_keeps_for_the_backward_pass_is_what_autograd_keeps(kind: Any, dtype: str, padded: bool):
    rows, longest = 2, 256

    def saved_bytes(layers: int) -> int:
        """Bytes of all storages but the parameters' that the forward pass saves."""
        model = model_of(kind(**SIZES | {"num_hidden_layers": layers})).train()
        ids, mask = batch(rows, longest)
        if padded:
            mask[0, -50:] = 0
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        alive, sizes = [], {}

        def saved(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or another storage might come to lie where this one was
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
        ):
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return sum(sizes.values())

    shape = cost.shape_of(kind(**SIZES))
    expected = rows * longest * cost.kept_by_block(shape, dtype, longest=longest, padded=padded)
    if dtype == "bfloat16":
        expected += 2 * shape.matrices / shape.layers  # autocast's copies
    assert saved_bytes(3) - saved_bytes(2) == pytest.approx(expected, rel=0.01)


def shape() -> cost.Shape:
    return cost.shape_of(Qwen2Config(**SIZES))


def training(**settings: Any) -> cost.Memory:
    usual = {"tokens": 512, "longest": 512, "dtype": "float32", "checkpointing": False}
    return cost.training_memory(shape(), **usual | settings)


def test_weights_gradients_and_adamws_state_take_sixteen_bytes_a_parameter_and_fsdp_spreads_them():
    one = training()
    assert one.weights + one.gradients + one.optimizer == 16 * shape().parameters
    four = training(devices=4, fsdp=True)
    assert four.gradients + four.optimizer == (one.gradients + one.optimizer) / 4
    assert one.weights / 4 < four.weights
    assert training(devices=4).gradients == 2 * one.gradients, "DDP's buckets"
    assert training(reference=True).weights == 2 * one.weights


def test_checkpointing_and_fewer_tokens_need_less_and_padding_needs_more():
    one = training()
    assert training(checkpointing=True).activations < one.activations
    assert training(tokens=256, longest=256).total < one.total
    assert training(longest=256).activations > one.activations, "two rows of which one may be padded"


PROBE = """
import sys, torch
from transformers import AutoModelForCausalLM, Qwen2Config
from oxa.forecast import cost
from oxa.model import log_probs

what, checkpointing = sys.argv[1], sys.argv[2] == "True"
settings = Qwen2Config(vocab_size=8192, hidden_size=512, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, intermediate_size=1536, max_position_embeddings=8192, tie_word_embeddings=True)
shape = cost.shape_of(settings)
torch.set_num_threads(1)
if what == "train":
    import trl.trainer.utils
torch.zeros(8, 8) @ torch.zeros(8, 8)
rows, longest = (1, 1024) if what == "train" else (8, 1024)
ids = torch.randint(0, 8192, (rows, longest))
mask = torch.ones_like(ids)
mask[1:, -100:] = 0
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
before = memory("VmRSS")
if what == "train":
    add_fused_lm_head = trl.trainer.utils.add_fused_lm_head
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs.mean().neg().backward()
        optimizer.step()
    expected = cost.training_memory(shape, tokens=rows * longest, longest=longest, dtype="float32",
        checkpointing=checkpointing, triton=False)
else:
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    scored = mask.bool()
    scored[:, 0] = False
    for _ in range(2):
        log_probs.token_statistics(model, ids, mask, scored, 1024)
    expected = cost.scoring_memory(shape, tokens=rows * longest, dtype="float32", chunk=1024,
        tile=log_probs.TILE["cpu"], onednn=True)
print(expected.total / (memory("VmHWM") - before))
"""


@pytest.mark.whole
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be reset here")
@pytest.mark.parametrize(("what", "checkpointing"), [("train", False), ("train", True), ("score", False)])
def test_the_peak_of_a_real_step_is_forecast_within_thirty_percent(what: str, checkpointing: bool):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, what, str(checkpointing)], capture_output=True, text=True, check=True
    )
    assert 0.7 < float(done.stdout) < 1.3
