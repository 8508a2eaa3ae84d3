"""Section `plan`: what `oxa plan` assumes where nothing else says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oxa.config.section import Count, Name, Positive, Section


class Shape(Section):
    """A student's sizes, as its published config.json has them."""

    hidden_size: Count
    """Width of the residual stream."""
    num_layers: Count
    """Transformer blocks."""
    num_heads: Count
    """Attention heads a layer."""
    num_kv_heads: Count
    """Key-value heads a layer."""
    intermediate_size: Count
    """Width of the feed-forward part."""
    vocab_size: Count
    """Rows of the embedding."""
    tie_word_embeddings: bool = False
    """Whether the output head is the embedding."""


class Device(Section):
    """One device, by its data sheet."""

    name: str
    """What it is called in the printout."""
    kind: Literal["cuda", "cpu"] = "cuda"
    """A GPU, or a machine's cores together."""
    memory: Positive
    """GiB."""
    bandwidth: Positive
    """Of its memory, TB/s."""
    bfloat16: Positive
    """Dense peak with bfloat16, TFLOP/s."""
    float32: Positive
    """Dense peak with float32, TFLOP/s."""


class Plan(Section):
    """What `oxa plan` assumes where neither data nor the other sections say. No stage reads it."""

    shape: Shape | None = None
    """The student, where its config.json is not at hand."""
    device: Device | None = None
    """None: what this machine has."""
    devices: Count | None = None
    """Devices that a stage gets; none: all that this machine has."""
    fsdp: bool = False
    """Train and rlvr spread weights, gradients and optimizer state over the devices; false: each holds all."""
    utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the device's peak that is reached."""
    problems: Count | None = None
    """Training problems behind ingestion."""
    responses_per_problem: Positive | None = None
    """Teacher responses a training problem."""
    benchmark_problems: dict[Name, Count] = {}
    """Problems of a benchmark."""
    response_tokens: Count | None = None
    """Mean length of a teacher response, tokens."""
    longest_tokens: Count | None = None
    """Mean length of those chosen longest first, tokens; none: as all others."""
    generated_tokens: Count | None = None
    """Mean length of what a model of this pipeline writes, tokens; none: as long as max_tokens allows."""
