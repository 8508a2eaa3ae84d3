"""The client against a real HTTP server that fails in the ways that servers and networks fail in."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from completions_server import END, CompletionsServer, tokens_for
from processes import PATIENCE

from oxa.config.generate import Generate
from oxa.config.section import Sampling
from oxa.errors import ConfigError, DataError, is_out_of_reach
from oxa.generation import client, generate, vllm
from oxa.generation.replica import Replica, is_asked_for
from oxa.generation.requests import Generation, Request
from oxa.model import loading

SAMPLING = Sampling(max_tokens=10, temperature=0.7, top_p=0.9, seed=3)
REQUESTS = [Request(f"r{i}", [20 + i, 30, 31][: 1 + i % 3]) for i in range(40)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(client, "PATIENCE", 0.5)


def ask(
    model: Path,
    scratch: Path,
    *servers: CompletionsServer | str,
    requests: list[Request] = REQUESTS,
    sampling: Sampling = SAMPLING,
    concurrency: int = 4,
) -> list[Generation]:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    engine = Generate(engine="vllm", url=urls, concurrency=concurrency)
    return list(generate.generate(model, requests, sampling, engine, scratch=scratch, description="test"))


def expected(model: Path, requests: list[Request] = REQUESTS) -> list[tuple[str, str, int, str]]:
    """What the server's model answers."""
    tokenizer = loading.load_tokenizer(model)
    responses = []
    for request in requests:
        seed = vllm.seed_of(SAMPLING.seed, request.response_id)
        tokens = tokens_for({"seed": seed, "max_tokens": SAMPLING.max_tokens})
        ended = tokens[-1] == END
        text = tokenizer.decode(tokens[:-1] if ended else tokens, clean_up_tokenization_spaces=False)
        responses.append((request.response_id, text, len(tokens), "stop" if ended else "length"))
    assert {reason for *_, reason in responses} == {"stop", "length"} or len(responses) < 20
    return responses


def plain(generations: list[Generation]) -> list[tuple[str, str, int, str]]:
    return [generation[:4] for generation in generations]


def once(**faults: str) -> Callable[[int], str | None]:
    """These faults, by the request's number: r3="reset"."""
    return lambda number: faults.get(f"r{number}")


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_prompts_go_out_as_token_ids_with_every_setting_that_moves_the_distribution(
    checkpoint: Path, tmp_path: Path
) -> None:
    with CompletionsServer(checkpoint.name) as server:
        generations = ask(checkpoint, tmp_path, f"{server.url}/v1/")
    assert plain(generations) == expected(checkpoint)
    assert all(math.isnan(generation.mean_entropy) for generation in generations)
    by_seed = {body["seed"]: body for body in server.bodies}
    assert len(by_seed) == len(server.bodies) == len(REQUESTS)
    for request in REQUESTS:
        body = by_seed[vllm.seed_of(3, request.response_id)]
        assert body["prompt"] == request.prompt
        assert (body["model"], body["max_tokens"]) == (checkpoint.name, 10)
        assert (body["temperature"], body["top_p"]) == (0.7, 0.9)
        assert (body["stop_token_ids"], body["ignore_eos"]) == ([END], True)
        assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0, 1)
        assert (body["presence_penalty"], body["frequency_penalty"]) == (0, 0)
        assert "logprobs" not in body


