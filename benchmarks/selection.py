"""Selection of an arm's CE set from a million scored responses: oxa/stages/selection_ce.py against plain Python.

    python benchmarks/selection.py [--rows 1000000] [--chosen 50000] [--quick]

Both ways apply METHOD §3's truncated Gaussian (longest first, one a problem, the scarcest bin first) to the same
responses, four a problem, reading included, each in a process of its own that reports wall time and peak memory
(`ru_maxrss`, interpreter and imports included; `rise` leaves out what stood there before the work began). CPU time is
given too: it says more where the machine is shared. Times leave out the imports. The ways take turns, and of each way's
runs the one that took least CPU time counts.

- `oxa`         reads four Parquet tables (problems, responses, verdicts, scores), joins them, attaches prompts and
                texts and writes the training set.
- `dictionaries` reads ONE JSON-lines file in which everything is joined already and no text stands, keeps a dictionary
                a row, sorts lists and ends with the chosen ids: less work than `oxa` does.
- `dictionaries+texts` the same from a file that holds prompts and texts, and writes the training set as JSON lines.

All must choose the same ids, and so as many of each bin and the same lengths; the benchmark fails otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

WAYS = ("oxa", "dictionaries", "dictionaries+texts")
MASK = 2**64 - 1


def make(folder: Path, num_rows: int) -> None:
    """Writes the same synthetic responses in every form: ppl log-normal, lengths rising with ppl."""
    import numpy as np

    from oxa.records import schemas, tables

    draws = np.random.default_rng(0)
    ids = [hashlib.sha256(b"response %d" % i).hexdigest()[:16] for i in range(num_rows)]
    names = [hashlib.sha256(b"problem %d" % i).hexdigest()[:16] for i in range((num_rows + 3) // 4)]
    problem = [names[i // 4] for i in range(num_rows)]
    ppl = np.exp(draws.normal(math.log(2.3), 0.25, num_rows)).clip(1.0)
    tokens = (draws.lognormal(5.5, 0.5, num_rows) * ppl).astype(np.int32) + 1
    wrong = draws.random(num_rows) < 0.1
    verdict = np.where(wrong, "incorrect", "correct").tolist()
    question = {name: f"Question {i}: what is {i} times {i + 1}?" for i, name in enumerate(names)}
    text = [
        f"<think>{i} times {i + 1}: step {i * 7} then {i * 13} " * 3 + "</think> \\boxed{1}"
        for i in range(num_rows)
    ]

    size = len(names)
    columns = {"problem_id": names, "source": ["synthetic"] * size, "question": list(question.values())}
    columns |= {"answers": [["1"]] * size, "tier": [""] * size, "split": ["train"] * size}
    tables.write(folder / "problems.parquet", columns, schemas.PROBLEMS)
    columns = {
        "response_id": ids,
        "problem_id": problem,
        "origin": ["teacher"] * num_rows,
        "model": ["t"] * num_rows,
    }
    columns |= {"sample_index": [i % 4 for i in range(num_rows)], "seed": [-1] * num_rows, "text": text}
    columns |= {"num_tokens": tokens, "finish_reason": ["stop"] * num_rows}
    columns |= {"mean_entropy": np.full(num_rows, np.nan, np.float32)}
    tables.write(folder / "teacher.parquet", columns, schemas.RESPONSES)
    columns = {"response_id": ids, "verdict": verdict, "predicted": ["1"] * num_rows}
    tables.write(folder / "verdicts.parquet", columns, schemas.VERDICTS)
    at = draws.permutation(
        np.flatnonzero(~wrong)
    )  # as scoring leaves them: the correct ones, in another order
    columns = {"response_id": np.array(ids)[at], "scorer": ["base"] * len(at), "mean_nll": np.log(ppl[at])}
    columns |= {"ppl": ppl[at], "num_tokens": tokens[at], "truncated": np.zeros(len(at), bool)}
    columns |= {"mean_entropy": np.full(len(at), 0.3), "train_tokens": tokens[at] + 100}
    tables.write(folder / "apart.parquet", [], schemas.APART)
    tables.write(folder / "scores.parquet", columns, schemas.SCORES, {schemas.CONTEXT: 2**31 - 1})

    with (folder / "lean.jsonl").open("w") as lean, (folder / "full.jsonl").open("w") as full:
        rows = zip(ids, problem, verdict, ppl.tolist(), tokens.tolist(), text, strict=True)
        for response, name, judged, x, n, written in rows:
            row = {"response_id": response, "problem_id": name, "verdict": judged, "ppl": x, "num_tokens": n}
            lean.write(json.dumps(row) + "\n")
            full.write(json.dumps({**row, "prompt": question[name], "completion": written}) + "\n")


def by_oxa(folder: Path, num: int) -> None:
    from oxa.config.fine_tuning import FineTuning
    from oxa.config.prompt import Prompt
    from oxa.config.selection import CeSet, SelectionShared
    from oxa.stages import selection_ce

    selection_ce.run(
        SelectionShared(num_ce=num),
        CeSet(rule="gaussian"),
        Prompt(suffix=""),
        FineTuning(),
        problems=folder / "problems.parquet",
        responses=folder / "teacher.parquet",
        verdicts=folder / "verdicts.parquet",
        scores=folder / "scores.parquet",
        apart=folder / "apart.parquet",
        output=folder / "chosen.parquet",
        log=lambda step, **values: None,
        scratch=folder,
    )


def by_dictionaries(source: Path, num: int, output: Path | None) -> list[tuple[str, float, int]]:
    """METHOD §3 written the plain way: list of dictionaries, one list a bin, sorted.

    Returns response_id, ppl and num_tokens of the chosen.
    """
    mean, std, low, width, num_bins = 2.5, 0.25, 1.0, 0.05, 80
    with source.open() as lines:
        rows = [json.loads(line) for line in lines]
    bins: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["verdict"] == "correct" and low <= row["ppl"] <= low + num_bins * width:
            edge = min(int((row["ppl"] - low) / width), num_bins - 1)
            while edge < num_bins - 1 and row["ppl"] >= round(low + (edge + 1) * width, 12):
                edge += 1
            while row["ppl"] < round(low + edge * width, 12):
                edge -= 1
            bins[edge].append(row)
    pdf = [math.exp(-0.5 * ((low + (b + 0.5) * width - mean) / std) ** 2) for b in range(num_bins)]
    quotas = [num * value / sum(pdf) for value in pdf]
    targets = [math.floor(quota) for quota in quotas]
    rest = sorted(range(num_bins), key=lambda b: (-round(quotas[b] - targets[b], 9), b))
    for b in rest[: num - sum(targets)]:
        targets[b] += 1
    used: set[str] = set()
    chosen: list[dict[str, Any]] = []
    supply = [len({row["problem_id"] for row in bins[b]}) for b in range(num_bins)]
    for b in sorted(range(num_bins), key=lambda b: (supply[b] / max(targets[b], 1), b)):
        left = targets[b]
        if not left:
            continue
        for row in sorted(bins[b], key=lambda row: (-row["num_tokens"], hashed(row["response_id"]))):
            if left and row["problem_id"] not in used:
                used.add(row["problem_id"])
                chosen.append(row)
                left -= 1
    if output is not None:
        with output.open("w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in chosen)
    return [(row["response_id"], row["ppl"], row["num_tokens"]) for row in chosen]


def hashed(text: str) -> int:
    """The tie-breaking hash of oxa/selection/candidates.py for seed 0."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    raw = text.encode()
    state = mix(len(raw))
    for start in range(0, len(raw), 8):
        state = mix(state ^ int.from_bytes(raw[start : start + 8], "little"))
    return mix(state ^ mix(0))


