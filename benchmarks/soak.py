"""Soak: a teacher file of a million rows through ingest, verify and selection: time, memory of all processes, disk.

    python benchmarks/soak.py [--rows 1000000] [--quick] [--data shared/data] [--keep FOLDER]

The file holds a quarter as many problems as rows, four responses each, one a row, the four far apart. Texts are GSM8K's
problems, reference solutions and what four real models answered, 300 to 1,500 characters a response, told apart by
other numbers. A few rows in a hundred are broken or odd: no answer, an answer that does not parse, the same answer in
another form, another answer than the first row's, a box left open, no </think>, too long, empty, twice the same; some
problems are of the benchmark. It is written as JSON lines and as Parquet in row groups of 250,000.

The stages are the real command line's, each in a process of its own. Scoring a million rows takes an accelerator, so
the scores are drawn: log-normal perplexities for what is correct (CE sets) and incorrect (UL set; the teacher's table
stands for the student's own).

Main: the stage's process, by the kernel's high-water mark. All: the sum over it and its children, ten times a second;
pages that they share count several times. It fails where all take more than --limit, or the two forms differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
ROW_GROUP = 250_000
MAX_CHARS = 200_000
ARMS = ("sft", "sft_lp", "oxa_mle", "oxa_full")


def shift(text: str, by: int) -> str:
    """The text with other numbers."""
    return re.sub(r"\d+", lambda number: str(int(number[0]) + by), text) if by else text


def teacher(data: Path, num_rows: int) -> Iterator[dict[str, str]]:
    """Rows of problem, answer and response; a row depends on its number alone."""
    solved = [json.loads(line) for line in (data / "gsm8k_train.jsonl").read_text().splitlines()]
    solved = [row for row in solved if re.search(r"\d", row["question"])]
    models = [json.loads(line) for line in (data / "gsm8k_model_solutions.jsonl").read_text().splitlines()]
    thoughts = [row[model]["solution"].rpartition("A:")[0] for row in models for model in MODELS]
    exam = [row["question"] for row in models]
    num_problems = (num_rows + 3) // 4
    for i in range(num_rows):
        turn, number = divmod(i, num_problems)
        base, variant = solved[number % len(solved)], number // len(solved)
        question = shift(base["question"], 7 * variant)
        solution, _, gold = shift(re.sub(r"<<[^<>]*>>", "", base["answer"]), 7 * variant).partition("#### ")
        gold = gold.replace(",", "")
        if number % 500 == 7:
            question = exam[(number // 500) % len(exam)]
        draw = random.Random(i)
        others = draw.choices(thoughts, k=draw.randrange(1, 5))
        thought = "\n".join([solution.strip(), *(shift(text, turn + variant) for text in others)])
        answer = gold if draw.random() < 0.65 else shift(gold, 1 + draw.randrange(50))
        response = f"<think>\n{thought}\n</think>\nThe answer is $\\boxed{{{answer}}}$."
        odd = draw.randrange(10_000)
        if odd < 50:
            gold = ""
        elif odd < 100:
            gold = r"\frac{" + gold
        elif odd < 300:
            gold = rf"\frac{{{gold}0}}{{10}}"
        elif odd < 350:
            gold = f"{gold}1"
        elif odd < 400:
            response = response.replace("}$", "$")
        elif odd < 450:
            response = response.replace("</think>", "")
        elif odd < 500:
            response = " \n"
        elif odd < 550:
            response = f"<think>Clear.</think>\\boxed{{{shift(gold, variant)}}}"  # the same for all rows of a problem
        elif odd < 600:
            question = ""
        elif odd == 600:
            response += "so " * (MAX_CHARS // 3)
        yield {"problem": question, "answer": gold, "response": response}


def make(folder: Path, data: Path, num_rows: int) -> None:
    """Writes teacher.jsonl, teacher.parquet and exam.jsonl."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in ("problem", "answer", "response")])
    rows: list[dict[str, str]] = []
    with (
        (folder / "teacher.jsonl").open("w", encoding="utf-8") as lines,
        pq.ParquetWriter(folder / "teacher.parquet", schema, compression="zstd") as writer,
    ):
        for row in teacher(data, num_rows):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            rows.append(row)
            if len(rows) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=ROW_GROUP)
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=ROW_GROUP)
    shutil.copyfile(data / "gsm8k_test.jsonl", folder / "exam.jsonl")


