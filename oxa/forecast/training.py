"""FLOPs and bytes of a training step, of all weights or of a low-rank adapter beside frozen ones.

FLOPs, counted and named as in cost.py:

    all weights     backward                twice the forward pass
                    gradient checkpointing  one more forward of the blocks, but for the last product of each
                    fused head, backward    one more product with the head: its tiles are made again
    an adapter      backward                as long as the forward pass where weights are frozen, twice it in attention
                                            and in the adapter, whose P entries a token passes beside them: 2 P
                    fused head, backward    no product for the head's own gradient

Bytes, as the trainers hold them: float32 weights 4 N, gradients 4 N, AdamW's two moments 8 N, or 2 N in 8 bits but for
the embedding's (transformers keeps those in 32), and with pages none on the device; with bfloat16 the copies that
autocast makes of the blocks' matrices, 2 M. FSDP cuts all but one gathered block, embedding and head by the number of
devices; DDP keeps all and adds its buckets, 4 N.

With an adapter gradients and moments are of its P entries alone. Frozen matrices lie in the type of the arithmetic, or
in 4 bits (QLoRA, arXiv 2305.14314), embeddings and norms in float32; where vLLM generates, TRL adds the adapter to them
for it and takes it away again, so that they stay in float32, as under FSDP. The reference of RL and of KTO is the model
without the adapter: no second one.

What a block of Llama's or Qwen2's kind keeps for the backward pass, a token, is counted in `kept_by_block`, which a
test holds against autograd's own list.
"""

from __future__ import annotations

from typing import NamedTuple

from oxa.config import fine_tuning
from oxa.config.fine_tuning import Optimizer
from oxa.errors import ConfigError
from oxa.forecast.cost import BYTES, Memory, Shape, forward_flops

HEAD_TILE = (4096, 32_768)  # tokens and vocabulary entries of a tile of TRL 1.16's fused head
NF4 = (
    0.5 + 1 / 64 + 4 / 64 / 256
)  # bytes an entry: the largest of every 64 in 8 bits, of 256 of these in float32
EIGHT_BIT = 2 * (
    1 + 4 / 256
)  # bytes of two moments: 8 bits each, and the largest of every 256 (bitsandbytes 0.50)


class Adapter(NamedTuple):
    """Of a low-rank adapter: A [rank, inputs] and B [outputs, rank] beside each of its matrices, in all blocks."""

    rank: int
    num_matrices: int
    parameters: int
    inputs: int
    """Widths of what enters its matrices, added up."""
    distinct_inputs: int
    """The same, what several matrices of a block read counted once, and attention's output, kept anyway, not at all."""
    ends_block: bool
    """The last matrix of a block has one."""
    dropout: bool
    quantized: bool
    """The frozen matrices lie in 4 bits."""


def adapter_of(shape: Shape, section: fine_tuning.Adapter, key: str) -> Adapter:
    """`key` names the section. Raises ConfigError where a target is no matrix of the model."""
    suffixes = () if section.targets == "all-linear" else section.targets
    names = [name for name, *_ in shape.linears]
    for suffix in suffixes:
        if not any(f".{name}".endswith(f".{suffix}") for name in names):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            raise ConfigError(f"{key}.targets: no matrix of the student is called {suffix!r}; it has {known}")
    chosen = [
        (name, inputs, outputs)
        for name, inputs, outputs in shape.linears
        if not suffixes or any(f".{name}".endswith(f".{suffix}") for suffix in suffixes)
    ]
    read = {(name.rpartition(".")[0], inputs) for name, inputs, _ in chosen if not name.endswith("o_proj")}
    return Adapter(
        rank=section.rank,
        num_matrices=len(chosen),
        parameters=section.rank * sum(inputs + outputs for _, inputs, outputs in chosen),
        inputs=sum(inputs for _, inputs, _ in chosen),
        distinct_inputs=sum(inputs for _, inputs in read),
        ends_block=chosen[-1] == shape.linears[-1],
        dropout=section.dropout > 0,
        quantized=section.quantize is not None,
    )


def training_flops(
    shape: Shape,
    tokens: float,
    squares: float,
    scored: float,
    *,
    checkpointing: bool,
    adapter: Adapter | None = None,
) -> float:
    blocks = forward_flops(shape, tokens, squares, 0)
    last = 2 * shape.layers * shape.hidden * shape.intermediate * tokens
    if adapter is None:
        return 3 * blocks + (blocks - last) * checkpointing + 8 * shape.head * scored
    frozen, low = 2 * shape.matrices * tokens, 2 * adapter.parameters * tokens
    if adapter.ends_block:
        last = 2 * shape.layers * shape.hidden * adapter.rank * tokens
    again = (blocks + low - last) * checkpointing
    return 3 * (blocks + low) - frozen + again + 6 * shape.head * scored


