"""Memory of ingest, verify and selection does not grow with the texts that pass through them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oxa.config.fine_tuning import FineTuning
from oxa.config.ingest import Ingest
from oxa.config.prompt import Prompt
from oxa.config.selection import CeSet, SelectionShared, UnlikelihoodSet
from oxa.config.sources import Sources
from oxa.config.verify import Verify
from oxa.records import schemas, tables
from oxa.stages import ingest, selection_ce, selection_ul, verify

CHARS = 3000  # of a response
NUM_ROWS = 9000  # more than any stage takes together, of either source
BYTES = 3000  # an extra row may take: less than its text alone, with room for what allocators keep


def write_sources(folder: Path, num_rows: int) -> None:
    """Four rows a problem: half of them in one Parquet row group, half in one JSON list without line breaks."""
    folder.mkdir()
    rows = []
    for i in range(num_rows):
        filler = " ".join(f"step {i * k}" for k in range(CHARS // 10))[:CHARS]
        rows.append(
            {
                "q": f"What is {i // 4} plus {i // 4}, once more?",
                "a": str(i % 1000 // 4),
                "r": f"<think>{filler}</think>\\boxed{{{i % 1000 // 4 + i % 4 // 2}}}",
            }
        )
    half = num_rows // 2
    pq.write_table(pa.Table.from_pylist(rows[:half]), folder / "first.parquet", row_group_size=num_rows)
    (folder / "second.json").write_text(json.dumps(rows[half:]))
    (folder / "exam.json").write_text(json.dumps([{"q": "in the exam alone?", "a": "7"}]))


def highest() -> int:
    """Most resident memory so far, bytes. (What getrusage tells holds the parent's, too.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def soak(folder: Path) -> dict[str, Any]:
    """Runs the stages; returns how many rows each handled and the highest memory after it."""

    def quiet(step: int, **values: float) -> None:
        pass

    columns = {"question": "q", "answer": "a", "responses": "r"}
    section = Ingest.model_validate(
        {
            "teacher": [{"source": name, "mapping": columns} for name in ("first.parquet", "second.json")],
            "benchmarks": {"exam": {"source": "exam.json", "mapping": {"question": "q", "answer": "a"}}},
        }
    )
    given = {"log": quiet, "scratch": folder}
    problems, teacher, verdicts = (folder / f"{name}.parquet" for name in ("problems", "teacher", "verdicts"))
    rest = {name: folder / f"{name}.parquet" for name in ("rejects", "contamination")}
    judged = Verify(workers=1)
    counts = ingest.run(
        section,
        Sources(folder=str(folder / "sources")),
        judged,
        problems=problems,
        responses=teacher,
        **rest,
        **given,
    )
    counted = {"ingested": counts["totals"]["responses"], "ingest": highest()}
    metrics = verify.run(judged, problems=problems, responses=teacher, output=verdicts, **given)
    counted |= {"correct": metrics["verdicts"]["correct"], "verify": highest()}
    table = tables.read(verdicts, schemas.VERDICTS, ["response_id"])
    ppl = np.random.default_rng(0).uniform(1.0, 3.2, len(table))
    scores = {"response_id": table["response_id"], "scorer": ["drawn"] * len(table), "mean_nll": np.log(ppl)}
    scores |= {"ppl": ppl, "num_tokens": np.full(len(table), 700), "truncated": np.zeros(len(table), bool)}
    scores |= {"mean_entropy": ppl, "train_tokens": np.full(len(table), 800)}
    tables.write(folder / "scores.parquet", scores, schemas.SCORES, {schemas.CONTEXT: 4096})
    shared, prompt, train = SelectionShared(num_ce=500, mean=2.1), Prompt(suffix=""), FineTuning()
    given |= {"problems": problems, "responses": teacher, "verdicts": verdicts}
    tables.write(folder / "apart.parquet", [], schemas.APART)
    given |= {"scores": folder / "scores.parquet", "apart": folder / "apart.parquet"}
    chosen = selection_ce.run(
        shared,
        CeSet(rule="gaussian"),
        prompt,
        train,
        pass_rates=folder / "pass_rates.parquet",
        output=folder / "ce.parquet",
        **given,
    )
    chosen |= selection_ul.run(
        shared, UnlikelihoodSet(num=500), prompt, train, output=folder / "ul.parquet", **given
    )
    return counted | {"chosen": chosen["ce"]["chosen"] + chosen["ul"]["chosen"], "selection": highest()}


@pytest.mark.whole
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is read from /proc")
def test_memory_of_the_stages_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    counted = {}
    for times in (1, 4):
        folder = tmp_path / f"times{times}"
        folder.mkdir()
        write_sources(folder / "sources", times * NUM_ROWS)
        command = [sys.executable, __file__, str(folder)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        counted[times] = json.loads(run.stdout)
        assert counted[times]["ingested"] == times * NUM_ROWS
        assert counted[times]["correct"] == times * NUM_ROWS // 2
        assert counted[times]["chosen"] == 1000
    for stage in ("ingest", "verify", "selection"):
        extra = counted[4][stage] - counted[1][stage]
        assert extra < BYTES * 3 * NUM_ROWS, (stage, extra / (3 * NUM_ROWS))


if __name__ == "__main__":
    print(json.dumps(soak(Path(sys.argv[1]))))
