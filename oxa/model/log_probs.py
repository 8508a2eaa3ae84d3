"""A language model on disk and its per-token log-probabilities, never with all logits at once.

Legend: B sequences, T tokens, N scored positions, V vocabulary, H hidden size. Log-probabilities are natural
logarithms, entropies are in nats.

Only safetensors weights are loaded and no code from a checkpoint runs (`trust_remote_code` is off).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from oxa.errors import DataError

LN_2, LOG2_E = math.log(2), 1 / math.log(2)
TILE = {"cpu": 1 << 21, "cuda": 1 << 24}
"""Logits that exist at the same time: what stays in a processor's caches between the passes over it."""
CPU_TOKENS = 1024
"""Tokens of one pass on a CPU, padding included: what passes between layers then stays in its caches, and rows of
unequal length hold little padding. SmolLM2 scores GSM8K's solutions 1.26 times as fast as in passes of 8,192."""
NARROW = 64
"""A product of fewer columns than this, in or out, is not worth oneDNN's copies; an adapter has its rank."""
MIN_WIDTH = 256
"""A tile has this many columns at least, however many positions go together."""


class TokenStatistics(NamedTuple):
    """For the N scored positions, row by row."""

    log_probs: Tensor  # [N] float32, ln p of the token that stands there
    entropies: Tensor  # [N] float32, of the distribution it was drawn from
    ranks: Tensor | None = (
        None  # [N] int64, 1 + the number of tokens that are likelier; where they are asked for
    )


class OneDnn(TorchFunctionMode):
    """Within it, float32 linear layers on a CPU are computed by oneDNN; everything else is left as it is.

    PyTorch hands float32 products to MKL, which keeps to 256-bit instructions on processors that are not Intel's: 100
    GFLOP/s a core on a Zen 5, where oneDNN reaches 220. On Intel's they stay with MKL: 135 GFLOP/s a core on a Xeon
    where oneDNN reaches 105. The products are in full float32 either way.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def products(arguments: Any) -> AbstractContextManager[Any]:
    """For a forward pass in training, by transformers' TrainingArguments: OneDnn on a CPU in float32, else nothing.

    Where the backward pass recomputes the forward one, torch would leave the mode: the two would differ.
    """
    plain = arguments.device.type == "cpu" and not (arguments.bf16 or arguments.gradient_checkpointing)
    return OneDnn() if plain else nullcontext()


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, [..., H] times [V, H] to [..., V]; see OneDnn."""
    if input.device.type != "cpu" or input.dtype != torch.float32 or not one_dnn_is_faster():
        return F.linear(input, weight, bias)
    if min(weight.shape) < NARROW:
        return F.linear(input, weight, bias)
    rows = input.reshape(-1, input.shape[-1])
    is_frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    product = Frozen.apply if is_frozen and torch.is_grad_enabled() else _by_onednn
    out: Tensor = product(rows, weight, bias)
    return out.view(*input.shape[:-1], len(weight))


class Frozen(torch.autograd.Function):
    """The product of [N, H] and a weight [V, H] that is not trained: the backward pass needs the weight alone.

    PyTorch's own would keep oneDNN's copy of the input, which the weight's gradient alone needs.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _by_onednn(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        return _by_onednn(gradients[0], weight.T) if ctx.needs_input_grad[0] else None, None, None


def _by_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(rows.to_mkldnn(), weight, bias).to_dense()


@cache
def one_dnn_is_faster() -> bool:
    """Than MKL, by this machine's processor: see OneDnn."""
    listed = Path("/proc/cpuinfo")  # elsewhere than on Linux, Python may know the maker
    processor = listed.read_text() if listed.exists() else platform.processor()
    return torch.backends.mkldnn.is_available() and "GenuineIntel" not in processor


