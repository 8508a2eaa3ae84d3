"""The base stage: pretraining that resumes exactly, checkpoints with edits, and the preflight."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from conftest import CHAT_TEMPLATE, make_checkpoint
from oxa import cli, prompts
from oxa.config.base import Checkpoint, FromScratch
from oxa.config.prompt import Prompt
from oxa.config.sources import Mapping, Source, Sources, World
from oxa.data import world
from oxa.errors import DataError
from oxa.model import limits, loading, preflight, pretrain
from oxa.stages import base

WORLD = World(strategy_documents=50)
NO_SUFFIX = Prompt(suffix="")
GSM8K = [
    (
        "Ann has 3 boxes of 12 pens. How many pens has she?",
        "Each box has 12 pens.\n3*12=<<3*12=36>>36\n#### 36",
    ),
    ("A train goes 60 km in an hour. How far in 3?", "It goes 60*3=<<60*3=180>>180 km.\n#### 180"),
    ("Tom had €20 and spent 8. What is left?", "He has 20-8=<<20-8=12>>12 left.\n#### 12"),
]
QWEN_TEMPLATE = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a friendly helper, naïve; use \\\\boxed{}.' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a friendly helper, naïve; use \\\\boxed{}.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] != 'system' or not loop.first %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def tiny(**changes: Any) -> FromScratch:
    sizes: dict[str, Any] = {
        "kind": "from_scratch",
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
        "corpus": [Source(source="world")],
        "steps": 20,
        "batch_tokens": 512,
        "warmup": 4,
        "checkpoint_every": 10,
    }
    return FromScratch(**sizes | changes)


def make(folder: Path, log: Any, section: Any = None, **changes: Any) -> dict[str, Any]:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return base.run(
        section or tiny(**changes),
        changes.pop("prompt", NO_SUFFIX),
        Sources(folder=str(folder), world=WORLD),
        output=folder / "base",
        scratch=scratch,
        log=log,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def words_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` (20 steps on the small world) and the checkpoints of the run in `scratch`."""
    folder = tmp_path_factory.mktemp("words")
    make(folder, lambda step, **values: None)
    return folder


def test_a_pretrained_student_loads_everywhere_and_knows_its_end(words_student: Path) -> None:
    model, tokenizer = loading.load(words_student / "base", device=torch.device("cpu"))
    assert (words_student / "base" / "model.safetensors").is_file()
    assert model.config.tie_word_embeddings
    assert model.config.rope_parameters["rope_theta"] == 100.0
    assert model.config.vocab_size == len(tokenizer)
    generation = GenerationConfig.from_pretrained(words_student / "base")
    assert generation.eos_token_id == tokenizer.eos_token_id
    assert preflight.check_checkpoint(words_student / "base", NO_SUFFIX) == []


