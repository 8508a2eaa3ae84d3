"""Draws responses from a model in this process, each with random numbers of its own: the engine `torch`.

Token t of a response is drawn by inverting the cumulative distribution at one uniform number,

    token = min { v : Σ_{w ≤ v} q(w) > u · Σ_w q(w) },    u = uniform(sampling.seed, response_id, t) in [0, 1),

where q is the model's distribution at the sampling temperature, cut to its nucleus: the fewest most likely tokens
whose probabilities reach top_p (tokens that tie with the last of them stay too). The number u is a hash of its three
arguments (SplitMix64, Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195, keyed by SHA-256), so that it depends on
no other response. Probabilities are reduced in float64; logits of one response in different batches differ by about
1e-6, which moves a token only where u comes that close to a step of the cumulative sum.

What this leaves out: of a checkpoint's generation_config only the end tokens are read (no repetition penalty, no
top-k).

Legend: B responses of a shard, P distinct prompts among them, T tokens, V vocabulary, K heads of keys, G query heads
per head of keys, D size of a head. Entropies are in nats.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from oxa.config.section import Sampling
from oxa.errors import DataError
from oxa.generation.attention import empty_cache, sees_all, share_keys_among_query_heads
from oxa.generation.requests import Generation, Note, Shard
from oxa.hashes import stream_keys, uniforms
from oxa.model import loading
from oxa.model.loading import end_ids

if TYPE_CHECKING:
    from oxa.config.generate import Generate

COMPACT_BELOW = 0.7  # share of unfinished rows under which the finished ones are taken out of the batch
DRAW_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
"""Probabilities in float64 that exist at the same time. 4 MiB stay in a processor's caches between the passes over
them: at 152k tokens and 64 rows a draw takes a fifth of the time that it takes with 128 MiB."""

FEW = 16  # a nucleus of a trained model is narrower than this part of the vocabulary
ROUNDING = 1e-9  # relative; more than sums of a million float64 in two orders differ by


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B], entropies [B] and the tokens' ln p [B] (both float64) from logits [B, V] and uniforms [B] (float64).

    Temperature 0 takes the most likely token. The entropy is the model's own, whatever temperature and top_p; p is at
    the temperature, before the nucleus.
    """
    rows = max(1, DRAW_ELEMENTS["cpu" if logits.device.type == "cpu" else "cuda"] // logits.shape[1])
    if len(logits) > rows:
        parts = zip(logits.split(rows), uniform.split(rows), strict=True)
        drawn = zip(*(draw(part, u, temperature, top_p) for part, u in parts), strict=True)
        token, entropy, log_p = map(torch.cat, drawn)
        return token, entropy, log_p
    shifted = logits.to(torch.float64, copy=True)
    shifted.sub_(shifted.amax(-1, keepdim=True))
    # e**-800 is 0 in float64, and 0 · 800 is 0 where 0 · ∞ is not a number
    shifted.clamp_(min=-800 * max(1, temperature))
    probs = shifted.exp()
    total = probs.sum(-1)
    entropy = total.log() - torch.linalg.vecdot(probs, shifted) / total
    if temperature == 0:
        return logits.argmax(-1), entropy, torch.zeros_like(entropy)
    if temperature != 1:
        probs = (shifted / temperature).exp_()
        total = probs.sum(-1)
    whole, of_whole = total, probs
    if top_p < 1:
        probs = probs.where(probs >= least_of_nucleus(probs, top_p), 0)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    # u < 1, but u · total may round up to total, behind the last token
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, target, right=True)[:, 0]
    token = token.clamp(max=logits.shape[1] - 1)  # only NaN is ever clamped; the caller looks for it
    return token, entropy, (of_whole.gather(-1, token[:, None])[:, 0] / whole).log()