def one(way: str, folder: Path, num: int) -> None:
    """Runs one way and prints its figures as JSON; meant for a process of its own."""
    if way == "oxa":
        import oxa.stages.selection_ce  # noqa: F401  imports are a fixed cost, measured apart from the work
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    rows: list[tuple[str, float, int]] = []
    if way == "oxa":
        by_oxa(folder, num)
    elif way == "dictionaries":
        rows = by_dictionaries(folder / "lean.jsonl", num, None)
    else:
        rows = by_dictionaries(folder / "full.jsonl", num, folder / "chosen.jsonl")
    seconds, cpu, high = time.perf_counter() - start, time.process_time() - cpu, peak()
    if way == "oxa":
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "chosen.parquet", columns=["response_id", "ppl", "num_tokens"])
        rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    digest = hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()
    figures = {"seconds": seconds, "cpu": cpu, "mib": high, "rise": high - before}
    print(json.dumps({**figures, "num": len(rows), "digest": digest}))


def peak() -> float:
    """Highest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--chosen", type=int, default=50_000)
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each way, taking turns; the fastest counts"
    )
    parser.add_argument("--quick", action="store_true", help="20,000 rows, 1,000 chosen, once")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]), options.chosen)
        return
    if options.quick:
        options.rows, options.chosen, options.repeats = 20_000, 1_000, 1
    with tempfile.TemporaryDirectory() as name:
        print("making the data ...", file=sys.stderr)
        # in a child too, so that making the data leaves no memory behind that a child is charged with
        code = f"import runpy, pathlib; m = runpy.run_path({__file__!r}); "
        code += f"m['make'](pathlib.Path({name!r}), {options.rows})"
        subprocess.run([sys.executable, "-c", code], check=True)
        best: dict[str, dict[str, Any]] = {}
        for _ in range(options.repeats):
            for way in WAYS:
                command = [sys.executable, __file__, "--one", way, name, "--chosen", str(options.chosen)]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                result = json.loads(said)
                print(f"{way}: {result['seconds']:.2f} s, {result['mib']:.0f} MiB", file=sys.stderr)
                if way not in best or result["cpu"] < best[way]["cpu"]:
                    best[way] = result
    if len({(row["num"], row["digest"]) for row in best.values()}) != 1:
        sys.exit(f"the ways chose different responses: {best}")
    report(options.rows, options.repeats, best)


def report(num_rows: int, repeats: int, best: dict[str, dict[str, Any]]) -> None:
    """Prints the section of RESULTS.md."""
    import results  # beside this file, which the child that makes the data loads from elsewhere

    ours = best["oxa"]
    shown = {
        "oxa": "oxa: four Parquet tables joined, texts attached, Parquet written",
        "dictionaries": "dictionaries over one joined JSONL without texts",
        "dictionaries+texts": "dictionaries over JSONL with texts, training set written (like for like)",
    }
    print("## Selection: `benchmarks/selection.py`\n")
    print(
        f"{num_rows:,} scored responses, four a problem, {ours['num']:,} chosen by the truncated Gaussian, reading "
        "included, each way in a process of its own. All ways choose the same ids, hence as many of each bin and "
        f"the same lengths. Of {repeats} runs in turn, the one of least CPU time; peak with interpreter and imports, "
        "rise without. Targets: at least 5 times faster, at most a third of the memory.\n"
    )
    print(
        "| way | seconds | CPU seconds | peak MiB | rise MiB | time / oxa | CPU / oxa | peak / oxa | rise / oxa |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for way in WAYS:
        row = best[way]
        ratios = " | ".join(f"{row[key] / ours[key]:.1f}" for key in ("seconds", "cpu", "mib", "rise"))
        print(
            f"| {shown[way]} | {row['seconds']:.2f} | {row['cpu']:.2f} | {row['mib']:.0f} | {row['rise']:.0f} "
            f"| {ratios} |"
        )
    alike = best["dictionaries+texts"]
    against = "JSONL, dictionaries, sorted lists, like for like"
    results.row(f"selection of {num_rows:,} responses", against, alike["seconds"] / ours["seconds"], 5)
    results.row("selection, peak memory", against, ours["mib"] / alike["mib"], 1 / 3, better="lower")


if __name__ == "__main__":
    main()
