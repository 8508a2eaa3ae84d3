"""Examples of an arm's training set, token by token: how likely the base found each, and how likely the arm does.

    change_t = ln p_arm(y_t | x, y_<t) - ln p_base(y_t | x, y_<t)        nats; above 0 promoted, below 0 suppressed

x is always the rendered prompt, so that the mean of `before` is -ln ppl of the score table only where
`score.condition_on_prompt` is true. The end-of-sequence token is no part of the text and is not shown.

Of a set's rows, sorted by ppl and cut into `num_examples` equal slices, each slice gives the row with the lowest hash
of (seed, response_id): the range is covered, and arms with one CE set show the same examples. Beside an example stand
responses of each origin to the same problem: beside a CE example wrong self-samples come first, otherwise right
answers do, ties by hash. A response is cut at `max_tokens` before it goes through a model, for a page shows no more.

Nothing is resumed: the work is a few hundred short forward passes, and `scratch` stays empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from oxa import prompts
from oxa.config.prompt import Prompt
from oxa.config.traces import Traces
from oxa.errors import DataError
from oxa.hashes import lot
from oxa.model import loading, log_probs
from oxa.model.spelling import Spelt, spell
from oxa.records import schemas, tables, training_set
from oxa.runtime import journal, progress
from oxa.selection import candidates
from oxa.training import batches

CHUNK = 2048  # positions whose logits exist at the same time: score's default
CHANGED = 0.1  # nats from which a token counts as promoted or suppressed: its p has changed by a tenth

Row = dict[str, Any]  # of records.TRACES, filled step by step


def run(
    section: Traces,
    prompt: Prompt,
    suppressing: list[str],
    *,
    base: Path,
    model: Path,
    data: Path,
    problems: Path,
    teacher: Path,
    teacher_verdicts: Path,
    teacher_scores: Path,
    self_responses: Path,
    self_verdicts: Path,
    self_scores: Path,
    output: Path,
    scratch: Path,
    log: journal.Log,
) -> dict[str, Any]:
    """Writes records.TRACES: CE examples by ppl, then UL examples, each followed by what stands beside it.

    `data` is the arm's folder, named after it; `suppressing` are the arms with a UL set. Returns counts and, of the CE
    and of the UL examples, the mean ln p (nats a token, each example weighing the same) before and after, and the
    shares of tokens promoted and suppressed by CHANGED nats and more. A response without a token to show, since its
    prompt fills the context, is left out and counted as `no_room`.
    """
    examples = _examples(section, data, data.name in suppressing)
    problem_ids = sorted({example["problem_id"] for example in examples})
    pool = _pool("teacher", teacher, teacher_verdicts, teacher_scores, problem_ids)
    pool |= _pool("self", self_responses, self_verdicts, self_scores, problem_ids)
    missing = [example["response_id"] for example in examples if example["response_id"] not in pool]
    if missing:
        raise DataError(
            f"{data}: response {missing[0]} is neither in {teacher} nor in {self_responses}; make all three with "
            "dvc repro"
        )
    rows = _with_beside(section, examples, pool)
    _fill_problems(rows, problems)
    texts = _texts(rows, {"teacher": teacher, "self": self_responses})

    network, tokenizer = loading.load(base, dtype=torch.float32)
    spelt = _spell(section, prompt, tokenizer, rows, texts, loading.context_length(network.config))
    before = _log_probs(section, network, spelt, "before training")
    del network  # one model at a time in memory
    network, _ = loading.load(model, dtype=torch.float32)
    after = _log_probs(section, network, spelt, "after training")

    shown = [row for row in rows if {row["example_id"], row["response_id"]} <= set(spelt)]
    for row in shown:
        key = row["response_id"]
        row |= {"tokens": spelt[key].pieces, "before": before[key], "after": after[key]}
        row |= {"num_tokens": spelt[key].num_tokens, "cut": len(before[key]) < spelt[key].num_tokens}
    tables.write(output, shown, schemas.TRACES)
    return _metrics(shown) | {"no_room": len(rows) - len(shown)}


# Which responses are shown.


def _examples(section: Traces, data: Path, suppresses: bool) -> list[Row]:
    """The chosen rows of the training set, CE before UL, each by ppl."""
    columns = ["response_id", "problem_id", "objective", "ppl"]
    table = training_set.read(data, columns, suppresses=suppresses)
    chosen: list[Row] = []
    for objective in ("ce", "ul"):
        part = table.filter(pc.equal(table["objective"], objective))
        rows, ppl = part.drop("ppl").to_pylist(), part["ppl"].to_numpy()
        lots = np.array([lot(section.seed, row["response_id"]) for row in rows], np.uint64)
        for slice_ in np.array_split(np.lexsort((lots, ppl)), min(section.num_examples, len(rows)) or 1):
            chosen += [rows[at] for at in slice_[np.argsort(lots[slice_])[:1]]]
    return chosen


def _pool(
    origin: str, responses: Path, verdicts: Path, scores: Path, problem_ids: list[str]
) -> dict[str, Row]:
    """Every response of this origin to these problems, by id; texts are left in the file."""
    table = tables.read(responses, schemas.RESPONSES, ["response_id", "problem_id"])
    table = table.append_column("row", pa.array(np.arange(len(table))))
    table = table.filter(pc.is_in(table["problem_id"], pa.array(problem_ids, pa.string())))
    graded = tables.read(verdicts, schemas.VERDICTS, ["response_id", "verdict"])
    index = pc.index_in(table["response_id"], graded["response_id"])
    if index.null_count:
        raise DataError(
            f"{verdicts}: {index.null_count} responses of {responses} have no verdict in it; dvc repro"
        )
    table = table.append_column("verdict", graded["verdict"].take(index))
    scored = tables.read(scores, schemas.SCORES, ["response_id", "ppl"])
    ppl = scored["ppl"].take(pc.index_in(table["response_id"], scored["response_id"]))
    table = table.append_column("ppl", pc.fill_null(ppl, float("nan")))
    return {row["response_id"]: row | {"origin": origin} for row in table.to_pylist()}


def _with_beside(section: Traces, examples: list[Row], pool: dict[str, Row]) -> list[Row]:
    """Each example and after it, of either origin, `num_beside` others to its problem."""
    of_problem: dict[tuple[str, str], list[Row]] = {}
    for response in sorted(pool.values(), key=lambda row: lot(section.seed, row["response_id"])):
        of_problem.setdefault((response["problem_id"], response["origin"]), []).append(response)
    rows: list[Row] = []
    for example in examples:
        key, objective = example["response_id"], example["objective"]
        rows.append(pool[key] | {"example_id": key, "role": "example", "objective": objective})
        for origin in ("teacher", "self"):
            others = [
                r for r in of_problem.get((example["problem_id"], origin), []) if r["response_id"] != key
            ]
            sought = "incorrect" if (objective, origin) == ("ce", "self") else "correct"
            others.sort(key=lambda row: row["verdict"] != sought)
            beside = {"example_id": key, "role": "beside", "objective": ""}
            rows += [other | beside for other in others[: section.num_beside]]
    return rows


def _fill_problems(rows: list[Row], problems: Path) -> None:
    table = tables.read(problems, schemas.PROBLEMS, ["problem_id", "question", "answers", "split"])
    problem_ids = pa.array([row["problem_id"] for row in rows], pa.string())
    wanted = pc.and_(pc.is_in(table["problem_id"], problem_ids), pc.equal(table["split"], "train"))
    known = {row.pop("problem_id"): row for row in table.filter(wanted).drop("split").to_pylist()}
    for row in rows:
        if row["problem_id"] not in known:
            raise DataError(
                f"{problems}: no training problem {row['problem_id']}; make it again with dvc repro"
            )
        row |= known[row["problem_id"]]


def _texts(rows: list[Row], files: dict[str, Path]) -> dict[str, str]:
    """The texts of these rows by response_id."""
    texts: dict[str, str] = {}
    for origin, path in files.items():
        at = np.array([row["row"] for row in rows if row["origin"] == origin], np.int64)
        table = candidates.take(path, schemas.RESPONSES, ["response_id", "text"], np.unique(at))
        texts |= dict(zip(table["response_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return texts


# What the models make of them.


def _spell(
    section: Traces, prompt: Prompt, tokenizer: Any, rows: list[Row], texts: dict[str, str], limit: int
) -> dict[str, Spelt]:
    """Each response that has a token to show, once, cut at `max_tokens` and at the model's context."""
    if not tokenizer.is_fast:
        raise DataError(
            "traces need a tokenizer that tells where in the text a token stands (tokenizer.json)"
        )
    spelt: dict[str, Spelt] = {}
    for row in rows:
        key = row["response_id"]
        context = prompts.prompt_ids(tokenizer, prompts.user_turn(row["question"], prompt.suffix))
        response = spell(texts[key], context, tokenizer, section.max_tokens, limit)
        if response is not None:
            spelt[key] = response
    return spelt