def test_seeds_are_positive_63_bit_numbers_that_differ_by_seed_and_response() -> None:
    seeds = {vllm.seed_of(seed, f"r{i}") for seed in range(10) for i in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_lost_connections_and_busy_servers_are_asked_again(checkpoint: Path, tmp_path: Path) -> None:
    faults = once(r0="503", r1="reset", r4="cut", r7="429", r9="500", r11="abort", r20="reset", r41="502")
    with CompletionsServer(checkpoint.name, fault=faults) as server:
        assert plain(ask(checkpoint, tmp_path, server)) == expected(checkpoint)
    times = Counter(body["seed"] for body in server.bodies)
    assert len(times) == len(REQUESTS)
    assert sum(times.values()) == len(REQUESTS) + 8
    assert len({str(sorted(body.items())) for body in server.bodies}) == len(REQUESTS), (
        "asked for the same again"
    )


def test_a_refused_request_is_one_sentence_with_the_servers_words(checkpoint: Path, tmp_path: Path) -> None:
    with (
        CompletionsServer(checkpoint.name, fault=once(r5="400")) as server,
        pytest.raises(DataError, match=r"refused .* \(400\): the server says 400$") as caught,
    ):
        ask(checkpoint, tmp_path, server)
    assert not is_out_of_reach(caught.value)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("text", "holds no token ids"),
        ("other", "changed the prompt"),
        ("eos", "start the server with --generation-config vllm"),
    ],
)
def test_an_answer_to_something_else_is_an_error(
    checkpoint: Path, tmp_path: Path, fault: str, words: str
) -> None:
    with (
        CompletionsServer(checkpoint.name, fault=once(r6=fault)) as server,
        pytest.raises(DataError, match=words),
    ):
        ask(checkpoint, tmp_path, server)


def test_a_request_that_breaks_the_connection_every_time_ends_the_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE", 60.0)
    with (
        CompletionsServer(checkpoint.name, fault=lambda n: "reset") as server,
        pytest.raises(DataError, match="a request failed 12 times") as caught,
    ):
        ask(checkpoint, tmp_path, server, requests=REQUESTS[:1])
    assert is_out_of_reach(caught.value)
    assert len(server.bodies) == client.MAX_LOSSES


def test_servers_share_the_requests_and_none_gets_more_than_its_concurrency(
    checkpoint: Path, tmp_path: Path
) -> None:
    with CompletionsServer(checkpoint.name, fault=lambda n: "hold") as slow:
        quick: list[CompletionsServer] = []

        def fault(_: int) -> None:  # asked when a request comes: the slow one's answers are waited for now
            if sum(len(server.bodies) for server in quick) == len(REQUESTS) - 3 - 1:
                slow.release.set()

        with CompletionsServer(checkpoint.name, fault=fault) as a, CompletionsServer(checkpoint.name) as b:
            b.fault = fault
            quick += [a, b]
            generations = ask(checkpoint, tmp_path, slow, a, b, concurrency=3)
    assert plain(generations) == expected(checkpoint)
    assert len(slow.bodies) == 3, "what it had in flight and no more"
    assert min(len(a.bodies), len(b.bodies)) >= 3
    assert max(server.most_in_flight for server in (slow, a, b)) <= 3


def test_few_requests_are_shared_out_evenly(checkpoint: Path, tmp_path: Path) -> None:
    with CompletionsServer(checkpoint.name) as a, CompletionsServer(checkpoint.name) as b:
        ask(checkpoint, tmp_path, a, b, requests=REQUESTS[:6], concurrency=100)
    assert len(a.bodies) == len(b.bodies) == 3


def test_responses_do_not_depend_on_how_many_servers_there_are(checkpoint: Path, tmp_path: Path) -> None:
    with CompletionsServer(checkpoint.name) as a, CompletionsServer(checkpoint.name) as b:
        one = ask(checkpoint, tmp_path / "1", a, concurrency=1)
        two = ask(checkpoint, tmp_path / "2", a, b, concurrency=7)
    assert plain(one) == plain(two)


