"""Prints which tests use the most processor time: `pytest --processor-time`.

--durations shows wall time, which on a busy machine tells little. Counted is user and system time of the test's
process, of its children and of theirs, those that have left their parents included (Linux alone counts these).
Setting up a fixture counts for the first test that asks for it, and a process that several tests share for the
tests during which it works. What has left its parent becomes a child of pytest's process, and a zombie once it has
ended, which the few tests that look at all children of theirs may take amiss.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

SHOWN = 30
NAME = "processor time"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor-time", action="store_true", help=f"show the {SHOWN} dearest tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--processor-time"):
        config.pluginmanager.register(Meter(), "meter")


class Meter:
    """Takes the time after each phase of each test; the reports carry it from xdist's workers to the terminal."""

    def __init__(self) -> None:
        self._spent: Counter[str] = Counter()
        if (
            sys.platform == "linux"
        ):  # processes whose parent has ended become children of this one, and are seen
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._before = total()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report: Any = yield
        now = total()
        report.user_properties.append((NAME, now - self._before))
        self._before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._spent[report.nodeid] += sum(value for name, value in report.user_properties if name == NAME)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self._spent:
            return
        terminalreporter.section(NAME)
        files: Counter[str] = Counter()
        for test, seconds in self._spent.items():
            files[test.partition("::")[0]] += seconds
        for counter in (self._spent, files):
            for name, seconds in counter.most_common(SHOWN):
                terminalreporter.line(f"{seconds:8.2f} s  {name}")
            terminalreporter.line(f"{sum(counter.values()):8.2f} s  all {len(counter)}")
            terminalreporter.line("")


def total() -> float:
    """Seconds that this process, all below it and all of those that have ended have used."""
    seconds = 0.0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(
                process.cpu_times()[:4]
            )  # user, system, and both of the children that were waited for
    return seconds
