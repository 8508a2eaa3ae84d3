"""Responses scored under a model: as token ids on disk, and the mean NLL and entropy of a batch of them.

    mean NLL = -1/T · Σ_t ln p(y_t | x, y_<t)        T scored tokens of a response, nats a token

and, where they are asked for, with r_t = 1 + the number of tokens that are likelier than y_t and H_t the entropy there,

    rsr = Σ_t min(r_t, 100) / Σ_t -ln p_t            rank-surprisal ratio (arXiv 2601.14249 and its code), 1/nat
    hes = Σ of the ⌈T/200⌉ highest H_t               high-entropy sum (arXiv 2605.22389), nats

Where nothing stands before a response, its first token is not scored.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from oxa import prompts
from oxa.config.prompt import Prompt
from oxa.model import log_probs
from oxa.runtime import files, progress

TOKENIZED_AT_ONCE = 1000
MAX_RANK = 100
TOKENS, ROWS = "tokens.bin", "rows.npy"


def tokenize(
    rows: pa.Table, tokenizer: Any, prompt: Prompt, limit: int, scratch: Path, *, conditioned: bool
) -> Tokenized:
    """`rows` have a question and a text; where not `conditioned`, the text is scored alone.

    The ids of rows with a token to score, `limit` of each at most, are written to scratch, where every process maps
    them into its memory.
    """
    lengths = np.empty(len(rows), np.int64)
    starts, train, truncated = np.empty_like(lengths), np.empty_like(lengths), np.empty(len(rows), np.bool_)
    contexts: dict[str, tuple[int, list[int]]] = {}  # tokens of the prompt, and those before the text
    bar = progress.bar(total=len(rows), desc="tokenizing", unit="response")
    row = num_control = 0
    with (scratch / TOKENS).open("wb") as file:
        for part in rows.select(["question", "text"]).to_batches(TOKENIZED_AT_ONCE):
            texts = part["text"].to_pylist()
            encoded = prompts.text_ids(tokenizer, texts)
            for question, text, ids in zip(part["question"].to_pylist(), texts, encoded, strict=True):
                if question not in contexts:
                    user = prompts.user_turn(question, prompt.suffix)
                    prompt_ids = prompts.prompt_ids(tokenizer, user)
                    contexts[question] = len(prompt_ids), prompt_ids if conditioned else []
                num_prompt, context = contexts[question]
                whole = [*context, *ids]
                lengths[row], starts[row] = min(len(whole), limit), max(1, len(context))
                truncated[row] = len(whole) > limit
                train[row] = num_prompt + len(ids) + 1
                num_control += any(prompts.holds_control(tokenizer, one) for one in (question, text))
                if lengths[row] > starts[row]:
                    file.write(np.asarray(whole[:limit], np.int32).tobytes())
                row += 1
            bar.update(len(texts))
    bar.close()
    scorable = lengths > starts
    save(scratch / ROWS, np.stack([lengths[scorable], starts[scorable]]))
    return Tokenized(lengths, starts, truncated, train, num_control)


class Tokenized(NamedTuple):
    """Of every row, arrays [rows]."""

    lengths: np.ndarray
    """Token ids, the limit at most."""
    starts: np.ndarray
    """Index of the first to score."""
    truncated: np.ndarray
    """Whether something was cut."""
    train_tokens: np.ndarray
    """Of prompt, whole text and end token."""
    num_control: int
    """Rows that spell a control token, which is read as text."""


class Tokens(NamedTuple):
    """What is to be scored, as `tokenize` has left it."""

    ids: np.ndarray  # int32, one row after the other
    ends: np.ndarray  # [rows], where each row ends there
    lengths: np.ndarray  # [rows], tokens
    starts: np.ndarray  # [rows], index of the first token to score

    @classmethod
    def open(cls, scratch: Path) -> Tokens:
        lengths, starts = np.load(scratch / ROWS)
        path = scratch / TOKENS  # an empty file cannot be mapped
        ids = np.memmap(path, np.int32, "r") if len(lengths) else np.empty(0, np.int32)
        return cls(ids, np.cumsum(lengths), lengths, starts)

    def row(self, index: int) -> np.ndarray:
        return np.array(self.ids[self.ends[index] - self.lengths[index] : self.ends[index]])


def check_head(network: Any, scratch: Path) -> None:
    tokens = Tokens.open(scratch)
    if len(tokens.lengths):
        shortest = tokens.row(int(tokens.lengths.argmin()))[:64]
        log_probs.check_head(network, torch.from_numpy(shortest).long()[None].to(network.device))


def rank_surprisal(nll: np.ndarray, entropies: np.ndarray, ranks: np.ndarray) -> float:
    """rsr of one response, arrays [T]; infinite where every token is certain."""
    surprisal = nll.sum()
    return float(np.minimum(ranks, MAX_RANK).sum() / surprisal) if surprisal > 0 else np.inf


def high_entropy_sum(nll: np.ndarray, entropies: np.ndarray, ranks: np.ndarray) -> float:
    """hes of one response, arrays [T]."""
    num = -(-len(entropies) // 200)
    return float(np.partition(entropies, -num)[-num:].sum())


OF_ONE_PASS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "rsr": rank_surprisal,
    "hes": high_entropy_sum,
}
"""Measures of a response that the pass which gives its NLL gives beside it."""


def score_batch(
    network: Any, batch: list[int], tokens: Tokens, chunk: int, measures: Sequence[str] = ()
) -> np.ndarray:
    """[B, 2 + measures] float64: mean NLL, mean entropy and these entries of OF_ONE_PASS of the batch's rows."""
    sequences, starts = [tokens.row(row) for row in batch], [int(tokens.starts[row]) for row in batch]
    statistics, counts = log_probs.batch_statistics(network, sequences, starts, chunk, ranks=bool(measures))
    bounds = np.concatenate([[0], np.cumsum(counts)[:-1]])
    nll, entropies = (
        values.double().cpu().numpy() for values in (-statistics.log_probs, statistics.entropies)
    )
    sums = [np.add.reduceat(values, bounds) for values in (nll, entropies)]
    means = np.stack(sums, 1) / counts[:, None]
    if statistics.ranks is None:
        return means
    of_rows = zip(
        *(np.split(values, bounds[1:]) for values in (nll, entropies, statistics.ranks.cpu().numpy())),
        strict=True,
    )
    of_measures = [[OF_ONE_PASS[measure](*row) for measure in measures] for row in of_rows]
    return np.concatenate([means, of_measures], 1)


def save(path: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()  # into a file, numpy would hide why it could not be written
    np.save(buffer, values)
    with files.atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