@torch.no_grad()
def token_statistics(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    scored: Tensor,
    chunk: int,
    temperature: float = 1.0,
    *,
    ranks: bool = False,
) -> TokenStatistics:
    """ln p(token | what stands before it) and entropies at the positions that `scored` marks, p at the temperature.

    input_ids, attention_mask, scored: [B, T], right-padded; scored[:, 0] must be false (nothing stands before it).
    The backbone runs once, without the mask: what is causal never sees the padding behind it, and attention without a
    mask computes half as much. The head runs over `chunk` positions and a tile of the vocabulary at a time, so that at
    most TILE logits exist, reduced in float32. Padding and unscored positions cost the head nothing.
    """
    assert not scored[:, 0].any()
    assert (attention_mask[:, 1:] <= attention_mask[:, :-1]).all()
    if input_ids.device.type == "cpu":
        # glibc maps every large block anew, page by page, until one as large as this has been freed: a tile's product
        # took 6.0 ns a logit before and 2.6 after.
        torch.empty(31 << 20, dtype=torch.uint8)
    with OneDnn():
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    before = hidden[:, :-1][scored[:, 1:]]  # [N, H]
    del hidden
    tokens = input_ids[scored]  # [N]
    head = model.get_output_embeddings()
    bias = head.bias
    if temperature != 1:
        before, bias = before / temperature, None if bias is None else bias / temperature
    parts = [
        _tiled_statistics(before[i : i + chunk], tokens[i : i + chunk], head.weight, bias, ranks=ranks)
        for i in range(0, len(tokens), chunk)
    ]
    if not parts:
        return TokenStatistics(*torch.empty(2 + ranks, 0, device=tokens.device))
    return TokenStatistics(
        *(torch.cat(values) for values in zip(*(part[: 2 + ranks] for part in parts), strict=True))
    )


def _tiled_statistics(
    before: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None, *, ranks: bool = False
) -> TokenStatistics:
    """Of N positions with hidden states [N, H] and their tokens [N], one tile of the vocabulary [V, H] after the other.

    In bits, d = z / ln 2 - m with m the highest logit so far, S = Σ 2^d and U = Σ d 2^d over the tiles so far:
    ln p = (d_token - log2 S) ln 2, entropy = (log2 S - U / S) ln 2. A higher m' adds f = m - m' to d, multiplies S by
    2^f and makes U 2^f (U + f S), as in online softmax (Milakov and Gimelshein, arXiv 1805.02867). Powers of two,
    since on a CPU exp2 takes 0.15 ns a logit where exp, which asks MKL, takes 0.7 to 1.1.

    `ranks` count what is above the token's own logit tile by tile, so that this is computed before all others.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    highest = torch.full((len(tokens),), torch.finfo(torch.float32).min, device=tokens.device)
    chosen, sums, weighted = torch.zeros(3, len(tokens), device=tokens.device)
    rank = torch.ones_like(tokens) if ranks else None
    own = _own_logits(before, tokens, weight, bias) if ranks else None
    width = max(MIN_WIDTH, TILE[tokens.device.type] // len(tokens))
    for start in range(0, len(weight), width):
        tile = slice(start, start + width)
        logits = linear(before, weight[tile], None if bias is None else bias[tile]).float()
        if rank is not None and own is not None:
            rank += _above(logits, own, tokens - start)
        higher = torch.maximum(highest, logits.amax(-1) * LOG2_E)
        shift, highest = highest - higher, higher
        scale = shift.exp2()
        bits = torch.add(-higher[:, None], logits, alpha=LOG2_E, out=logits)
        here = (tokens >= start) & (tokens < start + width)
        at = (tokens - start).clamp(0, bits.shape[1] - 1)
        chosen = torch.where(here, bits[rows, at], chosen + shift)
        powers = bits.exp2()
        weighted = (weighted + shift * sums) * scale
        sums = sums * scale + powers.sum(-1)
        weighted += powers.mul_(bits).sum(-1)
    normalizer = sums.log2()
    return TokenStatistics((chosen - normalizer) * LN_2, (normalizer - weighted / sums) * LN_2, rank)


def _own_logits(before: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N] float32, each token's own, up to the order of its sum."""
    logits = (before.float() * weight[tokens].float()).sum(-1)
    if bias is not None:
        logits += bias[tokens].float()
    return logits.to(before.dtype).float()