def kept_by_block(
    shape: Shape,
    dtype: str,
    *,
    longest: int,
    padded: bool,
    adapter: Adapter | None = None,
    cuda: bool = False,
) -> float:
    """Bytes a token that one block keeps for the backward pass.

    float32: input, normalised and scaled input twice over (6 H), queries and attention's output (2 Q), keys and values
    (2 K), four of the feed-forward part (4 I). Autocast keeps the residual stream and both norms in float32 (4 H) and
    casts what enters each of five matrices anew. Padding copies keys and values for every query head and keeps a mask.

    With an adapter a frozen norm keeps its input alone (2 H in float32), the feed-forward part three (3 I), and every
    matrix A what enters it: in float32 as it is, in bfloat16 a copy of each one's own, since peft casts to the
    adapter's float32 and autocast back. Dropout makes a copy for each, too, and a mask (bytes on CUDA, else float32).
    """
    number = BYTES[dtype]
    kept = number * 2 * (shape.queries + (shape.queries if padded else shape.keys))
    kept += 4 * shape.heads + 8 + (number * longest if padded else 0)
    if adapter is None:
        stream = 24 * shape.hidden if dtype == "float32" else 16 * shape.hidden + 10 * shape.hidden
        return kept + stream + number * 4 * shape.intermediate
    copied = adapter.dropout or dtype == "bfloat16"
    entering = number * (adapter.inputs if copied else adapter.distinct_inputs)
    if adapter.dropout:
        entering += (1 if cuda else 4) * adapter.inputs
    entering += number * adapter.rank * adapter.num_matrices
    return kept + 8 * shape.hidden + number * 3 * shape.intermediate + entering / shape.layers


def training_memory(
    shape: Shape,
    *,
    tokens: int,
    longest: int,
    dtype: str,
    checkpointing: bool,
    devices: int = 1,
    fsdp: bool = False,
    reference: bool = False,
    cuda: bool = True,
    adapter: Adapter | None = None,
    exact: bool = False,
    optimizer: Optimizer = "adamw",
) -> Memory:
    """A step's peak for micro-batches of `tokens` tokens, padding included, the longest row of `longest`.

    `reference`: a second copy of the weights, to which the policy is held. `cuda`: the fused head's kernels are to be
    had; without them its tile exists eight times in float32. `exact`: frozen weights are not rounded.
    """
    number, share, block = BYTES[dtype], devices if fsdp else 1, shape.matrices / shape.layers
    entry = _entry_bytes(dtype, adapter, exact or fsdp)
    if adapter is None:
        trained, in_32_bits = shape.parameters, shape.head
        frozen, copies = 0.0, 2.0 * shape.matrices * (number == 2)
    else:
        trained, in_32_bits = adapter.parameters, 0
        head = 0 if shape.tied else shape.head
        frozen = (
            4 * (shape.parameters - shape.matrices - head)
            + (4 if exact or fsdp else number) * head
            + entry * shape.matrices
        )
        copies = 2 * trained * (number == 2) + _frozen_copies(shape, number, entry, checkpointing)
    gathered = 4 * shape.head * (1 if shape.tied else 2) + 2 * entry * block
    moments = {
        "adamw": 8 * trained,
        "adamw_8bit": EIGHT_BIT * (trained - in_32_bits) + 8 * in_32_bits,
        "paged_adamw_8bit": 0,
    }
    kept = kept_by_block(shape, dtype, longest=longest, padded=tokens > longest, adapter=adapter, cuda=cuda)
    # checkpointing: every block's input, and all of the block that is computed again
    stored = shape.layers * 4 * shape.hidden + kept if checkpointing else shape.layers * kept
    working = 3 * number * shape.intermediate + 12 * shape.hidden
    rows, columns = min(tokens, HEAD_TILE[0]), min(shape.vocab, HEAD_TILE[1])
    tile = rows * (HEAD_TILE[1] * number if cuda else columns * 32)
    tile += 2 * columns * shape.hidden * (number == 2)
    return Memory(
        weights=(2 if reference else 1) * (frozen + 4 * trained) / share + (gathered if fsdp else copies),
        gradients=4 * trained / share + (4 * trained if devices > 1 and not fsdp else 0),
        optimizer=moments[optimizer] / share,
        activations=tokens * (stored + working),
        logits=tile + (0 if adapter else 4 * shape.head) + 4 * tokens * shape.hidden,
    )


def _entry_bytes(dtype: str, adapter: Adapter | None, exact: bool) -> float:
    """Of the blocks' matrices."""
    if adapter is None:
        return 4
    if adapter.quantized:
        return NF4
    return 4 if exact else BYTES[dtype]


def _frozen_copies(shape: Shape, number: int, entry: float, checkpointing: bool) -> float:
    """Bytes of the copies in the type of the arithmetic that are alive at once: the backward pass needs those of
    float32 matrices, and makes those of 4 bits anew, one at a time."""
    if entry < number:
        return number * shape.hidden * shape.intermediate
    return number * shape.matrices / (shape.layers if checkpointing else 1) if entry > number else 0
