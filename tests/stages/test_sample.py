"""The stage that samples the student's own answers."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import CHAT_TEMPLATE, make_checkpoint
from oxa import hashes, prompts
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.sample import Sample
from oxa.errors import DataError
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.model import limits, loading
from oxa.records import schemas, tables
from oxa.stages import sample

SECTION = Sample(max_tokens=12, num_samples=3, seed=4)


def _problems(folder: Path, splits: list[str], questions: dict[int, str] | None = None) -> Path:
    rows = [
        {
            "problem_id": hashes.problem_id(question),
            "source": "test",
            "question": question,
            "answers": [str(2 * i)],
            "tier": "",
            "split": split,
        }
        for i, split in enumerate(splits)
        for question in [(questions or {}).get(i, f"{i} + {i}?")]
    ]
    tables.write(folder / "problems.parquet", rows, schemas.PROBLEMS)
    return folder / "problems.parquet"


def _run(
    section: Sample,
    model: Path,
    problems: Path,
    folder: Path,
    log: Any,
    batch_size: int = 8,
    apart: Sequence[str] = (),
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    tables.write(folder / "apart.parquet", {"problem_id": list(apart)}, schemas.APART)
    return sample.run(
        section,
        Generate(batch_size=batch_size),
        Prompt(suffix=" Go."),
        model=model,
        sampler=folder / "sampler",
        problems=problems,
        apart=folder / "apart.parquet",
        output=folder / "responses.parquet",
        scratch=folder / "scratch",
        log=log,
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    return tables.read(folder / "responses.parquet", schemas.RESPONSES).to_pylist()


def test_every_training_problem_gets_its_samples_and_no_other_problem_does(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    problems = _problems(tmp_path, ["train", "aime", "train", "train"])
    metrics = _run(SECTION, checkpoint, problems, tmp_path, log)
    rows = _rows(tmp_path)
    asked = [hashes.problem_id(f"{i} + {i}?") for i in (0, 2, 3)]
    assert [row["problem_id"] for row in rows] == [p for p in asked for _ in range(3)]
    assert [row["sample_index"] for row in rows] == [0, 1, 2] * 3
    assert {(row["origin"], row["model"], row["seed"]) for row in rows} == {("self", checkpoint.name, 4)}
    for row in rows:
        key = f"4/{row['sample_index']}"
        assert row["response_id"] == hashes.response_id(row["problem_id"], "self", checkpoint.name, key)
    assert len({row["text"] for row in rows}) == 9
    assert (metrics["num_problems"], metrics["num_responses"]) == (3, 9)


def test_the_text_is_what_the_sampler_gives_for_the_rendered_prompt(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    problems = _problems(tmp_path, ["train", "train"])
    _run(SECTION, checkpoint, problems, tmp_path, log)
    tokenizer = loading.load_tokenizer(checkpoint)
    rows = _rows(tmp_path)
    requests = [
        Request(row["response_id"], prompts.prompt_ids(tokenizer, f"{i // 3} + {i // 3}? Go."))
        for i, row in enumerate(rows)
    ]
    expected = generate.generate(
        checkpoint, requests, SECTION, Generate(batch_size=1), scratch=tmp_path / "other", description="test"
    )
    assert [(r["text"], r["num_tokens"], r["finish_reason"]) for r in rows] == [g[1:4] for g in expected]


def test_a_tag_that_the_samplers_template_opens_is_put_back_into_the_text(tmp_path: Path, log: Any) -> None:
    template = CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}")
    assert template != CHAT_TEMPLATE
    model = make_checkpoint(tmp_path / "thinker", template=template)
    _run(SECTION, model, _problems(tmp_path, ["train"]), tmp_path, log)
    assert all(row["text"].startswith("<think>\n") for row in _rows(tmp_path))


def test_a_sampler_without_a_template_is_refused_in_a_sentence(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "bare"))
    (model / "chat_template.jinja").unlink()
    section = SECTION.model_copy(update={"model": str(model)})
    with pytest.raises(
        DataError, match=r"sample.model: bare cannot sample: .*no chat template; put one into its"
    ):
        _run(section, checkpoint, _problems(tmp_path, ["train"]), tmp_path, log)


def test_two_runs_write_equal_bytes(checkpoint: Path, tmp_path: Path, log: Any) -> None:
    problems = _problems(tmp_path, ["train"] * 4)
    first = _run(SECTION, checkpoint, problems, tmp_path / "a", log)
    assert _run(SECTION, checkpoint, problems, tmp_path / "b", log) == first
    a, b = ((tmp_path / name / "responses.parquet").read_bytes() for name in "ab")
    assert a == b


def test_the_settings_are_kept_with_the_responses(checkpoint: Path, tmp_path: Path, log: Any) -> None:
    section = SECTION.model_copy(update={"temperature": 0.6, "top_p": 0.9})
    _run(section, checkpoint, _problems(tmp_path, ["train"]), tmp_path, log)
    found = tables.notes(tmp_path / "responses.parquet")["sampling"]
    assert [sorted(note) for note in found.pop("made_by")] == [["torch", "transformers"]]
    assert found == {"engine": "torch", "temperature": 0.6, "top_p": 0.9, "max_tokens": 12, "seed": 4}


def test_samples_do_not_depend_on_how_many_there_are_or_on_batches(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    _run(SECTION, checkpoint, _problems(tmp_path, ["train"] * 2), tmp_path / "few", log, batch_size=2)
    more = SECTION.model_copy(update={"num_samples": 5})
    _run(more, checkpoint, _problems(tmp_path, ["train"] * 4), tmp_path / "many", log, batch_size=7)
    many = {row["response_id"]: row["text"] for row in _rows(tmp_path / "many")}
    few = _rows(tmp_path / "few")
    assert len(many) == 20
    assert [many[row["response_id"]] for row in few] == [row["text"] for row in few]


def test_another_model_may_sample_and_is_named_without_its_path(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    from conftest import make_checkpoint

    problems = _problems(tmp_path, ["train"] * 2)
    sibling = make_checkpoint(tmp_path / "deep" / "sibling", seed=1)
    _run(SECTION, checkpoint, problems, tmp_path / "base", log)
    _run(SECTION.model_copy(update={"model": str(sibling)}), checkpoint, problems, tmp_path / "other", log)
    base, other = _rows(tmp_path / "base"), _rows(tmp_path / "other")
    assert {row["model"] for row in other} == {"sibling"}
    assert not {row["response_id"] for row in base} & {row["response_id"] for row in other}
    assert not {row["text"] for row in base} & {row["text"] for row in other}


def test_metrics_are_means_over_what_was_written(checkpoint: Path, tmp_path: Path, log: Any) -> None:
    problems = _problems(tmp_path, ["train"] * 3)
    greedy = SECTION.model_copy(update={"temperature": 0})
    metrics = _run(greedy, checkpoint, problems, tmp_path, log)
    rows = _rows(tmp_path)
    assert metrics["mean_tokens"] == pytest.approx(sum(row["num_tokens"] for row in rows) / 9)
    assert metrics["response_entropy"] == pytest.approx(sum(row["mean_entropy"] for row in rows) / 9)
    assert metrics["truncated"] == pytest.approx(sum(row["finish_reason"] == "length" for row in rows) / 9)
    assert metrics["without_end_think"] == 1
    assert metrics["no_room"] == 0
    assert metrics["distinct_texts"] == pytest.approx(1 / 3)  # greedy samples of a problem are one


@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_a_problem_that_fills_the_context_gets_empty_responses_that_are_counted(
    tmp_path: Path, log: Any, opening: str
) -> None:
    template = CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}", f"{{{{ '<|assistant|>{opening}' }}}}")
    model = make_checkpoint(tmp_path / "model", template=template)
    problems = _problems(tmp_path, ["train"] * 3, {1: "1" * 1100})
    metrics = _run(SECTION, model, problems, tmp_path, log)
    rows = _rows(tmp_path)
    assert [row["num_tokens"] == 0 for row in rows] == [False] * 3 + [True] * 3 + [False] * 3
    for row in rows[3:6]:
        assert (row["text"], row["finish_reason"]) == ("", "length")
        assert math.isnan(row["mean_entropy"])
    drawn = rows[:3] + rows[6:]
    assert all(row["text"].startswith(opening) and row["text"] for row in drawn)
    assert (metrics["no_room"], metrics["num_responses"]) == (3, 9)
    assert metrics["response_entropy"] == pytest.approx(sum(row["mean_entropy"] for row in drawn) / 6)
    assert metrics["mean_tokens"] == pytest.approx(sum(row["num_tokens"] for row in drawn) / 9)
    json.dumps(metrics, allow_nan=False)


def test_problems_that_all_fill_the_context_are_one_clear_sentence_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    problems = _problems(tmp_path, ["train"] * 2, {0: "1" * 1100, 1: "2" * 1200})
    with pytest.raises(DataError, match="leaves no room in the context of 1024 tokens"):
        _run(SECTION, checkpoint, problems, tmp_path, log)
    assert not (tmp_path / "responses.parquet").exists()


def test_no_training_problem_is_one_clear_sentence_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    problems = _problems(tmp_path, ["aime"])
    with pytest.raises(DataError, match="no problem of split 'train'"):
        _run(SECTION, checkpoint, problems, tmp_path, log)
    assert not (tmp_path / "responses.parquet").exists()


def test_a_missing_problems_table_is_one_clear_sentence(checkpoint: Path, tmp_path: Path, log: Any) -> None:
    with pytest.raises(DataError, match=r"nothing.parquet: no such file"):
        _run(SECTION, checkpoint, tmp_path / "nothing.parquet", tmp_path, log)


def test_a_sampler_from_elsewhere_whose_template_never_ends_is_refused(
    checkpoint: Path, tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 1.0)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    sampler = make_checkpoint(tmp_path / "sampler", template=endless)
    section = SECTION.model_copy(update={"model": str(sampler)})
    with pytest.raises(DataError, match="its chat template: reading it takes more than 1 s"):
        _run(section, checkpoint, _problems(tmp_path, ["train"]), tmp_path, log)


PROCESS = """
import json, os, signal, sys
from pathlib import Path
import torch
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.sample import Sample
from oxa.generation.store import Store
from oxa.stages import sample