def _above(logits: Tensor, own: Tensor, places: Tensor) -> Tensor:
    """[N] int32, how many of the logits [N, W] are above one's own, which stands at the place, if in the tile."""
    above = logits > own[:, None]
    here = (places >= 0) & (places < logits.shape[1])
    above[here, places[here]] = False
    return above.sum(-1, dtype=torch.int32)  # twice as fast as into int64


@torch.no_grad()
def top_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, num: int) -> Tensor:
    """[N, num] float32, the highest of hidden states [N, H] before a head [V, H], in no order; all, where V is less.

    One tile of the vocabulary after the other, so that few more than TILE logits exist.
    """
    best = torch.empty(len(hidden), 0, device=hidden.device)
    width = max(MIN_WIDTH, TILE[hidden.device.type] // max(1, len(hidden)))
    for start in range(0, len(weight), width):
        tile = slice(start, start + width)
        logits = linear(hidden, weight[tile], None if bias is None else bias[tile]).float()
        best = torch.cat([best, logits], 1)
        best = best.topk(min(num, best.shape[1]), sorted=False).values
    return best


def batch_statistics(
    model: Any,
    sequences: Sequence[np.ndarray],
    starts: Sequence[int],
    chunk: int,
    temperature: float = 1.0,
    *,
    ranks: bool = False,
) -> tuple[TokenStatistics, np.ndarray]:
    """Statistics of B sequences of ids, each from its start on, row by row; and the int64 [B] numbers of positions.

    On a CPU a few at a time, as CPU_TOKENS says.
    """
    limit = CPU_TOKENS if model.device.type == "cpu" else None
    parts = []
    for part in _passes([len(ids) for ids in sequences], limit):
        ids, mask, scored = (tensor.to(model.device) for tensor in padded(sequences[part], starts[part]))
        parts.append(token_statistics(model, ids, mask, scored, chunk, temperature, ranks=ranks))
    whole = (torch.cat(values) for values in zip(*(part[: 2 + ranks] for part in parts), strict=True))
    counts = np.array([max(0, len(ids) - start) for ids, start in zip(sequences, starts, strict=True)])
    return TokenStatistics(*whole), counts


def _passes(lengths: Sequence[int], limit: int | None) -> Iterator[slice]:
    """Cuts sequences into runs that take `limit` tokens at most, padding included, or hold one sequence."""
    start = 0
    for end in range(1, len(lengths) + 1):
        is_last = end == len(lengths)
        if is_last or (limit is not None and (end + 1 - start) * max(lengths[start : end + 1]) > limit):
            yield slice(start, end)
            start = end


def padded(sequences: Sequence[np.ndarray], starts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask and scored for `token_statistics`."""
    input_ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    scored = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        input_ids[row, : len(ids)] = torch.from_numpy(ids)
        attention_mask[row, : len(ids)] = 1
        scored[row, start : len(ids)] = True
    return input_ids, attention_mask, scored


@torch.no_grad()
def check_head(model: Any, input_ids: Tensor) -> None:
    """Holds our log-probabilities of one short text, [1, T], against the model's own forward pass.

    Raises DataError where they differ: an architecture that caps or scales its logits would be scored wrongly.
    """
    mask = torch.ones_like(input_ids)
    scored = mask.bool()
    scored[:, 0] = False
    ours = token_statistics(model, input_ids, mask, scored, input_ids.numel()).log_probs
    log_p = (
        model(input_ids=input_ids, attention_mask=mask, use_cache=False)
        .logits[0, :-1]
        .float()
        .log_softmax(-1)
    )
    theirs = log_p.gather(-1, input_ids[0, 1:, None])[:, 0]
    worst = (ours - theirs).abs().max().item()
    if worst > (1e-3 if model.dtype == torch.float32 else 0.1):
        raise DataError(
            f"{model.config.model_type} models cannot be scored: their forward pass changes the logits behind the "
            f"head (log-probabilities differ by up to {worst:.3g}); use another student"
        )