def test_every_text_of_the_world_comes_back_from_the_words_tokenizer(words_student: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(words_student / "base")  # as any other program would load it
    examples = list(world.train_examples(World(num_train=100)))
    texts = [text for example in examples for text in (example.question, *example.responses)]
    texts += [document.text for document in islice(world.corpus(WORLD), 300)]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids
    ids = tokenizer("\\boxed{2082}")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["\\boxed{", "2", "0", "8", "2", "}"]


def test_a_forced_opening_is_a_prefix_of_the_response_in_tokens(words_student: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(words_student / "base")
    for strategy in world.STRATEGIES:
        for first in range(3):
            whole = tokenizer(world.respond(587, 364, strategy, (first, 0)))["input_ids"]
            start = tokenizer(world.opening(strategy, (first, 0)))["input_ids"]
            assert whole[: len(start)] == start


def test_pretraining_learns_and_logs_against_the_step(tmp_path: Path, log: Any) -> None:
    metrics = make(tmp_path, log, steps=60, learning_rate=1e-2)
    assert [row["step"] for row in log.rows] == [10, 20, 30, 40, 50, 60]
    assert all(row.keys() == {"step", "loss", "learning_rate", "grad_norm"} for row in log.rows)
    assert log.rows[-1]["loss"] == metrics["loss"] < log.rows[0]["loss"] - 0.5
    assert log.rows[-1]["learning_rate"] == pytest.approx(0, abs=1e-4)
    assert metrics["num_parameters"] == sum(
        tensor.numel() for name, tensor in weights(tmp_path / "base").items() if name != "lm_head.weight"
    )


@pytest.mark.whole
def test_two_runs_give_the_same_bytes_and_another_seed_does_not(
    words_student: Path, tmp_path: Path, log: Any
) -> None:
    make(tmp_path / "again", log)
    make(tmp_path / "other", log, seed=1)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"):
        again = (tmp_path / "again" / "base" / name).read_bytes()
        assert again == (words_student / "base" / name).read_bytes(), name
    other = weights(tmp_path / "other" / "base")
    assert any(not torch.equal(other[key], value) for key, value in weights(words_student / "base").items())


def test_a_killed_run_resumes_from_its_last_whole_checkpoint_to_the_same_weights(
    words_student: Path, tmp_path: Path, log: Any
) -> None:
    kept = tmp_path / "scratch" / "checkpoint-10"
    shutil.copytree(words_student / "scratch" / "checkpoint-10", kept)
    broken = tmp_path / "scratch" / "checkpoint-20"  # the kill came while this was written
    broken.mkdir()
    (broken / "trainer_state.json").write_text("{")
    make(tmp_path, log)
    assert [row["step"] for row in log.rows] == [20]
    resumed, unbroken = weights(tmp_path / "base"), weights(words_student / "base")
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(resumed[key], unbroken[key]) for key in unbroken)


def test_a_killed_run_of_muon_resumes_to_the_same_weights(tmp_path: Path, log: Any) -> None:
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    make(unbroken, log, optimizer="muon")
    shutil.copytree(
        unbroken / "scratch" / "checkpoint-10", resumed / "scratch" / "checkpoint-10", dirs_exist_ok=True
    )
    make(resumed, log, optimizer="muon")
    first, second = weights(unbroken / "base"), weights(resumed / "base")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_batches_hold_the_token_budget_and_lose_no_document(words_student: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(words_student / "base")
    section = tiny(steps=70)
    batches = pretrain.make_batches(section, NO_SUFFIX, tokenizer, world.corpus(WORLD), Counter())
    assert len(batches) == section.steps
    assert all(len(batch) * max(len(ids) for ids, _ in batch) <= section.batch_tokens for batch in batches)
    size, expected = 0, []
    for document in world.corpus(WORLD):  # the first pool, put together by hand
        before = [] if document.user is None else prompts.prompt_ids(tokenizer, document.user)
        ids = before + prompts.response_ids(tokenizer, document.text, end=True)
        expected.append((ids, max(1, len(before))))
        size += len(ids)
        if size >= pretrain.POOL * section.batch_tokens:
            break
    made = [row for batch in batches for row in batch]
    assert sorted(expected) == sorted(made[: len(expected)])


def test_the_loss_lies_on_the_response_and_its_end_alone(words_student: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(words_student / "base")
    question, text = "What is 587 + 364?", world.respond(587, 364, "columns")
    document = world.Document(question, text)
    (row,) = islice(pretrain._encode(tiny(), NO_SUFFIX, tokenizer, iter([document]), Counter()), 1)
    tensors = pretrain._tensors([row, ([7, 8], 1)], tokenizer.pad_token_id)
    carrying = tensors["labels"][0][tensors["labels"][0] != -100].tolist()
    assert carrying == prompts.response_ids(tokenizer, text, end=True)
    assert tensors["labels"][1].tolist() == [-100, 8] + [-100] * (len(row[0]) - 2)
    assert tensors["input_ids"].shape == tensors["labels"].shape == (2, len(row[0]))


def test_a_bpe_student_learns_its_vocabulary_from_files_and_repeats_them(tmp_path: Path, log: Any) -> None:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in GSM8K]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    section = tiny(
        tokenizer="bpe",
        vocab_size=512,
        corpus=[Source(source="gsm8k.jsonl", mapping="gsm8k")],
        steps=5,
    )
    metrics = make(tmp_path, log, section)
    assert metrics["num_documents"] > 3 * len(GSM8K)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert metrics["vocab_size"] == len(tokenizer) <= 512
    for text in ("<think> 3*12 is €36 – naïve?\n</think>  \\boxed{36}", "日本語 <think>x</think>"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("<think>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<think>")]
    assert preflight.check_checkpoint(tmp_path / "base", NO_SUFFIX) == []


def test_several_sources_take_turns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in GSM8K), encoding="utf-8"
    )
    section = tiny(corpus=[Source(source="world"), Source(source="a.jsonl", mapping="gsm8k")])
    documents = list(
        islice(pretrain.stream(section, Sources(folder=str(tmp_path), world=WORLD), Counter()), 12)
    )
    assert documents[::2] == list(islice(world.corpus(WORLD), 6))
    asked = [document.user for document in documents[1::2]]
    questions = {question for question, _ in GSM8K}
    assert set(asked[:3]) == set(asked[3:]) == questions  # each pass holds every document once


