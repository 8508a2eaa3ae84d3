"""The columns of every table between stages, with their units."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

PROBLEMS = pa.schema(
    [
        ("problem_id", pa.string()),
        ("source", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),  # accepted gold answers: one is enough
        ("tier", pa.string()),  # difficulty where the source tells, else ""
        ("split", pa.string()),  # "train", "rlvr" or the benchmark's name
    ]
)


RESPONSES = pa.schema(
    [
        ("response_id", pa.string()),
        ("problem_id", pa.string()),
        ("origin", pa.string()),  # teacher, self
        ("model", pa.string()),
        ("sample_index", pa.int32()),
        ("seed", pa.int64()),  # -1 where nothing was drawn
        ("text", pa.string()),  # verbatim
        ("num_tokens", pa.int32()),  # of the model that wrote it; -1 where unknown
        ("finish_reason", pa.string()),  # stop, length
        ("mean_entropy", pa.float32()),  # nats a token under the sampler; NaN where unknown
    ]
)


VERDICTS = pa.schema([("response_id", pa.string()), ("verdict", pa.string()), ("predicted", pa.string())])


JUDGED = VERDICTS.append(
    pa.field("judge_verdict", pa.string())  # correct, incorrect, unsure; null where no judge was asked
)
"""VERDICTS where a second check by a language model is on (verify.judge)."""


PASS_RATES = pa.schema(
    [
        ("problem_id", pa.string()),
        ("split", pa.string()),  # rlvr, train
        ("model", pa.string()),  # that answered
        ("num_samples", pa.int32()),  # answers drawn
        ("num_correct", pa.int32()),
        ("num_truncated", pa.int32()),  # cut by pass_rate.max_tokens
    ]
)


SCORES = pa.schema(
    [
        ("response_id", pa.string()),
        ("scorer", pa.string()),
        ("mean_nll", pa.float64()),  # nats a token
        ("ppl", pa.float64()),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("mean_entropy", pa.float64()),  # nats a token
        ("train_tokens", pa.int32()),  # of prompt, whole response and end token, as training reads them
    ]
)


MEASURES = pa.schema([(name, pa.float64()) for name in ("rsr", "hes", "ifd")])
"""Columns that SCORES has beside where they are asked for (score.measures): rank-surprisal ratio (1/nat), high-entropy
sum (nats), ppl with the prompt over that without; not finite where a response has none."""


def scores(measures: Iterable[str]) -> pa.Schema:
    """SCORES with these of MEASURES."""
    return pa.schema([*SCORES, *(MEASURES.field(name) for name in measures)])


CONTEXT = "context"
"""Key of the note beside a table of scores: the longest sequence that the scorer takes, tokens."""

TRAIN = pa.schema(
    [
        ("response_id", pa.string()),
        ("problem_id", pa.string()),
        ("prompt", pa.string()),  # the user turn: question and suffix, before the chat template
        ("completion", pa.string()),
        ("objective", pa.string()),  # ce, ul
        ("ppl", pa.float64()),
        ("num_tokens", pa.int32()),  # of the completion under the scorer
        ("finish_reason", pa.string()),  # stop, length: what a limit cut has no end to be learnt
    ]
)


SAMPLE: list[tuple[str, pa.DataType]] = [
    ("benchmark", pa.string()),
    ("problem_id", pa.string()),
    ("tier", pa.string()),
    ("step", pa.int32()),  # of RL; 0 before it
    ("sample_index", pa.int32()),
    ("text", pa.string()),
]
"""First columns of both tables of what a checkpoint writes to a benchmark's problem."""

GENERATIONS = pa.schema(
    [
        *SAMPLE,
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("verdict", pa.string()),
        ("predicted", pa.string()),
    ]
)


ENTROPIES = pa.schema(
    [
        *SAMPLE,
        ("finish_reason", pa.string()),
        ("num_tokens", pa.int32()),  # positions at which a token was drawn, the end token's included
        ("entropy", pa.float64()),  # nats, summed over these; exact over the vocabulary
    ]
)
"""Samples at temperature 1 and top-p 1, drawn to measure entropy, and graded by nobody."""


PREDICTORS = pa.schema(
    [
        ("measure", pa.string()),  # held_out_nll, kl_base_arm, kl_arm_base
        ("problem_id", pa.string()),
        ("nats", pa.float64()),  # summed over the positions of one response
        ("num_tokens", pa.int32()),  # these
    ]
)


TRACES = pa.schema(
    [
        ("example_id", pa.string()),  # response_id of the training example beside which it is shown
        ("role", pa.string()),  # example, beside
        ("objective", pa.string()),  # ce, ul; "" beside an example
        ("response_id", pa.string()),
        ("problem_id", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("origin", pa.string()),  # teacher, self
        ("verdict", pa.string()),
        ("ppl", pa.float64()),  # under the base; NaN where it was not scored
        ("num_tokens", pa.int32()),  # of the whole response
        ("cut", pa.bool_()),  # whether only the first of them are shown
        ("tokens", pa.list_(pa.string())),  # pieces of the text; joined, they are the text
        ("before", pa.list_(pa.float32())),  # ln p under the base
        ("after", pa.list_(pa.float32())),  # ln p under the trained arm
    ]
)


REJECTS = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),  # from 0, in the source
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("text", pa.string()),  # what was dropped
    ]
)


APART = pa.schema([("problem_id", pa.string())])
"""Training problems that no arm may use, since the sampler's warm-up did."""


CONTAMINATION = pa.schema(
    [
        ("problem_id", pa.string()),
        ("question", pa.string()),
        ("benchmark", pa.string()),
        ("benchmark_problem_id", pa.string()),
        ("benchmark_question", pa.string()),
        ("share", pa.float64()),
    ]
)