torch.set_num_threads(1)
model, folder, killed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rank, made, add = os.environ.get("RANK", "0"), [], Store.add

def counted(self, key, generations):
    add(self, key, generations)
    made.extend(generation.response_id for generation in generations)
    if rank == killed and len(made) > 8:
        os.kill(os.getpid(), signal.SIGKILL)

Store.add = counted
scratch = folder / "scratch"
scratch.mkdir(exist_ok=True)
metrics = sample.run(Sample(max_tokens=12, num_samples=3, seed=4), Generate(batch_size=4), Prompt(suffix=" Go."),
                     model=model, sampler=model, problems=folder / "problems.parquet", apart=folder / "apart.parquet",
                     output=folder / "responses.parquet", scratch=scratch, log=print)
assert bool(metrics) == (rank == "0")
(folder / f"made-{rank}").write_text(json.dumps(made))
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.mark.whole
def test_several_processes_share_the_work_over_a_kill_and_write_what_one_does(
    checkpoint: Path, tmp_path: Path, log: Any
) -> None:
    problems = _problems(tmp_path, ["train"] * 20)
    _run(SECTION, checkpoint, problems, tmp_path / "alone", log, batch_size=4)
    tables.write(tmp_path / "apart.parquet", {"problem_id": []}, schemas.APART)
    (tmp_path / "process.py").write_text(PROCESS)

    def launched(num: int, killed: str = "") -> int:
        command = [sys.executable, *TORCHRUN, str(num), str(tmp_path / "process.py")]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        words = [str(checkpoint), str(tmp_path), killed]
        return subprocess.run([*command, *words], env=environment, timeout=300).returncode

    def made(rank: int) -> list[str]:
        ids: list[str] = json.loads((tmp_path / f"made-{rank}").read_text())
        return ids

    assert launched(3, killed="2") != 0
    assert not (tmp_path / "responses.parquet").exists()
    kept = sum(len(path.read_text().splitlines()) for path in (tmp_path / "scratch").glob("*-2.jsonl"))
    assert kept > 8
    assert launched(2) == 0
    again = made(0) + made(1)
    assert made(0)
    assert made(1)
    assert len(set(again)) == len(again) <= 60 - 12, "what the third process had made is not made again"
    written, expected = (
        folder.joinpath("responses.parquet").read_bytes() for folder in (tmp_path, tmp_path / "alone")
    )
    assert written == expected
