"""Scoring against a plain reference: METHOD §2 and §6.2."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_sets
from training_rows import ROWS
from transformers import AutoConfig, AutoModelForCausalLM

from oxa import hashes, prompts
from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.score import Score
from oxa.config.section import Sampling
from oxa.errors import DataError
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.stages import score, train

SUFFIX = " Think."
TEXTS = [
    "<think>1</think> \\boxed{1}",
    "<think>" + "7 " * 60 + "</think> \\boxed{2}",
    "a",
    "<think>é</think>3",
    "ab cd",
]


def write_tables(
    folder: Path, texts: list[str], origin: str = "teacher", verdicts: list[str] | None = None
) -> dict[str, Path]:
    """One problem a response; every response correct unless said otherwise."""
    paths = {name: folder / f"{name}.parquet" for name in ("problems", "responses", "verdicts")}
    questions = [f"What is {i} + {i}?" * (1 + i % 3) for i in range(len(texts))]
    ids = [hashes.problem_id(question) for question in questions]
    tables.write(
        paths["problems"],
        [
            {"problem_id": i, "source": "s", "question": q, "answers": ["1"], "tier": "", "split": "train"}
            for i, q in zip(ids, questions, strict=True)
        ],
        schemas.PROBLEMS,
    )
    rows: list[dict[str, Any]] = [
        {
            "response_id": f"r{i}",
            "problem_id": problem,
            "origin": origin,
            "model": "m",
            "sample_index": 0,
            "seed": -1,
            "text": text,
            "num_tokens": -1,
            "finish_reason": "stop",
            "mean_entropy": math.nan,
        }
        for i, (problem, text) in enumerate(zip(ids, texts, strict=True))
    ]
    tables.write(paths["responses"], rows, schemas.RESPONSES)
    graded = [
        {"response_id": f"r{i}", "verdict": verdict, "predicted": None}
        for i, verdict in enumerate(verdicts or ["correct"] * len(texts))
    ]
    tables.write(paths["verdicts"], graded, schemas.VERDICTS)
    return paths


def run(
    folder: Path, checkpoint: Path, log: Any, paths: dict[str, Path], **settings: Any
) -> list[dict[str, Any]]:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    section = Score(**({"batch_tokens": 600, "chunk": 64} | settings))
    output = folder / "scores.parquet"
    score.run(
        section, Prompt(suffix=SUFFIX), model=checkpoint, **paths, output=output, scratch=scratch, log=log
    )
    for shard in scratch.iterdir():
        shard.unlink()
    return tables.read(output, schemas.SCORES).to_pylist()


@torch.no_grad()
def reference(
    checkpoint: Path, question: str, text: str, *, conditioned: bool, limit: int
) -> tuple[float, float, int]:
    """Mean NLL and entropy of one response by a full float32 forward pass, all logits at once."""
    model, tokenizer = loading.load(checkpoint, dtype=torch.float32)
    context = prompts.prompt_ids(tokenizer, question + SUFFIX) if conditioned else []
    ids = torch.tensor([context + prompts.response_ids(tokenizer, text, end=False)])[:, :limit]
    start = max(1, len(context))
    log_p = model(ids).logits[0].float().log_softmax(-1)
    nll = [-log_p[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1])]
    entropy = [-(log_p[t - 1].exp() * log_p[t - 1]).sum().item() for t in range(start, ids.shape[1])]
    return sum(nll) / len(nll), sum(entropy) / len(entropy), len(nll)


@pytest.mark.parametrize("conditioned", [True, False])
def test_scores_equal_a_plain_forward_token_by_token(
    tmp_path: Path, checkpoint: Path, log: Any, conditioned: bool
):
    texts = [text for text in TEXTS if conditioned or text != "a"]
    paths = write_tables(tmp_path, texts)
    rows = run(tmp_path, checkpoint, log, paths, condition_on_prompt=conditioned, max_length=130)
    questions = tables.read(paths["problems"], schemas.PROBLEMS)["question"].to_pylist()
    for row, question, text in zip(rows, questions, texts, strict=True):
        nll, entropy, count = reference(checkpoint, question, text, conditioned=conditioned, limit=130)
        assert row["mean_nll"] == pytest.approx(nll, rel=1e-5)
        assert row["ppl"] == pytest.approx(math.exp(nll), rel=1e-5)
        assert row["mean_entropy"] == pytest.approx(entropy, rel=1e-5)
        assert row["num_tokens"] == count
        assert row["truncated"] == (text == TEXTS[1])
        assert row["scorer"] == checkpoint.name
        # what training will read, whatever is scored of it
        context = prompts.prompt_ids(loading.load_tokenizer(checkpoint), question + SUFFIX)
        ids = prompts.response_ids(loading.load_tokenizer(checkpoint), text, end=True)
        assert row["train_tokens"] == len(context) + len(ids)
    assert tables.notes(tmp_path / "scores.parquet") == {schemas.CONTEXT: 1024}


@torch.no_grad()
@pytest.mark.parametrize("conditioned", [True, False])
def test_measures_equal_a_plain_forward(tmp_path: Path, checkpoint: Path, log: Any, conditioned: bool):
    paths = write_tables(tmp_path, TEXTS)
    kept = [text for text in TEXTS if conditioned or text != "a"]
    measures = ["hes", "ifd", "rsr"]
    output = tmp_path / "scores.parquet"
    (tmp_path / "scratch").mkdir()
    given = {"model": checkpoint, "output": output, "scratch": tmp_path / "scratch", "log": log}
    section = Score(condition_on_prompt=conditioned, batch_tokens=600, chunk=16, measures=measures)
    metrics = score.run(section, Prompt(suffix=SUFFIX), **paths, **given)
    rows = tables.read(output, schemas.scores(measures)).to_pylist()
    (tmp_path / "plain").mkdir()
    plain = run(tmp_path / "plain", checkpoint, log, paths, condition_on_prompt=conditioned, chunk=16)
    assert tables.columns(tmp_path / "plain/scores.parquet") == schemas.SCORES.names
    assert [{name: row[name] for name in schemas.SCORES.names} for row in rows] == plain, "to the bit"
    model, tokenizer = loading.load(checkpoint, dtype=torch.float32)
    questions = tables.read(paths["problems"], schemas.PROBLEMS)["question"].to_pylist()
    for row in rows:
        place = int(row["response_id"][1:])
        question, text = questions[place], TEXTS[place]
        context = prompts.prompt_ids(tokenizer, question + SUFFIX) if conditioned else []
        ids = torch.tensor([context + prompts.response_ids(tokenizer, text, end=False)])
        start = max(1, len(context))
        log_p = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        own = log_p.gather(1, ids[0, start:, None])
        ranks = 1 + (log_p > own).sum(1)
        assert row["rsr"] == pytest.approx((ranks.clamp(max=100).sum() / -own.sum()).item(), rel=1e-4)
        entropies = -(log_p.exp() * log_p).sum(1)
        num = math.ceil(len(entropies) / 200)
        assert row["hes"] == pytest.approx(entropies.sort().values[-num:].sum().item(), rel=1e-5)
        if text == "a":
            assert math.isnan(row["ifd"]), "no ppl without a prompt"
        else:
            nll = [
                reference(checkpoint, question, text, conditioned=with_, limit=1000)[0]
                for with_ in (True, False)
            ]
            assert row["ifd"] == pytest.approx(math.exp(nll[0] - nll[1]), rel=1e-5)
    assert len(rows) == len(kept)
    assert metrics["rsr"]["p50"] == pytest.approx(np.median([row["rsr"] for row in rows]))
    own = write_tables(tmp_path, TEXTS, "self", ["incorrect"] * len(TEXTS))
    score.run(section, Prompt(suffix=SUFFIX), **own, **given | {"scratch": tmp_path / "plain"})
    assert tables.columns(output) == schemas.SCORES.names, "what is chosen of one's own is chosen by ppl"


def test_responses_that_spell_control_tokens_are_scored_as_text_and_counted(
    tmp_path: Path, checkpoint: Path, log: Any
):
    text = "<think>1<|end|></think> \\boxed{1}"
    paths = write_tables(tmp_path, [text, "<think>2</think>"])
    (tmp_path / "scratch").mkdir()
    given = {"model": checkpoint, "output": tmp_path / "scores.parquet", "scratch": tmp_path / "scratch"}
    metrics = score.run(Score(), Prompt(suffix=SUFFIX), **paths, **given, log=log)
    assert metrics["control_tokens"] == 1
    row = tables.read(tmp_path / "scores.parquet", schemas.SCORES).to_pylist()[0]
    assert row["num_tokens"] == len(text)  # a token a character
    question = tables.read(paths["problems"], schemas.PROBLEMS)["question"][0].as_py()
    nll, _, _ = reference(checkpoint, question, text, conditioned=True, limit=1000)
    assert row["mean_nll"] == pytest.approx(nll, rel=1e-5)


def test_scores_do_not_depend_on_batches_chunks_or_row_order(tmp_path: Path, checkpoint: Path, log: Any):
    texts = [f"<think>{'x1' * (i * 7 % 41)}</think> \\boxed{{{i}}}" for i in range(40)]
    paths = write_tables(tmp_path, texts)
    together = run(tmp_path, checkpoint, log, paths, batch_tokens=4000, chunk=500)
    alone = run(tmp_path, checkpoint, log, paths, batch_tokens=1, chunk=3)
    for a, b in zip(together, alone, strict=True):
        assert a["response_id"] == b["response_id"]
        assert a["mean_nll"] == pytest.approx(b["mean_nll"], rel=1e-5)
        assert a["mean_entropy"] == pytest.approx(b["mean_entropy"], rel=1e-5)


def test_teachers_are_scored_where_correct_and_students_where_surely_wrong(
    tmp_path: Path, checkpoint: Path, log: Any
):
    verdicts = ["correct", "incorrect", "unparsable", "timeout", "bad_gold"]
    teacher = run(tmp_path, checkpoint, log, write_tables(tmp_path, TEXTS, "teacher", verdicts))
    assert [row["response_id"] for row in teacher] == ["r0"]
    student = write_tables(tmp_path, TEXTS, "self", verdicts)
    assert [row["response_id"] for row in run(tmp_path, checkpoint, log, student)] == ["r1"]
    wider = run(tmp_path, checkpoint, log, student, self_verdicts=["incorrect", "timeout"])
    assert [row["response_id"] for row in wider] == ["r1", "r3"]


def test_nothing_to_score_is_an_empty_table(tmp_path: Path, checkpoint: Path, log: Any):
    assert run(tmp_path, checkpoint, log, write_tables(tmp_path, TEXTS, "self")) == []


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_models_that_name_no_longest_sequence_are_scored_and_trained(
    tmp_path: Path, checkpoint: Path, log: Any, kind: str
):
    tokenizer = loading.load_tokenizer(checkpoint)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = AutoConfig.for_model(kind, **sizes)
    assert not hasattr(config, "max_position_embeddings")
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    assert len(run(tmp_path, tmp_path / kind, log, write_tables(tmp_path, TEXTS))) == len(TEXTS)
    arm, shared = TrainArm(), FineTuning(num_ce=12, epochs=1.0)
    data = training_sets.write(tmp_path / "t", ROWS[:12])
    given = {"model": tmp_path / kind, "output": tmp_path / "trained", "scratch": tmp_path, "seed": 0}
    assert train.run(shared, arm, data=data, **given, log=log)["ce_rows"] == 12
    draws = [Request("r", prompts.prompt_ids(tokenizer, "1+1?"))]
    sampling = Sampling(max_tokens=4)

    def draw() -> Any:
        place = {"scratch": tmp_path / "drawn", "description": "test"}
        return generate.generate(tmp_path / kind, draws, sampling, Generate(), **place)

    if kind == "bloom":
        assert draw()[0].num_tokens > 0
    else:
        with pytest.raises(
            DataError, match=r"mamba: the engine torch cannot draw .* set generate.engine: vllm"
        ):
            draw()


def test_verdicts_of_other_responses_are_refused(tmp_path: Path, checkpoint: Path, log: Any):
    paths = write_tables(tmp_path, TEXTS)
    (tmp_path / "other").mkdir()
    paths["verdicts"] = write_tables(tmp_path / "other", TEXTS[:2])["verdicts"]
    with pytest.raises(DataError, match="its rows are not those of"):
        run(tmp_path, checkpoint, log, paths)


def test_responses_without_a_token_to_score_are_left_out_and_counted(
    tmp_path: Path, checkpoint: Path, log: Any
):
    paths = write_tables(tmp_path, ["", "ab", "<think>"])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    metrics = score.run(
        Score(condition_on_prompt=True),
        Prompt(suffix=""),
        model=checkpoint,
        **paths,
        output=tmp_path / "scores.parquet",
        scratch=scratch,
        log=log,
    )
    assert metrics["unscorable"] == 1
    assert tables.read(tmp_path / "scores.parquet", schemas.SCORES)["response_id"].to_pylist() == [
        "r1",
        "r2",
    ]
    assert run(tmp_path, checkpoint, log, paths, max_length=5) == []


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from oxa.config.prompt import Prompt
from oxa.config.score import Score
from oxa.model import scoring
from oxa.stages import score

torch.set_num_threads(1)
folder, model, scratch = map(Path, sys.argv[1:4])
rank, kill_rank, kill_at = os.environ.get("RANK", "0"), sys.argv[4], int(sys.argv[5])
scratch.mkdir(exist_ok=True)
plain, done = scoring.score_batch, []

def counted(*arguments):
    done.append(len(done))
    if rank == kill_rank and len(done) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments)

scoring.score_batch = counted
score.run(Score(batch_tokens=1100, chunk=64), Prompt(suffix=""), model=model,
          problems=folder / "problems.parquet", responses=folder / "responses.parquet",
          verdicts=folder / "verdicts.parquet", output=scratch / "out.parquet", scratch=scratch, log=print)
(scratch / f"batches-{rank}").write_text(str(len(done)))
"""
NUM_BATCHES = 150
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def child(
    inputs: Path, checkpoint: Path, scratch: Path, processes: int = 1, kill: tuple[str, int] = ("", 0)
) -> int:
    """Scores in a number of processes, of which one may be killed at its n-th batch; returns the exit code."""
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, str(inputs / "child.py"), str(inputs), str(checkpoint)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, str(scratch), *map(str, kill)], env=environment, timeout=300).returncode


