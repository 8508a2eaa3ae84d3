"""The sampler against plain references, and its independence of batches, order and kills."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from oxa import generate, lm
from oxa.config import Generate, Sampling
from oxa.errors import DataError
from oxa.generate import Generation, Request, draw

SAMPLING = Sampling(max_tokens=30, seed=5)


@pytest.fixture(scope="module")
def talker(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with 25 end tokens, so that responses stop after about 10 tokens, each at its own time."""
    folder = tmp_path_factory.mktemp("talker")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [settings["eos_token_id"], *range(200, 224)]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def _requests(num: int = 40) -> list[Request]:
    """Prompts of 4 to 9 tokens; some appear several times."""
    return [Request(f"r{i}", [20 + (i // 3 * j) % 200 for j in range(4 + i // 3 % 6)]) for i in range(num)]


def _generate(
    model: Path, scratch: Path, requests: list[Request], sampling: Sampling, batch_size: int
) -> list[Generation]:
    engine = Generate(batch_size=batch_size)
    return generate.generate(model, requests, sampling, engine, scratch=scratch, description="test")


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
        found = _generate(talker, tmp_path / str(batch_size), shuffled, sampling, batch_size)
        assert [g.response_id for g in found] == [r.response_id for r in shuffled]
        by_id = {g.response_id: g for g in found}
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
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    contents = {file: file.read_bytes() for file in files}
    times = {file: file.stat().st_mtime_ns for file in files}
    for file in files[::2]:
        file.unlink()
    assert _generate(talker, tmp_path, _requests(), SAMPLING, 8) == first
    assert {file: file.read_bytes() for file in sorted(tmp_path.iterdir())} == contents
    assert [file for file in files if file.stat().st_mtime_ns != times[file]] == files[::2]


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
from oxa import generate, records
write, written = records.write, []
def kill_at_the_third(path, *rest):
    if len(written) == 2:
        os.kill(os.getpid(), 9)
    written.append(path)
    write(path, *rest)
records.write = kill_at_the_third
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
    assert len(list(scratch.glob("*.parquet"))) == 2
    assert _generate(talker, scratch, _requests(), SAMPLING, 8) == unbroken


@pytest.mark.parametrize("change", [{"seed": 6}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 5}])
def test_a_scratch_of_other_settings_does_not_leak_in(talker: Path, tmp_path: Path, change: dict) -> None:
    _generate(talker, tmp_path / "used", _requests(6), SAMPLING, 8)
    changed = SAMPLING.model_copy(update=change)
    found, fresh = (
        _generate(talker, tmp_path / name, _requests(6), changed, 8) for name in ("used", "fresh")
    )
    assert found == fresh
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


def test_greedy_equals_transformers_generate_token_for_token(talker: Path) -> None:
    rng = random.Random(1)
    requests = [Request(f"r{i}", [rng.randrange(5, 200) for _ in range(4 + i % 6)]) for i in range(24)]
    model, _ = lm.load(talker)
    # a head of its own: with the tied one this model repeats its last token for ever
    head = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight = torch.nn.Parameter(head)
    expected = []
    for request in requests:
        ids = torch.tensor([request.prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
        expected.append(whole[0, len(request.prompt) :].tolist())
    assert len({len(tokens) for tokens in expected}) > 3
    assert len({token for tokens in expected for token in tokens}) > 50
    generate._share_keys_among_query_heads(model)
    ends = torch.tensor(model.generation_config.eos_token_id)
    greedy = Sampling(max_tokens=40, temperature=0)
    tokens, num_tokens, stopped, _ = generate.complete(model, requests, [40] * 24, ends, greedy)
    found = [row[:n].tolist() for row, n in zip(tokens, num_tokens, strict=True)]
    assert found == expected
    assert stopped.tolist() == [tokens[-1] in ends for tokens in expected]


def test_greedy_text_is_verbatim_and_ends_before_the_end_token(talker: Path, tmp_path: Path) -> None:
    model, tokenizer = lm.load(talker)
    requests = _requests(12)
    found = _generate(talker, tmp_path, requests, Sampling(max_tokens=40, temperature=0), 5)
    for request, generation in zip(requests, found, strict=True):
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


def test_entropies_equal_those_of_the_scoring_path(talker: Path) -> None:
    model, _ = lm.load(talker)
    requests = _requests(9)
    sampling = SAMPLING.model_copy(update={"temperature": 0.6, "top_p": 0.9})  # neither may enter the entropy
    ends = torch.tensor(model.generation_config.eos_token_id)
    tokens, num_tokens, _, sums = generate.complete(model, requests, [30] * 9, ends, sampling)
    for request, row, n, total in zip(requests, tokens, num_tokens, sums, strict=True):
        ids = torch.tensor([request.prompt + row[:n].tolist()])
        scored = torch.arange(ids.shape[1])[None] >= len(request.prompt)
        entropies = lm.token_statistics(model, ids, torch.ones_like(ids), scored, 1000).entropies
        assert float(total / n) == pytest.approx(float(entropies.mean()), rel=1e-5)


def test_a_prompt_is_read_once_and_logits_exist_for_last_positions_only(talker: Path) -> None:
    model, _ = lm.load(talker)
    requests = [Request(f"{p}/{i}", [30 + p] * (6 + p % 2)) for p in range(3) for i in range(4)]
    seen: list[tuple[int, ...]] = []
    heads: list[tuple[int, ...]] = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    model.lm_head.register_forward_hook(lambda _, __, out: heads.append(tuple(out.shape[:2])))
    ends = torch.tensor(model.generation_config.eos_token_id)
    generate.complete(model, requests, [60] * 12, ends, SAMPLING)
    assert seen[0] == (3, 7)
    assert heads[0] == (3, 1)
    assert all(positions == 1 for _, positions in heads)
    sizes = [batch for batch, _ in heads[1:]]
    assert sizes[0] == 12  # and rows that ended leave the batch
    assert sorted(sizes, reverse=True) == sizes
    assert len(set(sizes)) > 3


def test_a_response_ends_where_the_context_does(checkpoint: Path, tmp_path: Path) -> None:
    requests = [Request("long", [40] * 1014), Request("longer", [40] * 1020), Request("short", [40])]
    found = _generate(checkpoint, tmp_path, requests, Sampling(max_tokens=15, temperature=0), 3)
    assert [(g.num_tokens, g.finish_reason) for g in found[:2]] == [(10, "length"), (4, "length")]
    assert found[2].num_tokens == 15


def test_a_prompt_that_leaves_no_room_is_named(checkpoint: Path, tmp_path: Path) -> None:
    requests = [Request("fits", [40]), Request("too-long", [40] * 1024)]
    with pytest.raises(DataError, match="response too-long: its prompt of 1024 tokens leaves no room"):
        _generate(checkpoint, tmp_path, requests, SAMPLING, 3)


def test_weights_that_give_no_numbers_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = lm.load(checkpoint)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match="not numbers"):
        _generate(tmp_path / "broken", tmp_path / "scratch", _requests(3), SAMPLING, 3)
    assert not list((tmp_path / "scratch").glob("*"))


def test_nothing_asked_is_nothing_done(tmp_path: Path) -> None:
    assert _generate(tmp_path / "no-model", tmp_path / "scratch", [], SAMPLING, 3) == []


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no-model"):
        _generate(tmp_path / "no-model", tmp_path / "scratch", _requests(1), SAMPLING, 3)


def test_uniforms_are_splitmix64_with_its_published_test_vector() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    keys = np.array([1234567], dtype=np.uint64)
    assert [float(generate.uniforms(keys, step)[0]) for step in range(5)] == [
        (z >> 11) / 2**53 for z in published
    ]


def test_uniforms_are_uniform_over_responses_and_over_steps() -> None:
    keys = generate.stream_keys(3, [f"r{i}" for i in range(20_000)])
    assert len(set(keys.tolist())) == 20_000
    assert scipy.stats.kstest(generate.uniforms(keys, 0), "uniform").pvalue > 0.01
    steps = [float(generate.uniforms(keys[:1], step)[0]) for step in range(20_000)]
    assert scipy.stats.kstest(steps, "uniform").pvalue > 0.01
    neighbours = np.corrcoef(generate.uniforms(keys, 0), generate.uniforms(keys, 1))[0, 1]
    assert abs(neighbours) < 0.03


def _nucleus(logits: list[float], temperature: float, top_p: float) -> np.ndarray:
    """Token by token, as one would write it down."""
    exact = np.exp((np.array(logits) - max(logits)) / temperature)
    exact /= exact.sum()
    kept: list[int] = []
    for token in sorted(range(len(exact)), key=lambda v: -exact[v]):
        if sum(exact[v] for v in kept) >= top_p:
            break
        kept.append(token)
    cut = np.zeros_like(exact)
    cut[kept] = exact[kept]
    return cut / cut.sum()


@given(
    st.lists(st.floats(-6, 6), min_size=2, max_size=12, unique_by=lambda x: round(x, 3)),
    st.floats(0.3, 2),
    st.floats(0.05, 0.99),
    st.floats(0, 1, exclude_max=True),
)
def test_draw_inverts_the_nucleus_of_a_plain_reference(
    logits: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    probs = _nucleus(logits, temperature, top_p)
    steps = np.concatenate([[0], probs.cumsum()])
    ordered = np.sort(_nucleus(logits, temperature, 1))[::-1].cumsum()
    if np.abs(steps[1:-1] - uniform).min(initial=1) < 1e-9 or np.abs(ordered - top_p).min() < 1e-9:
        return  # a tie at the last bit has no one answer
    token, _ = draw(torch.tensor([logits]).double(), torch.tensor([uniform]).double(), temperature, top_p)
    assert steps[int(token)] <= uniform < steps[int(token) + 1]
    assert probs[int(token)] > 0


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.95), (1.7, 0.5)])
def test_frequencies_follow_temperature_and_top_p(temperature: float, top_p: float) -> None:
    logits = torch.linspace(-2, 3, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    uniform = torch.from_numpy(generate.uniforms(generate.stream_keys(1, [str(i) for i in range(20_000)]), 7))
    tokens, _ = draw(logits.expand(20_000, -1), uniform, temperature, top_p)
    expected = _nucleus(logits.tolist(), temperature, top_p) * 20_000
    counts = np.bincount(tokens, minlength=40)
    assert counts[expected == 0].sum() == 0
    assert scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 0.01


def test_entropy_is_that_of_the_models_own_distribution() -> None:
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)) * 3
    logits[0, 10:] = -torch.inf
    uniform = torch.full((30,), 0.5, dtype=torch.float64)
    expected = [scipy.stats.entropy(np.exp(row - row.max())) for row in logits.double().numpy()]
    for temperature, top_p in ((1.0, 1.0), (0.5, 0.3), (0.0, 1.0)):
        np.testing.assert_allclose(draw(logits, uniform, temperature, top_p)[1], expected, rtol=1e-12)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_never_draw_an_impossible_token(uniform: float) -> None:
    logits = torch.full((200, 30), -torch.inf)
    logits[:, 3:20] = torch.randn(200, 17, generator=torch.Generator().manual_seed(0))
    tokens, _ = draw(logits, torch.full((200,), uniform, dtype=torch.float64), 0.8, 1.0)
    assert Counter(tokens.tolist()) == {3 if uniform == 0 else 19: 200}


def test_a_large_vocabulary_is_drawn_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(11, 50, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = draw(logits, uniform, 0.9, 0.9)
    monkeypatch.setattr(generate, "DRAW_ELEMENTS", 150)
    parts = draw(logits, uniform, 0.9, 0.9)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