def least_of_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """The last probability [B, 1] that is taken when those of probs [B, V], which need no sum of 1, are added up.

    From the largest on, until the sum ahead reaches top_p of the whole. Only a row whose nucleus may be wider than
    V / FEW tokens, or ends within rounding of top_p, is sorted as a whole.
    """
    few = _largest(probs, max(1, probs.shape[1] // FEW))
    limit = top_p * probs.sum(-1, keepdim=True)
    before = few.cumsum(-1) - few
    fewest, most = ((before < limit * (1 + off)).sum(-1, keepdim=True) for off in (-ROUNDING, ROUNDING))
    least = few.gather(-1, (fewest - 1).clamp(min=0))  # none are taken from NaN; the caller looks for it
    unsure = ((fewest < most) | (most == few.shape[1]))[:, 0]
    if unsure.any():
        ordered = _largest(probs[unsure], probs.shape[1])
        ahead = ordered.cumsum(-1)
        num_taken = (ahead - ordered < top_p * ahead[:, -1:]).sum(-1, keepdim=True)
        least[unsure] = ordered.gather(-1, num_taken - 1)
    return least


def _largest(values: Tensor, k: int) -> Tensor:
    """The k largest [B, k] of values [B, V], from the largest on.

    numpy's vectorised sort takes a tenth of the time of PyTorch's on a CPU, its selection a fifth of that of topk.
    """
    if values.device.type != "cpu":
        return values.topk(k).values
    some = values.numpy()
    if k < values.shape[1]:
        some = np.partition(some, values.shape[1] - k)[:, -k:]
    return torch.from_numpy(np.sort(some)).flip(-1)


def torch_engine(
    model_path: str | Path,
    shards: list[Shard],
    sampling: Sampling,
    engine: Generate,
    note: Note,
    folder: Path,
) -> Iterator[tuple[int, list[Generation]]]:
    """Shard after shard through transformers' model on the first CUDA device, else on the CPU.

    A prompt that fills the model's context gets the empty response, and the others of its shard do not see it.
    """
    note({name: importlib.metadata.version(name) for name in ("torch", "transformers")})
    model, tokenizer = loading.load(model_path)
    share_keys_among_query_heads(model)
    context = loading.context_length(model.config)
    assert all(request.prompt for shard in shards for request in shard), "a prompt has at least one token"
    ends = end_ids(model, tokenizer)
    for index, shard in enumerate(shards):
        made = {
            request.response_id: Generation(request.response_id, "", 0, "length", nan) for request in shard
        }
        fitting = [request for request in shard if len(request.prompt) < context]
        if not fitting:
            yield index, list(made.values())
            continue
        limits = [min(sampling.max_tokens, context - len(request.prompt)) for request in fitting]
        tokens, num_tokens, stopped, entropy, _ = complete(model, fitting, limits, ends, sampling)
        if not entropy.isfinite().all():
            raise DataError(
                f"{model_path}: the model's probabilities are not numbers (NaN); its weights are broken"
            )
        cut = [row[: n - int(end)] for row, n, end in zip(tokens, num_tokens, stopped, strict=True)]
        texts = tokenizer.batch_decode(cut, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for request, text, n, end, h in zip(fitting, texts, num_tokens, stopped, entropy, strict=True):
            reason = "stop" if end else "length"
            made[request.response_id] = Generation(request.response_id, text, int(n), reason, float(h / n))
        yield index, list(made.values())


@torch.inference_mode()
def complete(
    model: Any, shard: Shard, limits: list[int], end_ids: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draws a shard's responses: tokens [B, max limit], num_tokens [B], stopped [B], summed entropies [B], and the
    tokens' ln p [B, max limit] (float32) as `draw` gives it, on the CPU.

    Each distinct prompt is read once and its keys and values are then handed to all its rows. Rows are padded on the
    left; a shard of equal lengths needs no mask. Only the last position's logits are ever computed.
    """
    device = model.device
    keys = stream_keys(sampling.seed, [request.response_id for request in shard])
    limit = torch.tensor(limits, device=device)
    tokens = torch.zeros(len(shard), max(limits), dtype=torch.long, device=device)
    num_tokens = torch.zeros(len(shard), dtype=torch.long, device=device)
    stopped = torch.zeros(len(shard), dtype=torch.bool, device=device)
    entropies = torch.zeros(len(shard), dtype=torch.float64, device=device)
    log_p = torch.zeros(tokens.shape, device=device)

    distinct = dict.fromkeys(tuple(request.prompt) for request in shard)  # in the shard's order
    prompts = {prompt: i for i, prompt in enumerate(distinct)}
    width = max(map(len, prompts))
    ids = torch.tensor(
        [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )  # [P, T]
    length = torch.tensor([len(prompt) for prompt in prompts], device=device)
    padded = bool((length < width).any())
    columns = torch.arange(width + max(limits), device=device)
    mask = (columns >= width - length[:, None]).long()  # [P, longest]
    around = {}
    if padded:
        around = {
            "attention_mask": mask[:, :width],
            "position_ids": (mask[:, :width].cumsum(-1) - 1).clamp(min=0),
        }
    cache = empty_cache(model)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **around).logits[
        :, -1
    ]

    rows = torch.arange(len(shard), device=device)  # [b]: the requests that are still in the batch
    if len(prompts) < len(shard):
        of_prompt = torch.tensor([prompts[tuple(request.prompt)] for request in shard], device=device)
        cache.batch_select_indices(of_prompt)
        logits, length, mask = logits[of_prompt], length[of_prompt], mask[of_prompt]
    alive = torch.ones_like(rows, dtype=torch.bool)
    visible = mask[:, None, None].bool() if padded and sees_all(model, cache) else None
    for step in range(max(limits)):
        uniform = torch.from_numpy(uniforms(keys, step)).to(device)
        token, entropy, of_token = draw(logits, uniform, sampling.temperature, sampling.top_p)
        ended = torch.isin(token, end_ids)
        tokens[rows, step], log_p[rows, step] = token, of_token.float()
        entropies[rows] += entropy * alive
        num_tokens[rows] += alive
        stopped[rows] |= ended & alive
        alive &= ~ended & (step + 1 < limit)
        num_alive = int(alive.sum())
        if num_alive == 0:
            break
        if num_alive < COMPACT_BELOW * len(rows):
            unfinished = alive.nonzero()[:, 0]
            cache.batch_select_indices(unfinished)
            rows, token, length = rows[unfinished], token[unfinished], length[unfinished]
            mask, limit = mask[unfinished], limit[unfinished]
            keys, alive = keys[unfinished.cpu().numpy()], alive[unfinished]
            visible = None if visible is None else visible[unfinished]
        if padded:
            seen = width + step + 1
            around = {
                "attention_mask": mask[:, :seen] if visible is None else visible[..., :seen],
                "position_ids": torch.minimum(length + step, length + limit - 1)[:, None],
            }
        logits = model(input_ids=token[:, None], past_key_values=cache, use_cache=True, **around).logits[
            :, -1
        ]
    return tokens.cpu(), num_tokens.cpu(), stopped.cpu(), entropies.cpu(), log_p.cpu()