def synthesise(folder: Path) -> None:
    """Draws scores for every correct response (scores.parquet) and every incorrect one (self_scores.parquet)."""
    import numpy as np
    import pyarrow.compute as pc

    from oxa.records import schemas, tables

    judged = tables.read(folder / "verdicts.parquet", schemas.VERDICTS, ["response_id", "verdict"])
    for name, verdict, seed in (("scores", "correct", 0), ("self_scores", "incorrect", 1)):
        ids = judged.filter(pc.equal(judged["verdict"], verdict))["response_id"]
        draws = np.random.default_rng(seed)
        ppl = np.exp(draws.normal(np.log(2.3), 0.25, len(ids))).clip(1.0)
        columns = {"response_id": ids, "scorer": ["drawn"] * len(ids), "mean_nll": np.log(ppl), "ppl": ppl}
        columns |= {"num_tokens": (draws.lognormal(5.5, 0.5, len(ids)) * ppl).astype(np.int32) + 1}
        columns |= {"truncated": np.zeros(len(ids), bool), "mean_entropy": np.full(len(ids), 0.3)}
        columns |= {"train_tokens": columns["num_tokens"] + 100}
        tables.write(folder / f"{name}.parquet", columns, schemas.SCORES, {schemas.CONTEXT: 2**31 - 1})


def params(folder: Path, form: str, num_rows: int) -> Path:
    """Parameters of a run over teacher.jsonl or teacher.parquet, else the small world's."""
    import yaml

    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    columns = {"question": "problem", "answer": "answer", "responses": "response"}
    values["sources"] = {"folder": "sources"}
    values["ingest"] |= {
        "teacher": [{"source": f"teacher.{form}", "mapping": columns}],
        "rlvr": [],
        "benchmarks": {"gsm8k": {"source": "exam.jsonl", "mapping": "gsm8k"}},
        "max_chars": MAX_CHARS,
    }
    num = num_rows // 20
    values["selection"] = {
        "shared": {"num_ce": num, "seed": 0},
        "arms": {
            "sft": {"ce": "random"},
            "sft_lp": {"ce": "lowest"},
            "oxa_mle": {"ce": "gaussian"},
            "oxa_full": {"ce": "gaussian", "ul": {"num": num}},
        },
    }
    values["registry"]["benchmark"] = "gsm8k"
    values["tracking"]["enabled"] = False
    path = folder / f"{form}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Watch(threading.Thread):
    """Memory of a process and of it with its children, MiB, and their CPU time, until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self.main, self.all, self.children = pid, 0.0, 0.0, 0
        self._cpu: dict[int, float] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        import psutil

        process = psutil.Process(self._pid)
        status = Path(f"/proc/{self._pid}/status")
        while not self.ended.wait(0.1):
            try:
                found = process.children(recursive=True)
                total = sum(map(self._look, [process, *found]))
                high = re.search(r"VmHWM:\s+(\d+)", status.read_text())
            except (psutil.Error, OSError):
                break
            self.main = max(self.main, int(high[1]) / 1024 if high else 0.0)
            self.all, self.children = max(self.all, total / 2**20), max(self.children, len(found))

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes, as far as they were seen: the last tenth of a second is missing."""
        return sum(self._cpu.values())

    def _look(self, process: Any) -> int:
        """Resident bytes of a process; notes its CPU time."""
        import psutil

        try:
            with process.oneshot():
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                return int(process.memory_info().rss)
        except psutil.Error:  # it has ended meanwhile
            return 0


def measure(folder: Path, name: str, command: list[str]) -> dict[str, Any]:
    """Runs a command there to its end; exits with what it said where it fails."""
    print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        watch = Watch(process.pid)
        watch.start()
        process.wait()
        watch.ended.set()
        watch.join()
        said.seek(0)
        if process.returncode:
            sys.exit(f"{name}: exit status {process.returncode}\n{said.read()}")
    found = {"name": name, "seconds": time.perf_counter() - start, "cpu": watch.cpu}
    found |= {"main": watch.main, "all": watch.all, "children": watch.children}
    print(f"{found['seconds']:.0f} s, {found['all']:.0f} MiB", file=sys.stderr)
    return found


