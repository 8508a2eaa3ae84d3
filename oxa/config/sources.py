"""Section `sources`, and how a source of problems or responses is named wherever one is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from oxa.config.section import Count, Section, Seed


class Mapping(Section):
    """Names a source's columns. A built-in mapping is given by its name instead."""

    question: str
    """Column with the problem's text, or with a chat, whose user turn it is. Here as below, dots lead into nested
    columns: `reward_model.ground_truth`, `conversations.0.value`."""
    answer: str | None = None
    """Column with the gold answer, or a list of accepted ones. None: the source carries none; what a row's own response
    boxed is then taken for it, and counted as such (not for benchmarks)."""
    responses: str | tuple[str, ...] | None = None
    """Column with one response (text, or a chat, whose assistant turn it is) or a list of them, or several such
    columns. None: the source carries no responses."""
    reasoning: str | tuple[str, ...] | None = None
    """Column with the responses' reasoning where it stands apart, one for each column of `responses`; it is put in
    front of them in <think> marks. A chat's own (`reasoning_content` and the like) is found without."""
    tier: str | None = None
    """Column with the difficulty, if any; metrics are then also given by tier."""
    think: tuple[str, str] = ("<think>", "</think>")
    """How the source opens and closes reasoning; rewritten to <think> and </think>."""
    system: Literal["reject", "drop"] = "reject"
    """A chat with a system turn, which no student is shown: `reject` drops the row (`system_turn`), `drop` the turn."""

    @property
    def response_columns(self) -> tuple[str, ...]:
        return _listed(self.responses)

    @property
    def reasoning_columns(self) -> tuple[str, ...]:
        return _listed(self.reasoning)

    @model_validator(mode="after")
    def _reasoning_belongs_to_responses(self) -> Mapping:
        if self.reasoning is not None and len(self.reasoning_columns) != len(self.response_columns):
            raise ValueError("`reasoning` needs one column for each of `responses`")
        return self


def _listed(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


class Source(Section):
    """One file, hub dataset or generated set."""

    source: Annotated[str, Field(min_length=1)]
    """`world`; `hf:owner/name[:config][:split]` (a single part is a split if it is called train, validation or
    test; the default split is train); or, under `sources.folder`, a .jsonl, .json or .parquet file (the first two also
    as .gz or .zst), a folder of them, or a pattern such as `name/**/train-*.parquet`."""
    mapping: str | Mapping | None = None
    """A built-in mapping's name (oxa/data/mappings.py) or the columns; none is needed for `world`."""
    local: Annotated[str, Field(min_length=1)] | None = None
    """File, folder or pattern under `sources.folder` that is read in place of the hub's dataset when it is there."""
    revision: str | None = None
    """Commit of the hub dataset; without it the newest is taken, and two runs may differ."""
    part: Annotated[str, Field(pattern=r"^\d+/\d+$")] | None = None
    """`i/n`: only problems whose hash falls into part i (from 0) of n; disjoint parts share no problem."""
    limit: Count | None = None
    """Keep this many problems, chosen by hash (the same ones whatever the file's order)."""

    @model_validator(mode="after")
    def _has_mapping(self) -> Source:
        if self.source != "world" and self.mapping is None:
            raise ValueError(f"source {self.source!r} needs a `mapping`")
        if self.part is not None:
            index, count = map(int, self.part.split("/"))
            if index >= count:
                raise ValueError(f"part {self.part!r} must be i/n with i below n")
        return self


class World(Section):
    """The small world's sizes (oxa/data/world.py)."""

    seed: Seed = 0
    """Seed of everything generated: problems, wordings, the teacher's choices, the corpus."""
    num_train: Count = 1500
    """Training problems."""
    num_rlvr: Count = 600
    """Problems for RL; no response is given to them."""
    num_benchmark: Count = 200
    """Problems of the benchmark `world`, over all tiers."""
    num_teacher: Count = 4
    """Teacher responses a training problem."""
    strategy_documents: Count = 45_000
    """Documents of the corpus in which the rare strategies are learnt; after them the habit sets in."""


class Sources(Section):
    """Where local data lies."""

    folder: str = "sources"
    """File or folder that holds every local source; DVC watches it for changes."""
    world: World = World()
    """What the source `world` generates."""
