"""A call with limits: what it returns, what goes wrong in it, and that it ends."""

from __future__ import annotations

import os
import signal
import time

import pytest
from processes import below

from oxa.errors import DataError, is_out_of_reach
from oxa.model import limits


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    before = below(os.getpid())  # of other tests
    yield
    assert [process for process in below(os.getpid()) if process not in before] == []


def refuse() -> None:
    raise DataError("row 3: no answer")


def miss() -> None:
    try:
        raise ConnectionRefusedError
    except ConnectionRefusedError:
        raise DataError("the hub does not answer") from None


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (int, ["seven"], r"^F: invalid literal for int\(\) with base 10: 'seven'$"),
        ({}.__getitem__, ["eos"], "^F: KeyError: 'eos'$"),
        (refuse, [], "^row 3: no answer$"),
        (bytearray, [2 * limits.MEMORY], "^F: reading it takes more than 2 GiB of memory$"),
        (signal.raise_signal, [signal.SIGKILL], r"^F: reading it crashes \(-9\)$"),
        (pow, [7, 10**12], "^F: reading it takes more than 1 s$"),
        (time.sleep, [1000], "^F: not read after 3 s$"),
    ],
)
def test_what_goes_wrong_is_a_sentence(
    function: object, arguments: list[object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 1.0)
    monkeypatch.setattr(limits, "PATIENCE", 3.0)
    with pytest.raises(DataError, match=said):
        limits.call("F", function, *arguments)  # type: ignore[arg-type]


def test_the_value_comes_through_and_what_was_changed_stays_there() -> None:
    here: list[int] = []
    assert limits.call("F", lambda: (here.append(7), sum(range(1000)))[1]) == 499_500
    assert here == []


def test_what_is_out_of_reach_may_be_tried_again() -> None:
    with pytest.raises(DataError) as error:
        limits.call("F", miss)
    assert is_out_of_reach(error.value)


def test_it_computes_after_threads_of_this_process_have() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        expected = float(torch.ones(1000, 1000).exp().sum())
        assert limits.call("F", lambda: float(torch.ones(1000, 1000).exp().sum())) == pytest.approx(expected)
    finally:
        torch.set_num_threads(before)
