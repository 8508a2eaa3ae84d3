"""FLOPs and bytes that a decoder takes, from its shape alone; those of a training are in training.py.

FLOPs, two a multiply-add, matrix products only (arXiv 2001.08361, §2.1; arXiv 2204.02311, appendix B):

    forward, a token        2 M + 2 V H + 4 L Q T

M are the entries of the blocks' matrices; the last term is attention over T positions, counted over the whole [T, T]
square as that paper and torch.utils.flop_counter do (a causal kernel may leave out half of it). A generated token sees
only what stands before it. Numbers of many sequences need Σ T and Σ T².

Legend: N parameters, M matrix entries of all blocks, L blocks, H hidden size, Q and K widths of queries and of keys,
I width of the feed-forward part, V vocabulary, B sequences, T positions of the longest, b bytes a number.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from oxa.errors import DataError
from oxa.generation import sampler
from oxa.model import log_probs

GIB = 2**30
VLLM_WORKING = 2 * GIB  # what vLLM keeps for a step's activations and its graphs, beside weights and cache
BYTES = {"float32": 4, "bfloat16": 2}


class Shape(NamedTuple):
    """What the formulas need to know of a model."""

    hidden: int
    layers: int
    heads: int
    queries: int
    keys: int
    intermediate: int
    vocab: int
    tied: bool
    parameters: int
    matrices: int
    """Entries of the blocks' matrices: what a token is multiplied with, the head left out."""
    context: int
    linears: tuple[tuple[str, int, int], ...]
    """Name, inputs and outputs of every matrix of the blocks, in their order: what an adapter can change."""

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @property
    def cache(self) -> int:
        """Numbers that a position leaves in the cache of keys and values."""
        return 2 * self.layers * self.keys


class Memory(NamedTuple):
    """Bytes on one device at the peak, by what they are."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    logits: float = 0
    cache: float = 0

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def state(self) -> float:
        """What no smaller batch makes less."""
        return self.weights + self.gradients + self.optimizer


def shape_of(config: Any) -> Shape:
    """The shape of the model that a transformers config describes, built without memory to count its parameters.

    Raises DataError for models with experts, of whose weights a token passes some only.
    """
    text = config.get_text_config()
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise DataError(
            f"{config.name_or_path or text.model_type}: a mixture of experts cannot be planned; its weights are not "
            "all used by every token"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    blocks = [p for p in model.parameters() if p.dim() == 2 and id(p) not in ends]
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        queries=text.num_attention_heads * size,
        keys=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * size,
        intermediate=text.intermediate_size,
        vocab=text.vocab_size,
        tied=len(ends) == 1,
        parameters=model.num_parameters(),
        matrices=sum(p.numel() for p in blocks),
        context=getattr(text, "max_position_embeddings", None) or 2**31,
        linears=tuple(
            (name, m.in_features, m.out_features) for name, m in linears if id(m.weight) not in ends
        ),
    )


def forward_flops(shape: Shape, tokens: float, squares: float, scored: float) -> float:
    """Σ T, Σ T² and the number of positions that pass the head."""
    return 2 * shape.matrices * tokens + 4 * shape.layers * shape.queries * squares + 2 * shape.head * scored


def generation_flops(
    shape: Shape, num: float, tokens: float, squares: float, prompt: float, *, reused: int = 1
) -> float:
    """`num` responses of together `tokens` tokens and Σ T² `squares` to prompts of `prompt` tokens.

    A prompt's keys and values serve `reused` responses.
    """
    seen = prompt * tokens + squares / 2
    return (
        forward_flops(shape, num / reused * prompt, num / reused * prompt**2, num / reused)
        + 2 * (shape.matrices + shape.head) * tokens
        + 4 * shape.layers * shape.queries * seen
    )


def decoding_bytes(
    shape: Shape, tokens: float, squares: float, prompt: float, *, together: float, number: int
) -> float:
    """Read from memory: all weights once a step for `together` responses, and every response's cache a token."""
    seen = prompt * tokens + squares / 2
    return number * (shape.parameters * tokens / together + shape.cache * seen)


def scoring_memory(
    shape: Shape, *, tokens: int, dtype: str, chunk: int, tile: int, onednn: bool = False
) -> Memory:
    """A forward pass over `tokens` tokens, padding included, and the head over `chunk` positions at a time.

    log_probs.py holds the last hidden states twice, and about three times in float32 the `tile` logits, or MIN_WIDTH
    of every position of the chunk where those are more. `onednn`: products on a CPU in float32, whose inputs and
    outputs log_probs.py copies: measured, the feed-forward part then takes twice as much.
    """
    number = BYTES[dtype]
    return Memory(
        weights=number * shape.parameters,
        activations=tokens * forward_working(shape, number, copies=2 if onednn else 1),
        logits=12 * max(tile, log_probs.MIN_WIDTH * min(chunk, tokens)) + number * tokens * shape.hidden,
    )


def forward_working(shape: Shape, number: int, copies: int = 1) -> float:
    """Bytes a token that are alive at once in a forward pass which keeps nothing: the residual stream, a norm's float32
    copies, and either attention's or the feed-forward part's."""
    return number * (
        2 * shape.hidden + max(3 * copies * shape.intermediate, 4 * shape.queries + 2 * shape.keys)
    )


def sampling_memory(
    shape: Shape, *, batch: int, prompts: int, prompt: int, length: int, dtype: str, kind: str
) -> Memory:
    """The built-in sampler with `batch` responses of up to `length` tokens to `prompts` distinct prompts at once.

    A draw holds about six copies in float64 of as many probabilities as sampler.py allows on the `kind` of device.
    """
    number = BYTES[dtype]
    return Memory(
        weights=number * shape.parameters,
        activations=prompts * prompt * forward_working(shape, number),
        logits=number * batch * shape.vocab + 6 * 8 * min(batch * shape.vocab, sampler.DRAW_ELEMENTS[kind]),
        cache=number * shape.cache * batch * (prompt + length),
    )


def vllm_memory(shape: Shape, number: int, tensor_parallel: int, *, longest: float, room: float) -> Memory:
    """One device of a vLLM server, which fills its `room`, bytes, with keys and values.

    These are of one sequence of `longest` tokens at least. `number`: bytes a number.
    """
    weights = number * shape.parameters / tensor_parallel
    one = number * shape.cache * longest / tensor_parallel
    return Memory(
        weights=weights,
        activations=VLLM_WORKING,
        cache=math.floor(max(one, room - weights - VLLM_WORKING)),
    )