def test_a_server_that_is_not_there_is_left_out_with_a_warning(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = closed_port()
    with CompletionsServer(checkpoint.name) as server:
        assert plain(ask(checkpoint, tmp_path, gone, server)) == expected(checkpoint)
    assert f"oxa: {gone}: out of reach for 0.5 seconds" in capfd.readouterr().err


def test_what_a_dying_server_had_in_flight_goes_to_the_others(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        CompletionsServer(checkpoint.name, fault=lambda n: "hold" if n >= 5 else None) as dying,
        CompletionsServer(checkpoint.name, fault=lambda n: "hold") as server,
    ):

        def kill() -> None:
            for _ in range(9):  # 5 answered, 4 in flight
                dying.arrived.acquire()
            dying.die()
            server.release.set()

        killer = threading.Thread(target=kill)
        killer.start()
        generations = ask(checkpoint, tmp_path, dying, server)
        killer.join()
    assert plain(generations) == expected(checkpoint)
    assert len(dying.bodies) == 9
    assert len(server.bodies) == len(REQUESTS) - 5


def test_when_no_server_is_left_it_is_said_and_a_later_try_may_succeed(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no server is left") as caught:
        ask(checkpoint, tmp_path, closed_port(), closed_port())
    assert is_out_of_reach(caught.value)
    with (
        CompletionsServer(checkpoint.name, fault=lambda n: "503") as busy,
        pytest.raises(DataError, match="503 the server says 503; no server is left") as caught,
    ):
        ask(checkpoint, tmp_path, busy)
    assert is_out_of_reach(caught.value)


def test_a_server_of_another_model_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with (
        CompletionsServer("somebody/else") as server,
        pytest.raises(ConfigError, match=rf"serves somebody/else and not {checkpoint}; start it with"),
    ):
        ask(checkpoint, tmp_path, server)
    assert server.bodies == []


@pytest.mark.parametrize(
    ("served", "fits"),
    [
        ("models/rlvr/sft-0/step-20", True),
        ("sft-0/step-20", True),
        ("step-20", False),
        ("step-10", False),
        ("sft-1/step-20", False),
        ("", False),
    ],
)
def test_a_folder_goes_by_the_end_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: str, fits: bool
) -> None:
    folder = tmp_path / "models" / "rlvr" / "sft-0" / "step-20"
    folder.mkdir(parents=True)
    for model in (folder, folder.relative_to(tmp_path)):
        monkeypatch.chdir(tmp_path)
        assert is_asked_for({"id": "other", "root": served}, model, None) is fits
        assert is_asked_for({"id": served}, model, None) is fits
    assert is_asked_for({"id": "Qwen/Qwen3-0.6B"}, "Qwen/Qwen3-0.6B", None)
    assert not is_asked_for({"id": "Qwen3-0.6B"}, "Qwen/Qwen3-0.6B", None)


def test_a_server_with_too_little_room_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with (
        CompletionsServer(checkpoint.name, max_model_len=12) as server,
        pytest.raises(ConfigError, match=r"max-model-len of 12 tokens is too small.* come to 13"),
    ):
        ask(checkpoint, tmp_path, server)


def test_a_key_of_the_environment_is_sent(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    with CompletionsServer(checkpoint.name) as server:
        ask(checkpoint, tmp_path, server, requests=REQUESTS[:1])
    assert server.headers[0]["Authorization"] == "Bearer sesame"


def test_a_user_and_password_of_the_address_are_sent_and_shown_nowhere(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with CompletionsServer(checkpoint.name) as server:
        address = server.url.replace("://", "://user:se%40cret@")
        ask(
            checkpoint,
            tmp_path,
            address,
            closed_port().replace("://", "://user:se%40cret@"),
            requests=REQUESTS[:1],
        )
        server.fault = lambda n: "403"
        with pytest.raises(DataError) as refused:
            ask(checkpoint, tmp_path, address, requests=REQUESTS[1:2])
    assert server.headers[0]["Authorization"] == "Basic dXNlcjpzZUBjcmV0"
    assert str(refused.value).startswith(f"{server.url}: refused a request")
    assert "cret" not in capsys.readouterr().err
    engine = Generate(engine="vllm", url=[address])
    assert engine.model_dump(mode="json")["url"] == [server.url]  # which is what MLflow is told
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(b"cret" in content for content in files)


def test_a_user_and_password_are_taken_from_a_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passwords"
    monkeypatch.setenv("NETRC", str(file))
    file.write_text("machine elsewhere login u password p\nmachine 127.0.0.1 login user password secret\n")
    with CompletionsServer(checkpoint.name) as server:
        ask(checkpoint, tmp_path, server, requests=REQUESTS[:1])
        assert server.headers[0]["Authorization"] == "Basic dXNlcjpzZWNyZXQ="
        file.write_text("machine 127.0.0.1 login user secret\n")
        with pytest.raises(ConfigError) as broken:
            ask(checkpoint, tmp_path, server, requests=REQUESTS[1:2])
    assert str(broken.value) == f"{file}: line 2 is not as .netrc files are"


def test_prompts_that_fill_the_context_are_not_sent_and_long_ones_get_what_room_there_is(
    checkpoint: Path, tmp_path: Path
) -> None:
    requests = [Request("full", [40] * 1024), Request("near", [40] * 1021), Request("short", [40])]
    with CompletionsServer(checkpoint.name) as server:
        generations = ask(checkpoint, tmp_path, server, requests=requests)
    assert generations[0][:4] == ("full", "", 0, "length")
    assert sorted((len(body["prompt"]), body["max_tokens"]) for body in server.bodies) == [(1, 10), (1021, 3)]


def test_the_settings_are_kept_with_the_responses(checkpoint: Path, tmp_path: Path) -> None:
    with CompletionsServer(checkpoint.name) as server:
        engine = Generate(engine="vllm", url=[server.url])
        for _ in range(2):  # the second time from disk
            generations = generate.generate(
                checkpoint, REQUESTS, SAMPLING, engine, scratch=tmp_path, description="test"
            )
            assert generations.settings == {
                "engine": "vllm",
                "made_by": [{"vllm": ["0.31.0"], "end_ids": [END]}],
                "temperature": 0.7,
                "top_p": 0.9,
                "max_tokens": 10,
                "seed": 3,
            }
    assert len(server.bodies) == len(REQUESTS)


FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
CLIENT = """
import sys
from pathlib import Path
sys.path[:0] = {folders!r}
from test_vllm import ask
ask(Path({model!r}), Path({scratch!r}), {url!r})
"""


@pytest.mark.whole
def test_a_run_killed_with_signal_9_asks_only_for_what_was_in_flight_or_not_begun(
    checkpoint: Path, tmp_path: Path
) -> None:
    fault = {"of": lambda n: "hold" if n >= 15 else None}
    with CompletionsServer(checkpoint.name, fault=lambda n: fault["of"](n)) as server:
        script = CLIENT.format(folders=FOLDERS, model=str(checkpoint), scratch=str(tmp_path), url=server.url)
        stage = subprocess.Popen([sys.executable, "-c", script])
        for _ in range(19):  # the last four are asked for when the first fifteen have been answered
            assert server.arrived.acquire(timeout=PATIENCE)
        os.kill(stage.pid, signal.SIGKILL)
        stage.wait()
        (store,) = tmp_path.glob("*.jsonl")
        lines = [line for line in store.read_text().splitlines() if "response_id" in line]
        assert len(lines) >= 14, "an answer may be on its way when the next request goes out"
        with store.open("a") as file:
            file.write('{"shard": "cut by the ki')
        answered = len(server.bodies)
        fault["of"] = lambda n: None
        generations = ask(checkpoint, tmp_path, server)
    assert plain(generations) == expected(checkpoint)
    assert len(server.bodies) - answered == len(REQUESTS) - len(lines)
    assert '{"shard": "cut' not in store.read_text()


def test_urls_in_the_configuration_are_checked() -> None:
    for url in ("localhost:8000", "ftp://host", "http://", "http://host/v1?key=1"):
        with pytest.raises(ValueError, match="url"):
            Generate(engine="vllm", url=[url])
    for url in (
        "http://host:99999",
        "http://host:port",
        "http://[::1",
        "http://user:se[cret@host",
    ):
        with pytest.raises(ConfigError, match=r"^generate\.url: http"):
            Replica(url)
    with pytest.raises(ConfigError, match=r"^((?!cret).)*$"):
        Replica("http://user:secret@host:port")
    values: dict[str, Any] = {"url": ["http://10.0.0.2:8000", "https://host/v1"]}
    assert Generate(engine="vllm", **values).url == values["url"]