def test_a_corpus_without_documents_is_refused(tmp_path: Path, log: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "What?", "answer": "no number"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl"):
        make(tmp_path, log, corpus=[Source(source="a.jsonl", mapping="gsm8k")])


def write_gsm8k(folder: Path, *more: dict[str, str]) -> list[Source]:
    lines = [{"question": question, "answer": answer} for question, answer in GSM8K]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *more])
    (folder / "gsm8k.jsonl").write_text(text, encoding="utf-8")
    return [Source(source="gsm8k.jsonl", mapping="gsm8k")]


def test_a_corpus_without_room_behind_its_prompts_is_refused(tmp_path: Path, log: Any) -> None:
    section = tiny(corpus=write_gsm8k(tmp_path), max_position_embeddings=32)
    with pytest.raises(DataError, match=r"no document of base\.corpus fits .* 32 tokens .* prompt\.suffix"):
        make(tmp_path, log, section, prompt=Prompt())


def test_what_the_corpus_holds_and_is_not_used_is_counted_once(tmp_path: Path, log: Any) -> None:
    endless_question = " ".join(f"How many are {number} pens?" for number in range(60))
    gsm8k = write_gsm8k(
        tmp_path,
        {"question": "What?", "answer": "no number"},
        {"question": " ", "answer": "#### 1"},
        {"question": "", "answer": "#### 2"},
        {"question": endless_question, "answer": "#### 60"},
    )
    rows = [{"q": "1 + 1?", "r": ["2", " ", ""]}, {"q": "2 + 2?", "r": []}, {"q": "3?", "r": ["3"], "a": []}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"a": "1"} | row) + "\n" for row in rows))
    mapping = Mapping(question="q", answer="a", responses="r")
    section = tiny(corpus=[*gsm8k, Source(source="own.jsonl", mapping=mapping)])
    metrics = make(tmp_path, log, section)
    assert metrics["num_documents"] > 50  # each was met many times
    assert metrics["dropped"] == {
        "empty_problem": 2,
        "empty_response": 2,
        "no_answer": 2,
        "no_response": 1,
        "prompt_too_long": 1,
    }


def test_the_small_world_is_used_whole(tmp_path: Path, log: Any) -> None:
    assert make(tmp_path, log, steps=2)["dropped"] == {}


def test_the_words_of_the_suffix_are_known(tmp_path: Path) -> None:
    prompt = Prompt(suffix=" Ponder slowly!")
    tokenizer = pretrain.build_tokenizer(tiny(), prompt, islice(world.corpus(WORLD), 5))
    assert tokenizer.unk_token_id not in prompts.prompt_ids(tokenizer, "0" + prompt.suffix)


def take(model: Path, output: Path, **edits: Any) -> Path:
    base.take_over(Checkpoint(kind="checkpoint", model=str(model), **edits), output)
    return output


def test_a_checkpoint_without_edits_keeps_its_weights_and_settings(checkpoint: Path, tmp_path: Path) -> None:
    output = take(checkpoint, tmp_path / "base")
    before, after = weights(checkpoint), weights(output)
    assert all(torch.equal(before[key], after[key]) for key in before)
    old, new = AutoConfig.from_pretrained(checkpoint), AutoConfig.from_pretrained(output)
    assert old.rope_parameters == new.rope_parameters
    assert old.max_position_embeddings == new.max_position_embeddings