def mebibytes(*paths: Path) -> float:
    return sum(path.stat().st_size for path in paths) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--limit", type=float, default=4096, help="MiB that all processes of a stage may take"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder to work in and to leave as it is; else a temporary one"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    num_rows = 20_000 if options.quick else options.rows
    if options.part:
        synthesise(Path(options.part)) if options.part != "make" else make(
            Path("sources"), options.data, num_rows
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        (folder / "sources").mkdir(parents=True, exist_ok=True)
        soak(folder, options.data.resolve(), num_rows, options.limit)


def soak(folder: Path, data: Path, num_rows: int, limit: float) -> None:
    again = [sys.executable, __file__, "--rows", str(num_rows), "--data", str(data), "--part"]
    sources = [folder / "sources" / f"teacher.{form}" for form in ("jsonl", "parquet")]
    if not all(source.exists() for source in sources):
        measure(folder, "making the file", [*again, "make"])
    oxa = [sys.executable, "-m", "oxa.cli"]
    rows, outputs, ingested = [], [], {}
    for form in ("parquet", "jsonl"):  # the later stages read what the last one leaves
        paths = [
            "--problems",
            "problems.parquet",
            "--responses",
            "teacher.parquet",
            "--rejects",
            "rejects.parquet",
        ]
        paths += ["--contamination", "contamination.parquet", "--metrics", f"ingest-{form}.json"]
        found = measure(
            folder,
            f"ingest, {form}",
            [*oxa, "ingest", "--params", str(params(folder, form, num_rows)), *paths],
        )
        rows.append(found | {"rows": num_rows})
        ingested[form] = json.loads((folder / f"ingest-{form}.json").read_text())
        outputs.append(
            [folder / f"{name}.parquet" for name in ("problems", "teacher", "rejects", "contamination")]
        )
        rows[-1]["disk"] = mebibytes(*outputs[-1])
    counts = {form: metrics["totals"] for form, metrics in ingested.items()}
    if counts["jsonl"] != counts["parquet"]:
        sys.exit(f"the two forms were ingested differently: {counts}")
    total = counts["jsonl"]
    lost = sum(total["dropped"].values())
    given = ["--params", str(folder / "jsonl.yaml"), "--problems", "problems.parquet"]
    command = [*oxa, "verify", *given, "--origin", "teacher", "--responses", "teacher.parquet"]
    command += ["--output", "verdicts.parquet", "--metrics", "verify.json"]
    rows.append(measure(folder, "verify", command) | {"rows": total["responses"]})
    rows[-1]["disk"] = mebibytes(folder / "verdicts.parquet")
    judged = json.loads((folder / "verify.json").read_text())
    measure(folder, "drawing scores", [*again, str(folder)])
    for arm in ARMS:
        command = [*oxa, "selection", *given, "--arm", arm, "--teacher", "teacher.parquet"]
        command += ["--teacher-verdicts", "verdicts.parquet", "--teacher-scores", "scores.parquet"]
        command += ["--self-responses", "teacher.parquet", "--self-verdicts", "verdicts.parquet"]
        command += [
            "--self-scores",
            "self_scores.parquet",
            "--output",
            f"{arm}.parquet",
            "--metrics",
            f"{arm}.json",
        ]
        rows.append(measure(folder, f"selection, {arm}", command) | {"rows": total["responses"]})
        rows[-1]["disk"] = mebibytes(folder / f"{arm}.parquet")
    report(num_rows, mebibytes(sources[0]), mebibytes(sources[1]), total, lost, judged, rows, limit)
    if (highest := max(row["all"] for row in rows)) > limit:
        sys.exit(f"{highest:.0f} MiB are more than the limit of {limit:.0f} MiB")


def report(
    num_rows: int,
    lines: float,
    parquet: float,
    total: dict[str, Any],
    lost: int,
    judged: dict[str, Any],
    rows: list[dict[str, Any]],
    limit: float,
) -> None:
    """Prints the section of RESULTS.md."""
    import results  # beside this file, which tests and children load from elsewhere

    verdicts = ", ".join(f"{name} {count:,}" for name, count in judged["verdicts"].items() if count)
    dropped = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in total["dropped"].items())
    highest = max(row["all"] for row in rows)
    print("## Soak: `benchmarks/soak.py`\n")
    print(
        f"A teacher file of {num_rows:,} rows, four responses a problem ({lines:,.0f} MiB as JSON lines, "
        f"{parquet:,.0f} MiB as Parquet in row groups of {ROW_GROUP:,}), through the command line's stages, each in a "
        f"process of its own, with {len(os.sched_getaffinity(0))} cores. Texts are GSM8K's, varied by their numbers; a "
        "few in a hundred are broken. Scores are drawn, since scoring takes an accelerator. Main: high-water mark of "
        "the stage's process; all: it and its workers, added up ten times a second, so that what they share counts "
        "several times. Times include start-up and the guard's hashing of inputs and outputs.\n"
    )
    print("| stage | rows | seconds | rows/s | CPU seconds | main MiB | all MiB | workers | written, MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['rows']:,} | {row['seconds']:.1f} | {row['rows'] / row['seconds']:,.0f} "
            f"| {row['cpu']:.1f} | {row['main']:.0f} | {row['all']:.0f} | {row['children']} | {row['disk']:.0f} |"
        )
    print(
        f"\nHighest: {highest:,.0f} MiB of {limit:,.0f} allowed. Ingestion is the same from either form: "
        f"{total['problems']:,} problems and {total['responses']:,} responses kept of {total['rows']:,} rows; "
        f"{lost:,} rows and responses listed as dropped ({dropped}; a further row of a known problem counts as "
        "duplicate problem and gives its response). "
        f"Verdicts: {verdicts}, over {judged['distinct']:,} distinct pairs of answers."
    )
    what = f"soak, {num_rows:,} rows: peak memory of all processes"
    results.row(what, "–", highest / 1024, limit / 1024, better="lower", unit="GiB")


if __name__ == "__main__":
    main()
