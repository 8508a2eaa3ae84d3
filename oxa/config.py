"""params.yaml as frozen, checked sections: one a stage, plus what several stages share.

Every number of a run lives in params.yaml. Unknown keys, wrong types and values out of range are a
`ConfigError` that names the file and the key's path. A stage is handed its own section only.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from oxa.errors import ConfigError

PAPER_SUFFIX = (
    "\nLet's reason step by step. Enclose the reasoning process within <think>...</think>, then summarize it "
    "and present the final answer within \\boxed{} — for example: <think>reasoning process here</think> "
    "\\boxed{answer here}."
)

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_QUANTILE = re.compile(r"quantile\((0?\.\d+)\)")
_TOKENS = re.compile(r"tokens\(([1-9]\d*)\)")
_ENTROPY = re.compile(r"entropy\((\d*\.?\d+)\)")


def _argument(pattern: re.Pattern[str], value: Any) -> str | None:
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    return match[1] if match else None


def quantile_of(mean: float | str) -> float | None:
    """q of `quantile(q)`; None of a number."""
    q = _argument(_QUANTILE, mean)
    return None if q is None else float(q)


def tokens_of(num_ce: int | str) -> int | None:
    """N of `tokens(N)`; None of a number of sequences."""
    budget = _argument(_TOKENS, num_ce)
    return None if budget is None else int(budget)


def entropy_of(temperature: float | str) -> float | None:
    """x of `entropy(x)`, nats a token; None of a number."""
    x = _argument(_ENTROPY, temperature)
    return None if x is None else float(x)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _mean(value: Any) -> Any:
    if not _is_number(value) and quantile_of(value) is None:
        raise ValueError("expected a number above 0, or `quantile(q)` with q between 0 and 1")
    return value


def _number_or_tokens(value: Any) -> Any:
    if not (_is_number(value) and isinstance(value, int)) and tokens_of(value) is None:
        raise ValueError("expected a number of sequences, or `tokens(N)` with N above 0")
    return value


def _temperature(value: Any) -> Any:
    if not _is_number(value) and not entropy_of(value):
        raise ValueError("expected a number above 0, or `entropy(x)` with x nats a token above 0")
    return value


# names become parts of file names
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=100)]
Verdict = Literal["correct", "incorrect", "unparsable", "timeout", "bad_gold"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Prompt(Section):
    """What every stage shows the model in front of a response."""

    suffix: str = PAPER_SUFFIX
    """Text appended to every problem (METHOD: the paper's instruction; empty for the small world)."""


class Mapping(Section):
    """Names a source's columns. A built-in mapping is given by its name instead."""

    question: str
    """Column with the problem's text."""
    answer: str | None = None
    """Column with the gold answer, or a list of accepted ones. None: the source carries none; what a row's own response
    boxed is then taken for it, and counted as such (not for benchmarks)."""
    responses: str | None = None
    """Column with one response (text) or a list of them. None: the source carries no responses."""
    tier: str | None = None
    """Column with the difficulty, if any; metrics are then also given by tier."""
    think: tuple[str, str] = ("<think>", "</think>")
    """How the source opens and closes reasoning; rewritten to <think> and </think>."""


class Source(Section):
    """One file, hub dataset or generated set."""

    source: str
    """`world`; `hf:owner/name[:config][:split]` (a single part is a split if it is called train, validation or
    test; the default split is train); or a .jsonl, .json or .parquet path under `sources.folder`."""
    mapping: Literal["acereason", "openr1", "messages", "gsm8k", "math"] | Mapping | None = None
    """A built-in mapping's name or the columns; none is needed for `world`."""
    local: str | None = None
    """File under `sources.folder` that is read in place of the hub's dataset when it is there."""
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


class Sources(Section):
    """Where local data lies."""

    folder: str = "sources"
    """File or folder that holds every local source; DVC watches it for changes."""


class World(Section):
    """The small world's sizes (oxa/world.py)."""

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


class FromScratch(Section):
    """A tiny student pretrained here, on a corpus that is named below."""

    kind: Literal["from_scratch"]
    """Marks a student that is pretrained here."""
    hidden_size: Count = 128
    """Width of the residual stream."""
    num_layers: Count = 4
    """Transformer blocks."""
    num_heads: Count = 4
    """Attention heads a layer."""
    num_kv_heads: Count = 4
    """Key-value heads a layer (grouped-query attention)."""
    intermediate_size: Count = 384
    """Width of the feed-forward part."""
    max_position_embeddings: Count = 512
    """Longest sequence, tokens."""
    rope_theta: Positive = 100.0
    """Rotary base; short sequences want a small one."""
    tokenizer: Literal["words", "bpe"] = "words"
    """`words`: whole words and single digits; `bpe`: byte-level BPE trained on the corpus."""
    vocab_size: Count = 2048
    """Upper bound of the BPE vocabulary; `words` takes what the corpus holds."""
    corpus: list[Source]
    """What the student is pretrained on."""
    steps: Count = 3000
    """Optimiser steps."""
    batch_tokens: Count = 1280
    """Tokens a step."""
    learning_rate: Positive = 3e-3
    """Peak of the schedule."""
    warmup: Count = 100
    """Steps of linear warm-up; cosine decay to 0 follows."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of AdamW."""
    seed: Seed = 0
    """Seed of the initial weights and of the order of documents."""
    checkpoint_every: Count = 300
    """Steps between checkpoints to resume from."""

    @property
    def knows_world(self) -> bool:
        """Whether it is pretrained on the small world, whose gates apply then."""
        return any(part.source == "world" for part in self.corpus)

    @model_validator(mode="after")
    def _sizes_agree(self) -> FromScratch:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be an even multiple of num_heads {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.tokenizer == "bpe" and self.vocab_size < 300:
            raise ValueError(
                f"vocab_size {self.vocab_size} must be 300 or more: 256 bytes and the special tokens"
            )
        return self


class Checkpoint(Section):
    """A published student, taken over as it is but for the edits below."""

    kind: Literal["checkpoint"]
    """Marks a student that exists."""
    model: str
    """Hub id, or a local folder; DVC does not watch a folder: when its content changes, `dvc repro -f base`."""
    revision: str | None = None
    """Commit of the hub model; without it the newest is taken."""
    rope_theta: Positive | None = None
    """New rotary base (the paper: 1.0e6); none keeps the model's own."""
    max_position_embeddings: Count | None = None
    """New context length, tokens (the paper: 40000)."""
    drop_system_prompt: bool = False
    """Take the default system prompt out of the chat template (the paper does)."""

    @property
    def knows_world(self) -> bool:
        """No published student is one of the small world."""
        return False


class Decontamination(Section):
    """A problem of training or RL is dropped when it shares too many word n-grams with a benchmark problem."""

    ngram: Count = 10
    """Words an n-gram; a shorter problem counts as one n-gram."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the training problem's n-grams found in one benchmark problem, from which on it is dropped."""


class Ingest(Section):
    """Teacher data and benchmarks become `problems` and teacher `responses`."""

    teacher: list[Source] = Field(min_length=1)
    """Sources of training problems and teacher responses."""
    rlvr: list[Source] = []
    """Sources of problems for RL, without responses; none: RL takes the training problems."""
    benchmarks: dict[Name, Source] = Field(min_length=1)
    """Benchmarks by name."""
    decontamination: Decontamination = Decontamination()
    """What counts as a training problem that repeats a benchmark problem."""
    max_chars: Count = 200_000
    """A longer response is dropped (reason `too_long`), characters."""


class Vllm(Section):
    """The vLLM server that is started for a stage and ends with it; all but `logprobs` is unused with generate.url."""

    python: str = ".venv-vllm/bin/python"
    """Interpreter that has vLLM, which may live in an environment of its own (`make vllm-cpu` builds this one)."""
    data_parallel: Count = 1
    """Copies of the model, each on GPUs of its own."""
    tensor_parallel: Count = 1
    """GPUs over which one copy is spread."""
    max_model_len: Count | None = None
    """Longest sequence that the server takes, tokens; none: what the prompts and max_tokens come to."""
    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a device's memory that weights and KV cache may take; none: vLLM's own (on CPUs 4 GiB of KV cache, or
    what VLLM_CPU_KVCACHE_SPACE says)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and arithmetic; `auto` takes the checkpoint's."""
    startup_seconds: Positive = 600.0
    """How long the server may take until it answers."""
    logprobs: Annotated[int, Field(ge=-1)] = 20
    """Tokens a position whose probability the server tells; mean_entropy counts all others as one outcome and is thus a
    lower bound. -1: the whole vocabulary, exact (for small vocabularies only); 0: none, and no entropy."""
    flags: list[str] = []
    """Further arguments of `vllm serve`, for example ["--enforce-eager"]."""


class Generate(Section):
    """How text is generated, by the stages `gates`, `sample` and `evaluate` alike."""

    engine: Literal["torch", "vllm"] = "torch"
    """`torch`: this process, on the CPU or one GPU. `vllm`: a vLLM server that the stage starts, or those of `url`."""
    batch_size: Count = 256
    """Responses generated together (engine torch)."""
    url: list[Annotated[str, Field(pattern=r"^https?://[^/?#\s]+(/[^?#\s]*)?$")]] = []
    """Running servers of the same model, for example ["http://10.0.0.2:8000"], among which requests are shared out;
    none: one is started (engine vllm). A key that they ask for is read from VLLM_API_KEY."""
    concurrency: Count = 256
    """Requests in flight at one server (engine vllm)."""
    vllm: Vllm = Vllm()
    """The server that is started."""


class Sampling(Section):
    """Settings of one draw."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus: the fewest tokens whose probability reaches this; 1 keeps all."""
    max_tokens: Count
    """Longest response, tokens; one that reaches it has finish_reason `length`."""
    seed: Seed = 0
    """Seed of every draw."""


class Sample(Sampling):
    """Self-samples: what the student itself answers to the training problems."""

    model: str | None = None
    """Checkpoint folder (not watched by DVC) or hub id that samples; none: the base itself."""
    num_samples: Count = 4
    """Responses a training problem."""


class Gates(Sampling):
    """What a student of the small world must be able to do before arms are compared on it (oxa/gates.py)."""

    num_problems: Count = 1200
    """Held-out problems, over all tiers."""
    num_samples: Count = 4
    """Responses a problem with the student left alone; each strategy is forced once a problem."""


class Verify(Section):
    """Answers are graded by math-verify in worker processes."""

    timeout: Positive = 10.0
    """Longest processor time for one answer, seconds; then its worker is killed and the verdict is `timeout`."""
    workers: Count | None = None
    """Worker processes; none: one a core."""
    require_think: bool = True
    """An answer counts only behind a </think>. False for sources without reasoning tags."""


class Score(Section):
    """Perplexity under the base."""

    condition_on_prompt: bool = True
    """Score ln p(response | prompt); false scores the response alone, as the released code does."""
    max_length: Count = 32_768
    """Longest sequence, tokens; what lies beyond is not scored and the row is flagged `truncated`."""
    batch_tokens: Count = 8192
    """Tokens of one forward pass, padding included."""
    chunk: Count = 2048
    """Positions that the head takes together, a tile of the vocabulary after the other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights; log-probabilities are reduced in float32 either way. Only float32 scores are independent
    of batching to 1e-5."""
    self_verdicts: list[Verdict] = ["incorrect"]
    """Verdicts of self-samples that are scored."""


class SelectionShared(Section):
    """What all arms select by (METHOD §3)."""

    num_ce: Annotated[int | str, BeforeValidator(_number_or_tokens)]
    """CE sequences of every arm (the paper: 50,000); `tokens(30000)`: as many as have so many tokens together, so that
    arms have equal shares of tokens, and not of sequences."""
    per_problem: Count = 1
    """CE sequences from one problem, at most."""
    mean: Annotated[float | str, BeforeValidator(_mean)] = 2.5
    """Mean μ of the Gaussian over ppl; `quantile(0.7)`: that quantile of the ppl of all eligible teacher responses,
    since the scale of ppl is the student's own."""
    std: Positive = 0.25
    """Standard deviation σ of the Gaussian over ppl."""
    ppl_min: Annotated[float, Field(ge=1)] = 1.0
    """Lower end of the bins."""
    ppl_max: Positive = 5.0
    """Upper end of the bins."""
    bin_width: Positive = 0.05
    """Width of a bin, in ppl."""
    within_bin: Literal["longest", "random"] = "longest"
    """Which responses of a bin go first; `longest` is the paper's rule."""
    max_shortage: Share = 0.1
    """Share of num_ce that the Gaussian's empty bins may leave unfilled before the stage fails."""
    seed: Seed = 0
    """Seed of every draw."""

    @model_validator(mode="after")
    def _range(self) -> SelectionShared:
        if self.ppl_max <= self.ppl_min:
            raise ValueError("ppl_max must be above ppl_min")
        return self


class UnlikelihoodSet(Section):
    """Which incorrect self-samples an arm suppresses."""

    num: Count
    """UL sequences (the paper: as many as CE)."""
    min_ppl: Annotated[float, Field(ge=1)] = 1.2
    """Floor: what is more likely than this is a degenerate loop."""
    per_problem: Count = 1
    """UL sequences from one problem, at most."""
    verdicts: list[Verdict] = ["incorrect"]
    """Verdicts taken as evidence of a wrong pattern."""
    allow_length: bool = False
    """Take responses that were cut by length, too."""
    consensus: bool = False
    """Take a response only where a second check agrees that it is wrong: its answer and the gold one are plain numbers
    and differ (oxa/agreement.py)."""


class SelectionArm(Section):
    ce: Literal["random", "lowest", "gaussian"]
    """Rule of the CE set."""
    ul: UnlikelihoodSet | None = None
    """The UL set; none for arms without unlikelihood."""


class Selection(Section):
    shared: SelectionShared
    """What holds for every arm."""
    arms: dict[Name, SelectionArm]
    """What is an arm's own."""


class TrainShared(Section):
    """What all arms train with."""

    learning_rate: Positive = 5e-5
    """Peak of the schedule (the paper: 2.5e-4 for 1.5B, 5e-5 for 7B)."""
    epochs: Positive = 6.0
    """Passes over the CE set."""
    warmup_ratio: Share = 0.03
    """Share of the steps with rising learning rate; cosine decay follows."""
    adam_beta1: Share = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Share = 0.95
    """AdamW's decay of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    num_ce: Count = 128
    """CE sequences an optimiser step."""
    micro_batch_size: Count = 1
    """Sequences of one forward pass on one device, on average, at most: the largest number is taken that cuts a step
    evenly. Long ones go in smaller groups: no pass is larger than so many of the step's longest."""
    normalization: Literal["sequence", "token"] = "sequence"
    """`sequence`: each sequence weighs the same; `token`: each token does."""
    max_length: Count = 32_768
    """Longer sequences are dropped and counted, tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the arithmetic; weights and optimizer state stay float32. bfloat16 needs hardware that has it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    checkpoint_every: Count = 50
    """Optimiser steps between checkpoints to resume from."""
    log_every: Count = 1
    """Optimiser steps between logged metrics."""


class TrainArm(Section):
    num_ul: Annotated[int, Field(ge=0)] = 0
    """UL sequences an optimiser step, beside the num_ce."""
    ul_weight: Annotated[float, Field(ge=0)] = 1e-4
    """λ: weight of the unlikelihood term; of `kto`, that of the undesirable completions (1 for desirable ones)."""
    ul_tokens: Count | None = None
    """Tokens of a UL sequence that are pushed, those at which the student is surest (lowest entropy) while it trains,
    each as hard as without this; none: all of them, as in the paper."""
    ce_loss: Literal["nll", "dft"] = "nll"
    """`dft` weighs a CE token by its own probability (dynamic fine-tuning, arXiv 2508.05629): a contrast, which learns
    least from what the student finds unlikely."""
    objective: Literal["oxa", "kto"] = "oxa"
    """`kto`: TRL's KTO (arXiv 2402.01306) in place of cross-entropy and unlikelihood, a contrast: CE rows are its
    desirable completions, UL rows the undesirable ones. train.shared.normalization has no effect on it."""
    kto_beta: Positive = 0.1
    """β of `kto`: larger holds the arm closer to the base."""

    @model_validator(mode="after")
    def _objectives_agree(self) -> TrainArm:
        if self.objective == "kto":
            if not self.num_ul:
                raise ValueError("objective kto needs undesirable completions: num_ul must be above 0")
            if self.ul_tokens is not None or self.ce_loss != "nll":
                raise ValueError("objective kto takes neither ul_tokens nor ce_loss: they are parts of oxa's")
        return self


class Train(Section):
    shared: TrainShared
    """What holds for every arm."""
    arms: dict[Name, TrainArm]
    """What is an arm's own."""


class RlvrVllm(Section):
    """Where TRL's vLLM generates; see TRL's documentation of `use_vllm`."""

    url: str = "http://127.0.0.1:8000"
    """Address of a running `trl vllm-serve` (engine vllm_server)."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the GPU's memory that vLLM takes beside the training (engine vllm_colocate)."""
    tensor_parallel: Count = 1
    """GPUs over which vLLM spreads the model (engine vllm_colocate)."""


class Rlvr(Section):
    """Reinforcement learning from verifiable rewards: GRPO from every arm's checkpoint, with the same settings."""

    steps: Count = 100
    """Optimizer steps."""
    save_every: Count = 50
    """Steps between the checkpoints that are kept and evaluated; the last one always is."""
    checkpoint_every: Count = 10
    """Steps between checkpoints to resume from."""
    num_problems: Count | None = None
    """Take this many problems, chosen by hash; none takes all (the paper: 10,000)."""
    num_prompts: Count = 64
    """Problems a step."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Rollouts a problem: the group over which advantages are taken."""
    temperature: Annotated[float | str, BeforeValidator(_temperature)] = 0.85
    """Of the rollouts; `entropy(0.3)`: the one at which this checkpoint's first rollouts have that mean entropy, nats a
    token, so that arms begin to explore alike (arXiv 2506.13284; oxa/temperature.py)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of the rollouts; 1 keeps all."""
    max_prompt_tokens: Count = 1536
    """Longer prompts are dropped and counted, tokens."""
    max_tokens: Count
    """Longest rollout, tokens."""
    loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    """How tokens are averaged: `grpo` over each rollout, then over rollouts (arXiv 2402.03300); `dapo` over all tokens
    of a step (2503.14476); `dr_grpo` by max_tokens, a constant (2503.20783)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the standard deviation of the rewards in the group, in the step, or not (Dr. GRPO)."""
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3
    """Weight β of the KL to the arm's checkpoint, by the k3 estimator."""
    learning_rate: Positive = 2e-6
    """Peak of the schedule."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of the learning rate, after the warm-up."""
    warmup_ratio: Share = 0.0
    """Share of the steps with rising learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    micro_batch_size: Count = 8
    """Rollouts of one forward pass on one device, at most: the largest number is taken that cuts a step evenly."""
    batch_size: Count = 256
    """Rollouts that the torch engine generates together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the arithmetic; weights and optimizer state stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    engine: Literal["torch", "vllm_colocate", "vllm_server"] = "torch"
    """What generates: this process, vLLM in it, or a vLLM server of TRL's."""
    vllm: RlvrVllm = RlvrVllm()
    """Settings of the vLLM engines."""


class Traces(Section):
    """Examples whose tokens are shown in the report with their log-probabilities before and after training."""

    num_examples: Count = 40
    """Examples of an arm's CE set, and as many of its UL set, spread over the range of ppl."""
    num_beside: Annotated[int, Field(ge=0)] = 1
    """Responses of each origin on the same problem that are shown beside an example."""
    max_tokens: Count = 2000
    """A longer response is cut here, tokens."""
    batch_tokens: Count = 8192
    """Tokens of one forward pass, padding included."""
    seed: Seed = 0
    """Seed of every draw."""


class Evaluate(Sampling):
    """Every checkpoint on every benchmark."""

    num_samples: Count = 8
    """Responses a problem (n of pass@k)."""
    num_samples_by_benchmark: dict[Name, Count] = {}
    """Benchmarks with another number (the paper: Minerva 64, others 128)."""


class Report(Section):
    """Summary, table and plots."""

    baseline: Name = "sft"
    """Arm that the others are compared with."""
    resamples: Count = 2000
    """Bootstrap resamples of an interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    seed: Seed = 0
    """Seed of every draw."""


class Flow(Section):
    """How `oxa run` walks the graph; no result depends on it."""

    max_workers: Count = 2
    """Stages that run at the same time."""
    accelerators: Count = 1
    """Of these, stages that load a model (`accelerator: true` in dvc.yaml); visible GPUs are shared out among them."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a stage that failed for its surroundings (killed, out of reach) is started again."""
    retry_delay: Annotated[float, Field(ge=0)] = 10.0
    """Wait before that, seconds."""


class Tracking(Section):
    """What MLflow is told. Where it listens is MLFLOW_TRACKING_URI's matter (default: sqlite:///mlflow.db)."""

    enabled: bool = True
    """False: nothing is recorded."""
    experiment: str = "oxa"
    """MLflow experiment of all runs."""


class Registry(Section):
    """Which checkpoint is put forward, and what it must show."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "oxa"
    """Registered model whose versions are the checkpoints."""
    benchmark: Name | None = None
    """Benchmark that decides; None: all of them, every problem counting the same."""
    metric: Annotated[str, Field(pattern=r"^pass@[1-9]\d*$")] = "pass@1"
    """What is compared; pass@k needs k samples a problem."""
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Champion is who leads the former one by more than this with report.confidence (share of problems)."""


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
    memory: Positive
    """GiB."""
    bandwidth: Positive
    """Of its memory, TB/s."""
    bfloat16: Positive
    """Dense peak with bfloat16, TFLOP/s."""
    float32: Positive
    """Dense peak with float32, TFLOP/s."""


class Plan(Section):
    """What `oxa plan` takes for true where neither data nor the other sections tell. No stage reads it."""

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


class Params(Section):
    """A whole params.yaml. No section that DVC tracks may be left out: it knows no defaults."""

    arms: list[Name] = Field(min_length=1)
    """Arms that are selected, trained, evaluated and compared."""
    seeds: list[Seed] = Field(min_length=1)
    """Fine-tuning seeds; every arm is trained with each."""
    prompt: Prompt
    sources: Sources
    world: World
    base: Annotated[FromScratch | Checkpoint, Field(discriminator="kind")]
    ingest: Ingest
    generate: Generate
    sample: Sample
    gates: Gates
    verify: Verify
    score: Score
    selection: Selection
    train: Train
    rlvr: Rlvr
    evaluate: Evaluate
    traces: Traces
    report: Report
    flow: Flow = Flow()
    tracking: Tracking = Tracking()
    registry: Registry = Registry()
    plan: Plan = Plan()

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        for arm in self.arms:
            if arm == "base":
                raise ValueError("arm 'base' would be confused with the base itself; give it another name")
            if arm not in self.selection.arms:
                raise ValueError(f"arm {arm!r} has no entry in selection.arms")
            if arm not in self.train.arms:
                raise ValueError(f"arm {arm!r} has no entry in train.arms")
            has_set, per_step = self.selection.arms[arm].ul is not None, self.train.arms[arm].num_ul
            if has_set != (per_step > 0):
                raise ValueError(
                    f"arm {arm!r}: selection.arms.{arm}.ul and train.arms.{arm}.num_ul must both be set or both "
                    "be absent"
                )
            allowed = self.selection.arms[arm].ul
            unscored = set(allowed.verdicts if allowed else []) - set(self.score.self_verdicts)
            if unscored:
                raise ValueError(
                    f"arm {arm!r}: its UL set takes verdicts that score.self_verdicts leaves out: "
                    f"{', '.join(sorted(unscored))}"
                )
        for name in self.ingest.benchmarks:
            if name in ("train", "rlvr", "pooled"):
                raise ValueError(
                    f"source {name!r} cannot be a benchmark's name: it means something else in the tables"
                )
        for name in self.evaluate.num_samples_by_benchmark:
            if name not in self.ingest.benchmarks:
                raise ValueError(
                    f"source {name!r} of evaluate.num_samples_by_benchmark is not one of ingest.benchmarks: "
                    f"{', '.join(self.ingest.benchmarks)}"
                )
        if self.registry.benchmark not in (None, *self.ingest.benchmarks):
            raise ValueError(
                f"source {self.registry.benchmark!r} of registry.benchmark is not one of ingest.benchmarks: "
                f"{', '.join(self.ingest.benchmarks)}"
            )
        exams = [self.registry.benchmark] if self.registry.benchmark else list(self.ingest.benchmarks)
        drawn = self.evaluate.num_samples_by_benchmark
        fewest = min((drawn.get(name, self.evaluate.num_samples) for name in exams), default=1)
        if int(self.registry.metric.removeprefix("pass@")) > fewest:
            raise ValueError(
                f"source {self.registry.metric!r} of registry.metric needs more samples than the {fewest} a problem of "
                "evaluate.num_samples"
            )
        for name in ("arms", "seeds"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} holds an entry twice")
        if self.report.baseline not in self.arms:
            raise ValueError(f"report.baseline {self.report.baseline!r} is not one of the arms {self.arms}")
        return self


def load(path: Path) -> Params:
    """Reads and checks a params file.

    Raises ConfigError, one line a fault, each with the key's path, what was found and what was expected.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            f"{path}: no such file; run in the project's folder or name one with --params"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: expected sections such as `base:` and `train:`, found {type(raw).__name__}"
        )
    return check(raw, str(path))


def check(raw: dict[str, Any], where: str) -> Params:
    """The same for a parsed file; `where` names it in errors."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(sentence(where, fault) for fault in error.errors())) from None


def sentence(where: str, fault: Any) -> str:
    # pydantic puts the union's tag into the location; a person looks for the key in the file
    path = [
        str(p)
        for p in fault["loc"]
        if p not in ("from_scratch", "checkpoint", "Mapping") and "[" not in str(p)
    ]
    key = ".".join(path) or "the file"
    if fault["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key; check its spelling against the sections in oxa/config.py"
    if fault["type"] == "missing":
        return f"{where}: {key}: missing; give it a value"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault["input"]
    shown = "" if isinstance(found, dict) or message.startswith(("arm ", "source ")) else f", found {found!r}"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}{shown}"
