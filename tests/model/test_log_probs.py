from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from conftest import make_checkpoint
from oxa.errors import DataError
from oxa.model import loading
from oxa.model import log_probs as lm


def reference(model, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain float32 log-probabilities and entropies of the tokens from the second on, all logits at once."""
    log_p = model(input_ids[None]).logits[0, :-1].float().log_softmax(-1)
    return log_p.gather(-1, input_ids[1:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@torch.no_grad()
def test_statistics_equal_a_plain_forward_for_any_chunk_and_padding(checkpoint: Path):
    model, _ = loading.load(checkpoint)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 200, (n,), generator=generator) for n in (3, 17, 40)]
    input_ids = torch.zeros(3, 40, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    scored = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, (1, 4, 30), strict=True)):
        input_ids[i, : len(row)], mask[i, : len(row)], scored[i, start : len(row)] = row, 1, True
    expected = [reference(model, row) for row in rows]
    log_probs = torch.cat([e[0][start - 1 :] for e, start in zip(expected, (1, 4, 30), strict=True)])
    entropies = torch.cat([e[1][start - 1 :] for e, start in zip(expected, (1, 4, 30), strict=True)])
    for chunk in (1, 7, 1000):
        found = lm.token_statistics(model, input_ids, mask, scored, chunk)
        torch.testing.assert_close(found.log_probs, log_probs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.entropies, entropies, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_statistics_at_a_temperature_equal_a_plain_forward(
    checkpoint: Path, temperature: float, biased: bool
):
    model, _ = loading.load(checkpoint)
    generator = torch.Generator().manual_seed(0)
    if biased:
        head = model.get_output_embeddings()
        head.bias = torch.nn.Parameter(3 * torch.randn(len(head.weight), generator=generator))
    ids = torch.randint(5, 200, (1, 30), generator=generator)
    scored = torch.ones_like(ids).bool()
    scored[:, 0] = False
    found = lm.token_statistics(model, ids, torch.ones_like(ids), scored, 7, temperature)
    log_p = (model(ids).logits[0, :-1].double() / temperature).log_softmax(-1)
    log_probs = log_p.gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found.log_probs.double(), log_probs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.entropies.double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_ranks_count_what_is_likelier_and_leave_the_rest_as_it_is(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, biased: bool
):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator).to(dtype) for n in (60, 300))
    weight[7] = weight[5]  # equal logits: neither is above the other
    bias = torch.randn(300, generator=generator).to(dtype) if biased else None
    if bias is not None:
        bias[7] = bias[5]
    tokens = torch.randint(300, (60,), generator=generator)
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    tokens[0], tokens[1], tokens[2] = logits[0].argmax(), logits[1].argmin(), 5
    own = logits.gather(1, tokens[:, None])
    monkeypatch.setattr(lm, "MIN_WIDTH", 37)
    monkeypatch.setitem(lm.TILE, "cpu", 1)
    found = lm._tiled_statistics(hidden, tokens, weight, bias, ranks=True)
    # a logit nearer than its own rounding may fall on either side
    near = 1e-5 if dtype == torch.float32 else 0.02 * own.abs() + 0.02
    low, high = (1 + (logits > own + side * near).sum(1) for side in (1, -1))
    assert found.ranks is not None
    assert ((low <= found.ranks) & (found.ranks <= high)).all()
    if dtype == torch.float32:
        apart = torch.ones_like(logits).bool()
        apart[torch.arange(60), tokens] = False
        clear = (((logits - own).abs() > near) | ~apart).all(1)
        assert clear.sum() > 50
        assert (found.ranks == 1 + (logits > own).sum(1))[clear].all()
    plain = lm._tiled_statistics(hidden, tokens, weight, bias)
    assert plain.ranks is None
    assert torch.equal(plain.log_probs, found.log_probs)
    assert torch.equal(plain.entropies, found.entropies)


def exact(
    hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies in float64."""
    log_p = (hidden.double() @ weight.double().T).log_softmax(-1)
    return log_p.gather(-1, tokens[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_tiled_statistics_equal_float64_for_any_size_of_logits(
    monkeypatch: pytest.MonkeyPatch, scale: float, order: str
):
    monkeypatch.setattr(lm, "MIN_WIDTH", 7)
    monkeypatch.setitem(lm.TILE, "cpu", 1)
    generator = torch.Generator().manual_seed(0)
    logits = scale * (2 * torch.rand(50, generator=generator) - 1)
    if order != "mixed":
        logits = logits.sort(descending=order == "falling").values
    weight = logits[:, None]  # one hidden unit of 1 or -1: the product is exact
    tokens = torch.arange(50).repeat(2)
    hidden = torch.tensor([1.0, -1.0]).repeat_interleave(50)[:, None]
    found = lm._tiled_statistics(hidden, tokens, weight, None)
    log_probs, entropies = exact(hidden, weight, tokens)
    torch.testing.assert_close(found.log_probs.double(), log_probs, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(found.entropies.double(), entropies, rtol=1e-5, atol=2e-6)


def test_tiled_statistics_of_bfloat16_weights_and_a_bias_round_only_the_logits():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator).bfloat16() for n in (20, 3000))
    bias = torch.randn(3000, generator=generator).bfloat16()
    tokens = torch.randint(3000, (20,), generator=generator)
    found = lm._tiled_statistics(hidden, tokens, weight, bias)
    log_p = torch.nn.functional.linear(hidden, weight, bias).double().log_softmax(-1)
    assert found.log_probs.dtype == torch.float32
    torch.testing.assert_close(
        found.log_probs.double(), log_p.gather(-1, tokens[:, None])[:, 0], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(found.entropies.double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-5)


def test_top_logits_are_found_tile_by_tile(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(9, 8, generator=generator), torch.randn(70, 8, generator=generator)
    bias = torch.randn(70, generator=generator)
    monkeypatch.setattr(lm, "MIN_WIDTH", 7)
    monkeypatch.setattr(lm, "TILE", {"cpu": 1})
    found = lm.top_logits(hidden, weight, bias, 20).sort(descending=True).values
    torch.testing.assert_close(found, F.linear(hidden, weight, bias).topk(20).values)
    assert lm.top_logits(hidden, weight[:3], None, 20).shape == (9, 3)
    assert lm.top_logits(hidden[:0], weight, bias, 20).shape == (0, 20)


def test_nothing_to_score_gives_nothing(checkpoint: Path):
    model, _ = loading.load(checkpoint)
    ids = torch.arange(5, 9)[None]
    found = lm.token_statistics(model, ids, torch.ones_like(ids), torch.zeros_like(ids).bool(), 4)
    assert found.log_probs.shape == found.entropies.shape == (0,)


def test_pickled_weights_are_refused(tmp_path: Path):
    folder = make_checkpoint(tmp_path / "model")
    model, _ = loading.load(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="no usable model"):
        loading.load(folder)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"not a checkpoint folder \(no config.json\)"):
        loading.load(tmp_path)


@pytest.mark.parametrize("name", ["/no/where", "./model", "a/b/c"])
def test_a_name_that_is_no_folder_and_can_be_no_hub_id_is_asked_of_nobody(name: str):
    with pytest.raises(
        DataError, match=f"{name}: no usable model: there is no such folder, nor is it a hub id"
    ):
        loading.load_config(name)


def test_a_model_nobody_has_is_one_sentence():
    with pytest.raises(DataError, match="nobody/nothing: no usable"):
        loading.load("nobody/nothing")


def test_a_model_that_caps_its_logits_is_refused(checkpoint: Path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model, _ = loading.load(checkpoint)
    lm.check_head(model, torch.arange(5, 20)[None])
    capped = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=0.5,
        )
    )
    with pytest.raises(DataError, match="gemma2 models cannot be scored"):
        lm.check_head(capped, torch.arange(5, 20)[None])


@pytest.mark.parametrize("width", [16, 70])
@pytest.mark.parametrize("frozen", [False, True])
def test_products_by_onednn_have_the_gradients_of_plain_ones_and_a_frozen_one_keeps_no_input(
    width: int, frozen: bool
):
    generator = torch.Generator().manual_seed(0)
    inputs, weight, bias = (torch.randn(*s, generator=generator) for s in ((3, 5, 80), (width, 80), (width,)))
    direction = torch.randn(3, 5, width, generator=generator)
    gradients, saved = [], list[torch.Size]()
    for mode in (nullcontext(), lm.OneDnn()):
        saved.clear()
        leaves = [
            inputs.clone().requires_grad_(),
            *(t.clone().requires_grad_(not frozen) for t in (weight, bias)),
        ]
        with (
            mode,
            torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t),
        ):
            out = F.linear(*leaves)
        (out * direction).sum().backward()
        gradients.append([out.detach(), *(t.grad for t in leaves if t.requires_grad)])
    for plain, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    if frozen:
        assert [sorted(shape) for shape in saved] == [[width, 80]]  # the weight alone
