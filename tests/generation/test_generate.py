"""Responses do not depend on batches, order and kills, and what is asked or read wrongly is named."""

from __future__ import annotations

import importlib.metadata
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oxa.config.generate import Generate
from oxa.config.section import Sampling
from oxa.errors import DataError
from oxa.generation import generate
from oxa.generation.requests import Generation, Request
from oxa.model import loading

SAMPLING = Sampling(max_tokens=30, seed=5)


def _requests(num: int = 40) -> list[Request]:
    """Prompts of 4 to 9 tokens; some appear several times."""
    return [Request(f"r{i}", [20 + (i // 3 * j) % 200 for j in range(4 + i // 3 % 6)]) for i in range(num)]


def _generate(
    model: Path, scratch: Path, requests: list[Request], sampling: Sampling, batch_size: int
) -> list[Generation]:
    engine = Generate(batch_size=batch_size)
    return list(generate.generate(model, requests, sampling, engine, scratch=scratch, description="test"))


def _lines(scratch: Path) -> list[str]:
    """Of all that is kept; lines of JSON."""
    return [line for file in scratch.iterdir() for line in file.read_text().splitlines(keepends=True)]


@pytest.mark.parametrize(
    "sampling", [SAMPLING, SAMPLING.model_copy(update={"temperature": 0.7, "top_p": 0.8})]
)
def test_samples_do_not_depend_on_batch_size_or_order(
    talker: Path, tmp_path: Path, sampling: Sampling
) -> None:
    expected = _generate(talker, tmp_path / "1", _requests(), sampling, 1)
    assert len({g.num_tokens for g in expected}) > 5
    assert {g.finish_reason for g in expected} == {"stop", "length"}
    for batch_size in (3, 16, 64):
        shuffled = _requests()
        random.Random(batch_size).shuffle(shuffled)
        generations = _generate(talker, tmp_path / str(batch_size), shuffled, sampling, batch_size)
        assert [g.response_id for g in generations] == [r.response_id for r in shuffled]
        by_id = {g.response_id: g for g in generations}
        for one in expected:
            assert by_id[one.response_id][:4] == one[:4]
            assert by_id[one.response_id].mean_entropy == pytest.approx(one.mean_entropy, rel=1e-5)


def test_more_requests_leave_the_samples_of_the_others_as_they_were(talker: Path, tmp_path: Path) -> None:
    few, many = (_generate(talker, tmp_path / str(n), _requests(n), SAMPLING, 8) for n in (10, 40))
    assert [g.text for g in many[:10]] == [g.text for g in few]


def test_equal_prompts_get_different_samples_and_another_seed_gives_others(
    talker: Path, tmp_path: Path
) -> None:
    requests = [Request(f"r{i}", [30, 31, 32]) for i in range(20)]
    first = _generate(talker, tmp_path, requests, SAMPLING, 20)
    assert len({g.text for g in first}) > 15
    other = _generate(talker, tmp_path, requests, SAMPLING.model_copy(update={"seed": 6}), 20)
    assert sum(a.text == b.text for a, b in zip(first, other, strict=True)) < 5


def test_a_rerun_makes_only_the_missing_shards_and_ends_bit_identical(talker: Path, tmp_path: Path) -> None:
    first = _generate(talker, tmp_path, _requests(), SAMPLING, 8)
    (file,) = tmp_path.iterdir()
    note, *responses = _lines(tmp_path)
    assert len(responses) == 40
    shards = list(dict.fromkeys(json.loads(line)["shard"] for line in responses))
    assert len(shards) == 5
    left = [line for line in responses if json.loads(line)["shard"] in shards[1::2]]
    file.write_text(note + "".join(left))
    assert _generate(talker, tmp_path, _requests(), SAMPLING, 8) == first
    assert _lines(tmp_path)[: 1 + len(left)] == [note, *left]
    assert sorted(_lines(tmp_path)) == sorted([note, *responses])


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_line_that_was_cut_costs_its_shard_and_what_lies_behind_it(
    talker: Path, tmp_path: Path, cut: int
) -> None:
    first = _generate(talker, tmp_path, _requests(), SAMPLING, 8)
    (file,) = tmp_path.iterdir()
    lines = _lines(tmp_path)
    file.write_text("".join(lines[:20]) + lines[20][:cut])
    assert _generate(talker, tmp_path, _requests(), SAMPLING, 8) == first
    assert _lines(tmp_path)[:20] == lines[:20]
    assert set(_lines(tmp_path)) == set(lines)
    file.write_text("".join(lines[:20]) + "\0" * 100 + lines[20])  # what a power cut may leave
    assert _generate(talker, tmp_path, _requests(), SAMPLING, 8) == first


def test_responses_are_read_by_place_and_by_slice_and_know_their_settings(
    talker: Path, tmp_path: Path
) -> None:
    generations = generate.generate(
        talker, _requests(5), SAMPLING, Generate(), scratch=tmp_path, description="test"
    )
    assert [g.response_id for g in generations] == ["r0", "r1", "r2", "r3", "r4"]
    assert generations[-1].response_id == "r4"
    assert [g.response_id for g in generations[1:3]] == ["r1", "r2"]
    assert len(generations) == 5
    assert generations.settings.pop("made_by") == [
        {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    ]
    settings = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 30, "seed": 5}
    assert generations.settings == {"engine": "torch"} | settings


def test_a_finished_scratch_needs_no_model_run(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _generate(talker, tmp_path, _requests(), SAMPLING, 8)
    monkeypatch.setitem(generate.ENGINES, "torch", lambda *_: pytest.fail("nothing was missing"))
    assert _generate(talker, tmp_path, _requests(), SAMPLING, 8) == first


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_generate import SAMPLING, _generate, _requests
from oxa.generation.store import Store
add, added = Store.add, []
def kill_in_the_third(store, key, generations):
    added.append(key)
    if len(added) == 3:
        add(store, key, generations[:5])
        os.kill(os.getpid(), 9)
    add(store, key, generations)
Store.add = kill_in_the_third
_generate(Path({model!r}), Path({scratch!r}), _requests(), SAMPLING, 8)
"""


def test_a_run_killed_with_signal_9_continues_and_ends_like_an_unbroken_one(
    talker: Path, tmp_path: Path
) -> None:
    unbroken = _generate(talker, tmp_path / "unbroken", _requests(), SAMPLING, 8)
    scratch = tmp_path / "killed"
    script = KILLED.format(tests=str(Path(__file__).parent), model=str(talker), scratch=str(scratch))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    assert len(_lines(scratch)) == 1 + 8 + 8 + 5
    assert _generate(talker, scratch, _requests(), SAMPLING, 8) == unbroken


@pytest.mark.parametrize("change", [{"seed": 6}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 5}])
def test_a_scratch_of_other_settings_does_not_leak_in(talker: Path, tmp_path: Path, change: dict) -> None:
    _generate(talker, tmp_path / "used", _requests(6), SAMPLING, 8)
    changed = SAMPLING.model_copy(update=change)
    generations, fresh = (
        _generate(talker, tmp_path / name, _requests(6), changed, 8) for name in ("used", "fresh")
    )
    assert generations == fresh
    assert len(list((tmp_path / "used").iterdir())) == 2


def test_a_scratch_of_other_prompts_or_weights_does_not_leak_in(
    checkpoint: Path, talker: Path, tmp_path: Path
) -> None:
    _generate(talker, tmp_path / "used", _requests(6), SAMPLING, 8)
    others = [Request(r.response_id, r.prompt[::-1]) for r in _requests(6)]
    assert _generate(talker, tmp_path / "used", others, SAMPLING, 8) == _generate(
        talker, tmp_path / "a", others, SAMPLING, 8
    )
    other_model = _generate(checkpoint, tmp_path / "used", _requests(6), SAMPLING, 8)
    assert other_model == _generate(checkpoint, tmp_path / "b", _requests(6), SAMPLING, 8)


def test_shards_depend_on_the_set_of_requests_alone() -> None:
    shuffled = _requests()
    random.Random(0).shuffle(shuffled)
    shards = generate._shards(shuffled, 8)
    assert shards == generate._shards(_requests(), 8)
    lengths = [len(request.prompt) for shard in shards for request in shard]
    assert lengths == sorted(lengths)


def test_greedy_text_is_verbatim_and_ends_before_the_end_token(talker: Path, tmp_path: Path) -> None:
    model, tokenizer = loading.load(talker)
    requests = _requests(12)
    generations = _generate(talker, tmp_path, requests, Sampling(max_tokens=40, temperature=0), 5)
    for request, generation in zip(requests, generations, strict=True):
        ids = torch.tensor([request.prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)[
            0
        ]
        new = whole[len(request.prompt) :].tolist()
        assert generation.num_tokens == len(new)
        ended = new[-1] in model.generation_config.eos_token_id
        assert generation.finish_reason == ("stop" if ended else "length")
        assert generation.text == tokenizer.decode(
            new[:-1] if ended else new, clean_up_tokenization_spaces=False
        )


def test_a_response_ends_where_the_context_does(checkpoint: Path, tmp_path: Path) -> None:
    requests = [Request("long", [40] * 1014), Request("longer", [40] * 1020), Request("short", [40])]
    generations = _generate(checkpoint, tmp_path, requests, Sampling(max_tokens=15, temperature=0), 3)
    assert [(g.num_tokens, g.finish_reason) for g in generations[:2]] == [(10, "length"), (4, "length")]
    assert generations[2].num_tokens == 15


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_prompt_that_leaves_no_room_gets_no_token_and_the_others_theirs(
    talker: Path, tmp_path: Path, batch_size: int
) -> None:
    fitting = [*_requests(12), Request("last", [40] * 1023)]
    too_long = [Request(f"long{i}", [40] * (1024 + i)) for i in range(3)]
    generations = _generate(talker, tmp_path / "a", [*too_long, *fitting], SAMPLING, batch_size)
    assert [g[:4] for g in generations[:3]] == [(r.response_id, "", 0, "length") for r in too_long]
    assert all(math.isnan(g.mean_entropy) for g in generations[:3])
    assert generations[3:] == _generate(talker, tmp_path / "b", fitting, SAMPLING, batch_size)
    assert generations[-1].num_tokens == 1


def test_a_resumed_run_with_only_too_long_prompts_left_ends_like_an_unbroken_one(
    checkpoint: Path, tmp_path: Path
) -> None:
    requests = [Request("fits", [40]), Request("too-long", [40] * 1024)]
    first = _generate(checkpoint, tmp_path, requests, SAMPLING, 1)
    (file,) = tmp_path.iterdir()
    note, *responses = _lines(tmp_path)
    assert len(responses) == 2
    for left in responses:
        file.write_text(note + left)
        assert repr(_generate(checkpoint, tmp_path, requests, SAMPLING, 1)) == repr(first)
        assert sorted(_lines(tmp_path)) == sorted([note, *responses])


def test_prompts_that_all_leave_no_room_are_one_sentence_that_names_the_shortest(
    checkpoint: Path, tmp_path: Path
) -> None:
    requests = [Request("longer", [40] * 1030), Request("too-long", [40] * 1024)]
    expected = "response too-long: its prompt of 1024 tokens leaves no room in the context of 1024 tokens of "
    for _ in range(2):  # the second time from what is kept in scratch
        with pytest.raises(DataError, match=f"^{expected}.*; drop the problem or raise max_position_embed"):
            _generate(checkpoint, tmp_path, requests, SAMPLING, 1)


def test_weights_that_give_no_numbers_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = loading.load(checkpoint)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match="not numbers"):
        _generate(tmp_path / "broken", tmp_path / "scratch", _requests(3), SAMPLING, 3)
    assert len(_lines(tmp_path / "scratch")) == 1, "the note and no response"


def test_nothing_asked_is_nothing_done(tmp_path: Path) -> None:
    assert _generate(tmp_path / "no-model", tmp_path / "scratch", [], SAMPLING, 3) == []


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no-model"):
        _generate(tmp_path / "no-model", tmp_path / "scratch", _requests(1), SAMPLING, 3)