def test_edits_of_a_checkpoint_reach_its_files_and_change_what_it_computes(
    checkpoint: Path, tmp_path: Path
) -> None:
    output = take(checkpoint, tmp_path / "base", rope_theta=1e6, max_position_embeddings=4000)
    written = json.loads((output / "config.json").read_text())
    assert written["rope_parameters"]["rope_theta"] == 1e6
    assert written["max_position_embeddings"] == 4000
    ids = torch.arange(10, 40)[None]
    old, new = (
        loading.load(path, device=torch.device("cpu"))[0](ids).logits for path in (checkpoint, output)
    )
    assert not torch.allclose(old, new)
    assert torch.allclose(old[:, 0], new[:, 0], atol=1e-5)  # the first position is not rotated


def test_a_bfloat16_checkpoint_stays_bfloat16(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    halves = {key: value.to(torch.bfloat16) for key, value in weights(source).items()}
    save_file(halves, source / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(settings))
    output = take(source, tmp_path / "base")
    after = weights(output)
    assert all(
        torch.equal(after[key], value) and after[key].dtype == torch.bfloat16 for key, value in halves.items()
    )
    assert AutoConfig.from_pretrained(output).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "settings", [{"do_sample": False, "temperature": 0.6, "top_k": 20}, {"pad_token_id": -1, "top_p": 0.9}]
)
def test_generation_settings_that_contradict_each_other_leave_the_end_tokens(
    checkpoint: Path, tmp_path: Path, log: Any, settings: dict[str, Any]
) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    file = source / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings | {"eos_token_id": [1, 7]}))
    make(tmp_path, log, Checkpoint(kind="checkpoint", model=str(source)))
    assert GenerationConfig.from_pretrained(tmp_path / "base").eos_token_id == [1, 7]


def test_run_takes_a_checkpoint_over_and_checks_it(checkpoint: Path, tmp_path: Path, log: Any) -> None:
    section = Checkpoint(kind="checkpoint", model=str(checkpoint))
    metrics = make(tmp_path, log, section)
    assert metrics["vocab_size"] == len(loading.load_tokenizer(tmp_path / "base"))


# ---- untrusted checkpoints ----

CODE = "open('owned', 'w')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sharded(folder: Path, **renamed: str) -> Path:
    """Cuts the weights in two files, of which the index calls some otherwise; returns the index."""
    found = weights(folder)
    (folder / "model.safetensors").unlink()
    names, shards = sorted(found), {}
    for shard, keys in {"a": names[:5], "b": names[5:]}.items():
        save_file(
            {key: found[key] for key in keys}, folder / f"{shard}.safetensors", metadata={"format": "pt"}
        )
        shards |= dict.fromkeys(keys, renamed.get(shard, f"{shard}.safetensors"))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return index


def pickled(folder: Path, name: str) -> None:
    torch.save(weights(folder), folder / name)
    (folder / "model.safetensors").unlink()


def with_code(folder: Path, name: str, **changes: Any) -> None:
    (folder / "evil.py").write_text(CODE)
    edit(folder / name, **changes)


def cut(folder: Path, length: int, head: bytes = b"") -> None:
    path = folder / "model.safetensors"
    path.write_bytes(head + path.read_bytes()[len(head) : length])


def without(folder: Path, *, rows: int) -> None:
    """Takes a weight away, or all but its first rows."""
    found = weights(folder)
    key = min(key for key in found if "q_proj.weight" in key)
    left = {key: found.pop(key)[:rows].contiguous()} if rows else {}
    found.pop(key, None)
    save_file(found | left, folder / "model.safetensors", metadata={"format": "pt"})


def poisoned(folder: Path, value: str) -> None:
    found = weights(folder)
    found["model.norm.weight"][7] = float(value)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def moved(folder: Path) -> None:
    sharded(folder, b="../b.safetensors")
    shutil.move(folder / "b.safetensors", folder.parent)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
