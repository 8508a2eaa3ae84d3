from pathlib import Path

import pytest
import torch
from decoders import SIZES, batch, model_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config

from oxa.config.section import Sampling
from oxa.forecast import cost
from oxa.generation import sampler
from oxa.generation.requests import Request


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


def test_generation_flops_are_those_of_the_sampler():
    settings = Qwen2Config(**SIZES, tie_word_embeddings=True)
    model, shape = model_of(settings, "eager").eval(), cost.shape_of(settings)
    requests = [Request(str(i), list(range(50))) for i in range(4)]
    never = torch.tensor([SIZES["vocab_size"] + 1])
    with FlopCounterMode(display=False) as counter:
        sampler.complete(model, requests, [100] * 4, never, Sampling(max_tokens=100))
    expected = cost.generation_flops(shape, 4, 400, 4 * 100**2, 50, reused=4)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)
