"""What a flow prints where there is no terminal; in one it draws over its own line."""

from __future__ import annotations

import pytest
from processes import until

from flows import terminal
from oxa.runtime.progress import Reading


def test_without_a_terminal_running_stages_have_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "EVERY", 0.01)
    printed = ""

    def has(text: str) -> bool:
        nonlocal printed
        printed += capsys.readouterr().out
        return text in printed

    with terminal.Terminal(2) as shown:
        shown.started("train@sft-0")
        until(lambda: has("    train@sft-0: at work ("), "a stage that has not told anything yet")
        shown.progress("train@sft-0", Reading("training", 45, "01:05"))
        until(lambda: has("    train@sft-0: training 45%, 01:05 left ("), "how far it is")
        shown.ended("train@sft-0", "completed")
        shown.progress("train@sft-0", Reading("training", 100, ""))  # a late line brings it not back
    printed += capsys.readouterr().out
    assert "train@sft-0" not in printed.rpartition("[1/2] train@sft-0 ")[2].partition("\n")[2]


def test_a_flow_that_ends_soon_prints_its_stages_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.Terminal(1) as shown:
        shown.started("report")
        shown.progress("report", Reading("drawing", 50, ""))
        shown.ended("report", "completed")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("[1/1] report ")