def _log_probs(section: Traces, network: Any, spelt: dict[str, Spelt], when: str) -> dict[str, np.ndarray]:
    """ln p of the shown tokens of each response, float32 [T]."""
    keys = list(spelt)
    values_by_id: dict[str, np.ndarray] = {}
    plan = batches.by_token_budget([len(spelt[key].ids) for key in keys], section.batch_tokens)
    for batch in progress.bar(plan, desc=f"traces {when}", unit="batch"):
        part = [spelt[keys[at]] for at in batch]
        statistics, counts = log_probs.batch_statistics(
            network, [response.ids for response in part], [response.start for response in part], CHUNK
        )
        values = np.split(statistics.log_probs.cpu().numpy(), np.cumsum(counts)[:-1])
        values_by_id |= {keys[at]: of_row for at, of_row in zip(batch, values, strict=True)}
    return values_by_id


def _metrics(rows: list[Row]) -> dict[str, Any]:
    examples = [row for row in rows if row["role"] == "example"]
    metrics: dict[str, Any] = {
        "examples": {name: sum(row["objective"] == name for row in examples) for name in ("ce", "ul")},
        "beside": len(rows) - len(examples),
        "cut": sum(row["cut"] for row in rows),
    }
    for objective in ("ce", "ul"):
        before, after = (
            [row[when] for row in examples if row["objective"] == objective] for when in ("before", "after")
        )
        if before:
            change = np.concatenate(after) - np.concatenate(before)
            metrics[objective] = {
                "before": float(np.mean([values.mean() for values in before])),
                "after": float(np.mean([values.mean() for values in after])),
                "promoted": float((change >= CHANGED).mean()),
                "suppressed": float((change <= -CHANGED).mean()),
            }
    return metrics
