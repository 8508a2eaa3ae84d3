"""The sampler against plain references: transformers' generate, the scoring path, the nucleus written down."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from oxa import hashes
from oxa.config.section import Sampling
from oxa.generation import attention, sampler
from oxa.generation.requests import Request
from oxa.generation.sampler import draw
from oxa.model import loading, log_probs

SAMPLING = Sampling(max_tokens=30, seed=0)


def test_greedy_equals_transformers_generate_token_for_token(talker: Path) -> None:
    rng = random.Random(1)
    requests = [Request(f"r{i}", [rng.randrange(5, 200) for _ in range(4 + i % 6)]) for i in range(24)]
    model, _ = loading.load(talker)
    # a head of its own: with the tied one this model repeats its last token for ever
    head = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight = torch.nn.Parameter(head)
    expected = []
    for request in requests:
        ids = torch.tensor([request.prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
        expected.append(whole[0, len(request.prompt) :].tolist())
    assert len({len(tokens) for tokens in expected}) > 3
    assert len({token for tokens in expected for token in tokens}) > 50
    attention.share_keys_among_query_heads(model)
    ends = torch.tensor(model.generation_config.eos_token_id)
    greedy = Sampling(max_tokens=40, temperature=0)
    tokens, num_tokens, stopped, _, _ = sampler.complete(model, requests, [40] * 24, ends, greedy)
    drawn = [row[:n].tolist() for row, n in zip(tokens, num_tokens, strict=True)]
    assert drawn == expected
    assert stopped.tolist() == [tokens[-1] in ends for tokens in expected]


def test_a_model_that_has_sampled_trains_as_if_it_had_not(talker: Path) -> None:
    ids = torch.arange(40).reshape(2, 20) + 20
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # padded on the left, as RL pads prompts
    gradients = []
    for samples in (False, True):
        model, tokenizer = loading.load(talker)
        if samples:
            attention.share_keys_among_query_heads(model)
            requests = [Request(f"r{i}", list(range(20, 24 + i))) for i in range(4)]
            ends = loading.end_ids(model, tokenizer)
            sampler.complete(model, requests, [30] * 4, ends, SAMPLING)
        model.train()
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, gradients[1][name]), name


def test_entropies_and_log_probabilities_equal_those_of_the_scoring_path(talker: Path) -> None:
    model, _ = loading.load(talker)
    requests = [Request(f"r{i}", [20 + (i // 3 * j) % 200 for j in range(4 + i // 3 % 6)]) for i in range(9)]
    sampling = SAMPLING.model_copy(update={"temperature": 0.6, "top_p": 0.9})  # neither may enter the entropy
    ends = torch.tensor(model.generation_config.eos_token_id)
    tokens, num_tokens, _, sums, log_p = sampler.complete(model, requests, [30] * 9, ends, sampling)
    for request, row, n, total, drawn in zip(requests, tokens, num_tokens, sums, log_p, strict=True):
        ids = torch.tensor([request.prompt + row[:n].tolist()])
        scored = torch.arange(ids.shape[1])[None] >= len(request.prompt)
        entropies = log_probs.token_statistics(model, ids, torch.ones_like(ids), scored, 1000).entropies
        assert float(total / n) == pytest.approx(float(entropies.mean()), rel=1e-5)
        at_temperature = log_probs.token_statistics(model, ids, torch.ones_like(ids), scored, 1000, 0.6)
        torch.testing.assert_close(drawn[:n], at_temperature.log_probs, rtol=1e-5, atol=1e-5)


def test_a_prompt_is_read_once_and_logits_exist_for_last_positions_only(talker: Path) -> None:
    model, _ = loading.load(talker)
    requests = [Request(f"{p}/{i}", [30 + p] * (6 + p % 2)) for p in range(3) for i in range(4)]
    seen: list[tuple[int, ...]] = []
    heads: list[tuple[int, ...]] = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    model.lm_head.register_forward_hook(lambda _, __, out: heads.append(tuple(out.shape[:2])))
    ends = torch.tensor(model.generation_config.eos_token_id)
    sampler.complete(model, requests, [60] * 12, ends, SAMPLING)
    assert seen[0] == (3, 7)
    assert heads[0] == (3, 1)
    assert all(positions == 1 for _, positions in heads)
    sizes = [batch for batch, _ in heads[1:]]
    assert sizes[0] == 12  # and rows that ended leave the batch
    assert sorted(sizes, reverse=True) == sizes
    assert len(set(sizes)) > 3


def test_uniforms_are_splitmix64_with_its_published_test_vector() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    keys = np.array([1234567], dtype=np.uint64)
    assert [float(hashes.uniforms(keys, step)[0]) for step in range(5)] == [
        (z >> 11) / 2**53 for z in published
    ]


def test_uniforms_are_uniform_over_responses_and_over_steps() -> None:
    keys = hashes.stream_keys(3, [f"r{i}" for i in range(20_000)])
    assert len(set(keys.tolist())) == 20_000
    assert scipy.stats.kstest(hashes.uniforms(keys, 0), "uniform").pvalue > 0.01
    steps = [float(hashes.uniforms(keys[:1], step)[0]) for step in range(20_000)]
    assert scipy.stats.kstest(steps, "uniform").pvalue > 0.01
    neighbours = np.corrcoef(hashes.uniforms(keys, 0), hashes.uniforms(keys, 1))[0, 1]
    assert abs(neighbours) < 0.03


def _nucleus(logits: list[float], temperature: float, top_p: float) -> np.ndarray:
    """Token by token, as one would write it down."""
    exact = np.exp((np.array(logits) - max(logits)) / temperature)
    exact /= exact.sum()
    nucleus: list[int] = []
    for token in sorted(range(len(exact)), key=lambda v: -exact[v]):
        if sum(exact[v] for v in nucleus) >= top_p:
            break
        nucleus.append(token)
    cut = np.zeros_like(exact)
    cut[nucleus] = exact[nucleus]
    return cut / cut.sum()


@given(
    st.lists(st.floats(-6, 6), min_size=2, max_size=12, unique_by=lambda x: round(x, 3)),
    st.floats(0.3, 2),
    st.floats(0.05, 0.99),
    st.floats(0, 1, exclude_max=True),
)
def test_draw_inverts_the_nucleus_of_a_plain_reference(
    logits: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    probs = _nucleus(logits, temperature, top_p)
    steps = np.concatenate([[0], probs.cumsum()])
    steps[-1] = 1  # the sum may end below 1 by rounding, and a draw may lie between
    ordered = np.sort(_nucleus(logits, temperature, 1))[::-1].cumsum()
    if np.abs(steps[1:-1] - uniform).min(initial=1) < 1e-9 or np.abs(ordered - top_p).min() < 1e-9:
        return  # a tie at the last bit has no one answer
    token, *_ = draw(torch.tensor([logits]).double(), torch.tensor([uniform]).double(), temperature, top_p)
    assert steps[int(token)] <= uniform < steps[int(token) + 1]
    assert probs[int(token)] > 0


KINDS = {
    "flat": lambda logits: torch.zeros_like(logits),
    "nearly flat": lambda logits: logits / 100,
    "peaked": lambda logits: logits * 8,
    "tied": lambda logits: logits.round(),
    "some impossible": lambda logits: torch.where(logits < 0, -torch.inf, logits).index_fill(
        1, torch.tensor([0]), 1.0
    ),
}


@given(
    st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4),
    st.integers(2, 40) | st.integers(41, 2000),
    st.floats(0.01, 0.999) | st.sampled_from([0.25, 0.5, 0.75, 0.9]),
    st.integers(0, 2**31),
)
def test_the_nucleus_ends_bit_for_bit_where_a_whole_sort_ends_it(
    kinds: list[str], num_tokens: int, top_p: float, seed: int
) -> None:
    logits = torch.randn(len(kinds), num_tokens, generator=torch.Generator().manual_seed(seed)).double()
    probs = torch.cat([KINDS[kind](row[None]) for kind, row in zip(kinds, logits, strict=True)]).exp()
    ordered = probs.sort(-1, descending=True).values
    ahead = ordered.cumsum(-1)
    width = (ahead - ordered < top_p * ahead[:, -1:]).sum(-1, keepdim=True)
    assert torch.equal(sampler.least_of_nucleus(probs, top_p), ordered.gather(-1, width - 1))


def test_the_nucleus_ends_within_rounding_of_top_p_as_in_a_whole_sort() -> None:
    probs = torch.rand(1, 800, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 40
    ordered = probs.sort(-1, descending=True).values
    ahead = ordered.cumsum(-1)
    edges = (ahead / ahead[:, -1:])[0, :30]
    for top_p in torch.cat([edges, edges.nextafter(edges * 0), edges.nextafter(edges * 2)]).tolist():
        width = int((ahead - ordered < top_p * ahead[:, -1:]).sum())
        assert float(sampler.least_of_nucleus(probs, top_p)) == float(ordered[0, width - 1])


def test_weights_that_are_not_numbers_are_told_by_the_entropy() -> None:
    logits = torch.stack([torch.full((40,), torch.nan), torch.zeros(40)])
    tokens, entropy, _ = draw(logits, torch.full((2,), 0.5, dtype=torch.float64), 1.0, 0.9)
    assert entropy.isnan().tolist() == [True, False]
    assert ((tokens >= 0) & (tokens < 40)).all()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.95), (1.7, 0.5)])
def test_frequencies_follow_temperature_and_top_p(temperature: float, top_p: float) -> None:
    logits = torch.linspace(-2, 3, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    uniform = torch.from_numpy(hashes.uniforms(hashes.stream_keys(1, [str(i) for i in range(20_000)]), 7))
    tokens, *_ = draw(logits.expand(20_000, -1), uniform, temperature, top_p)
    expected = _nucleus(logits.tolist(), temperature, top_p) * 20_000
    counts = np.bincount(tokens, minlength=40)
    assert counts[expected == 0].sum() == 0
    assert scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 0.01


def test_entropy_is_that_of_the_models_own_distribution() -> None:
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)) * 3
    logits[0, 10:] = -torch.inf
    uniform = torch.full((30,), 0.5, dtype=torch.float64)
    expected = [scipy.stats.entropy(np.exp(row - row.max())) for row in logits.double().numpy()]
    for temperature, top_p in ((1.0, 1.0), (0.5, 0.3), (0.0, 1.0)):
        np.testing.assert_allclose(draw(logits, uniform, temperature, top_p)[1], expected, rtol=1e-12)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_never_draw_an_impossible_token(uniform: float) -> None:
    logits = torch.full((200, 30), -torch.inf)
    logits[:, 3:20] = torch.randn(200, 17, generator=torch.Generator().manual_seed(0))
    tokens, *_ = draw(logits, torch.full((200,), uniform, dtype=torch.float64), 0.8, 1.0)
    assert Counter(tokens.tolist()) == {3 if uniform == 0 else 19: 200}


def test_a_large_vocabulary_is_drawn_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(11, 50, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = draw(logits, uniform, 0.9, 0.9)
    monkeypatch.setitem(sampler.DRAW_ELEMENTS, "cpu", 150)
    parts = draw(logits, uniform, 0.9, 0.9)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
    assert torch.equal(whole[2], parts[2])