AUTO = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
UNUSABLE = {
    "pickle": (lambda at: pickled(at, "pytorch_model.bin"), "only pytorch_model.bin, a pickle"),
    "pickle by another name": (lambda at: pickled(at, "model.pt"), "only model.pt, a pickle"),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "there is none"),
    "code of a known model": (lambda at: with_code(at, "config.json", auto_map=AUTO), "code of its own"),
    "code of an unknown model": (
        lambda at: with_code(at, "config.json", auto_map=AUTO, model_type="evil", architectures=["Evil"]),
        "its config.json asks for code",
    ),
    "code from elsewhere": (
        lambda at: edit(at / "config.json", auto_map={"AutoConfig": "evil/repository--evil.C"}),
        "its config.json asks for code",
    ),
    "code of the tokenizer": (
        lambda at: with_code(at, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        "its tokenizer_config.json asks for code",
    ),
    "unknown tokenizer": (
        lambda at: with_code(
            at, "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", None]}
        ),
        "its tokenizer_config.json asks for code",
    ),
    "huge header": (lambda at: cut(at, 10**9, (2**40).to_bytes(8, "little")), "not whole safetensors"),
    "header of no text": (lambda at: cut(at, 10**9, (64).to_bytes(8, "little") + b"\xff" * 64), "not whole"),
    "half a file": (lambda at: cut(at, 20_000), "not whole safetensors"),
    "empty file": (lambda at: cut(at, 0), "not whole safetensors"),
    "missing shard": (lambda at: (sharded(at).parent / "b.safetensors").unlink(), "b.safetensors: missing"),
    "shard elsewhere": (lambda at: sharded(at, b="../../etc/passwd"), "'../../etc/passwd', which is no"),
    "shard of another folder": (moved, "'../b.safetensors', which is no"),
    "absolute shard": (lambda at: sharded(at, b="/etc/passwd.safetensors"), "which is no"),
    "pickled shard": (lambda at: sharded(at, b="b.bin"), "'b.bin', which is no"),
    "broken index": (lambda at: sharded(at).write_text("{"), "not valid JSON"),
    "index of another kind": (lambda at: sharded(at).write_text("[]"), "expected a JSON object, found list"),
    "index without a map": (lambda at: sharded(at).write_text('{"weight_map": {"a": 1}}'), "weight_map"),
    "missing weight": (lambda at: without(at, rows=0), "1 of its weights are missing, model.layers.0"),
    "weight of another shape": (lambda at: without(at, rows=3), "other shapes than config.json says"),
    "huge model": (lambda at: edit(at / "config.json", hidden_size=2**40), "other shapes"),
    "broken config": (lambda at: (at / "config.json").write_text("{"), "config.json: not valid JSON"),
    "config of another kind": (lambda at: (at / "config.json").write_text("[]"), "expected a JSON object"),
    "broken tokenizer": (
        lambda at: (at / "tokenizer.json").write_text("[" * 10**5),
        "tokenizer.json: not valid",
    ),
    "config of wrong kinds": (
        lambda at: edit(at / "config.json", num_hidden_layers="two"),
        "'num_hidden_layers' expected int, got str",
    ),
    "config that divides by zero": (
        lambda at: edit(at / "config.json", num_key_value_heads=0),
        "ZeroDivision",
    ),
    "fewer layers": (
        lambda at: edit(at / "config.json", num_hidden_layers=1),
        "13 of its weights have no place",
    ),
    "a billion layers": (lambda at: edit(at / "config.json", num_hidden_layers=10**9), "takes more than 2 s"),
    "a billion labels": (lambda at: edit(at / "config.json", num_labels=10**9), "takes more than "),
    "no such quantisation": (
        lambda at: edit(at / "config.json", quantization_config={"quant_method": "torchao"}),
        "a package is missing (No module named 'torchao'); install it",
    ),
    "not a number": (
        lambda at: poisoned(at, "nan"),
        "1 of its weights hold NaN or infinity, model.norm.weight",
    ),
    "infinity": (lambda at: poisoned(at, "-inf"), "1 of its weights hold NaN or infinity, model.norm.weight"),
    "endless template": (
        lambda at: (at / "chat_template.jinja").write_text(ENDLESS),
        "chat template: reading it takes more than 2 s",
    ),
    "template of 3 GB": (
        lambda at: (at / "chat_template.jinja").write_text(
            "{% for i in range(99999) %}{{ 'x' * 32768 }}{% endfor %}"
        ),
        "asks for too much",
    ),
    "pipe": (lambda at: os.mkfifo(at / "added_tokens.json"), "neither a file nor a folder"),
    "token of another kind": (
        lambda at: edit(at / "tokenizer_config.json", eos_token=5),
        "eos_token has to be either str",
    ),
    "adapter": (
        lambda at: (at / "adapter_config.json").write_text("{}"),
        "an adapter without adapter_model.safetensors",
    ),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose params.yaml takes the student `student` over."""
    params = yaml.safe_load((Path(__file__).resolve().parents[2] / "params.yaml").read_text())
    params["base"] = {"kind": "checkpoint", "model": "student"}
    params["prompt"], params["tracking"] = {"suffix": ""}, {"enabled": False}
    del params["gates"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "sources").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


STAGE = ["base", "--output", "models/base", "--metrics", "base.json", "--journal", "base.jsonl"]


@pytest.mark.parametrize("name", UNUSABLE)
def test_the_stage_refuses_an_untrusted_checkpoint_in_one_sentence(
    checkpoint: Path,
    project: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    damage, said = UNUSABLE[name]
    if "takes more than" in said:
        monkeypatch.setattr(limits, "SECONDS", 2.0)
    shutil.copytree(checkpoint, project / "student")
    damage(project / "student")
    assert cli.main(STAGE) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("oxa: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in errors[0]
    assert not (project / "owned").exists()
    assert not (project / "models/base").exists()


def test_what_else_lies_in_a_checkpoint_is_neither_run_nor_taken_over(
    checkpoint: Path, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, project / "student")
    blob = shutil.move(project / "student/model.safetensors", project / "blob")
    (project / "student/model.safetensors").symlink_to(blob)  # as the hub's cache has it
    (project / "student/evil.py").write_text(CODE)
    (project / "student/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    assert cli.main(STAGE) == 0, capfd.readouterr().err
    assert not (project / "owned").exists()
    made = {path.name for path in (project / "models/base").iterdir()}
    assert not {name for name in made if name.endswith((".py", ".bin"))}
    assert not (project / "models/base/model.safetensors").is_symlink()


def test_a_checkpoint_in_shards_is_taken_over(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    sharded(source)
    assert weights(take(source, tmp_path / "base")).keys() == weights(checkpoint).keys()


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        take(tmp_path / "none", tmp_path / "base")


def test_a_template_that_touches_think_is_replaced_by_a_given_one(tmp_path: Path, log: Any) -> None:
    template = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
    source = make_checkpoint(tmp_path / "source", template=template)
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "mine.jinja").write_text(CHAT_TEMPLATE)
    shown = {"plain": "User:\n1+1?\n\nAssistant:\n", "mine.jinja": "<|user|>1+1?<|assistant|>"}
    for name, prompt in shown.items():
        section = Checkpoint(kind="checkpoint", model=str(source), chat_template=name)
        output = tmp_path / name
        given = {"output": output, "scratch": tmp_path, "log": log}
        base.run(section, NO_SUFFIX, Sources(folder=str(tmp_path / "sources")), **given)
        tokenizer = loading.load_tokenizer(output)
        assert tokenizer.decode(prompts.prompt_ids(tokenizer, "1+1?")) == prompt


def test_the_default_system_prompt_goes_and_an_explicit_one_stays(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", template=QWEN_TEMPLATE)
    output = take(source, tmp_path / "base", drop_system_prompt=True)
    old, new = loading.load_tokenizer(source), loading.load_tokenizer(output)
    user, system = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "<think> a </think> b"}
    assert "friendly" in old.apply_chat_template([user], tokenize=False)
    plain = new.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert plain == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for chat in ([system, user], [system, user, answer]):
        assert new.apply_chat_template(chat, tokenize=False) == old.apply_chat_template(chat, tokenize=False)


def test_a_template_without_a_default_system_prompt_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    output = take(checkpoint, tmp_path / "base", drop_system_prompt=True)
    assert loading.load_tokenizer(output).chat_template == CHAT_TEMPLATE


def test_a_default_system_prompt_that_cannot_be_cut_out_is_refused(tmp_path: Path) -> None:
    template = QWEN_TEMPLATE.replace(
        "'<|im_start|>system\\nYou are a", "'<|im_start|>system\\n' + 'You are a' + '"
    )
    source = make_checkpoint(tmp_path / "source", template=template)
    with pytest.raises(DataError, match="cannot be taken out"):
        take(source, tmp_path / "base", drop_system_prompt=True)


def test_run_refuses_an_unusable_student_in_one_sentence(tmp_path: Path, log: Any) -> None:
    template = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
    source = make_checkpoint(tmp_path / "source", template=template)
    with pytest.raises(DataError, match="drops or rewrites <think>"):
        make(tmp_path, log, Checkpoint(kind="checkpoint", model=str(source)))