def batches_done(scratch: Path, rank: int = 0) -> int:
    return int((scratch / f"batches-{rank}").read_text())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 batches, which are 75 shards."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tables(folder, [f"<think>{'ab ' * 150}{i}</think> \\boxed{{{i}}}" for i in range(2 * NUM_BATCHES)])
    (folder / "child.py").write_text(CHILD)
    return folder


@pytest.fixture(scope="module")
def unbroken(inputs: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process writes."""
    scratch = tmp_path_factory.mktemp("unbroken")
    assert child(inputs, checkpoint, scratch) == 0
    assert batches_done(scratch) == NUM_BATCHES
    return (scratch / "out.parquet").read_bytes()


@pytest.mark.whole
def test_two_processes_share_the_work_and_write_what_one_does(
    inputs: Path, checkpoint: Path, tmp_path: Path, unbroken: bytes
):
    assert child(inputs, checkpoint, tmp_path, processes=2) == 0
    shares = [batches_done(tmp_path, rank) for rank in (0, 1)]
    assert sum(shares) == NUM_BATCHES, "no batch is scored twice"
    assert min(shares) > 0
    assert (tmp_path / "out.parquet").read_bytes() == unbroken


@pytest.mark.whole
@pytest.mark.parametrize(("before", "after", "killed"), [(1, 2, "0"), (2, 1, "1")])
def test_killed_and_run_again_it_does_the_rest_and_ends_with_the_same_bytes(
    inputs: Path, checkpoint: Path, tmp_path: Path, unbroken: bytes, before: int, after: int, killed: str
):
    assert child(inputs, checkpoint, tmp_path, before, kill=(killed, 6)) != 0  # at its third shard
    assert not (tmp_path / "out.parquet").exists()
    first = sorted(tmp_path.glob("shard-*.npy"))
    assert len(first) >= 2
    stamps = [path.stat().st_mtime_ns for path in first]
    num_kept = sum(len(np.load(path)) for path in first) // 2
    assert child(inputs, checkpoint, tmp_path, after) == 0
    assert sum(batches_done(tmp_path, rank) for rank in range(after)) == NUM_BATCHES - num_kept
    assert [path.stat().st_mtime_ns for path in first] == stamps, "finished shards are not computed again"
    assert (tmp_path / "out.parquet").read_bytes() == unbroken
