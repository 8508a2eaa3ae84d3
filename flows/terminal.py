"""What the person who started the flow sees: a line a stage, and how far the running ones are.

In a terminal the last line is theirs; where the output goes to a file or another program, each has a line now and then.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType

from oxa.runtime.progress import Reading

EVERY = 30.0  # seconds between two lines of a running stage, where there is no terminal


class Terminal:
    """Prints a line when a stage ends and, inside a `with` block, what the running ones do."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._num_ended = 0
        self._begun: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._live = sys.stdout.isatty()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reporter = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> Terminal:
        if not self._live:
            self._reporter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if not self._live:
            self._reporter.join()

    def started(self, name: str) -> None:
        with self._lock:
            self._begun[name] = time.monotonic()
            self._doing[name] = ""
            self._redraw()

    def progress(self, name: str, reading: Reading) -> None:
        with self._lock:
            if name in self._doing:
                left = f", {reading.left} left" if reading.left else ""
                self._doing[name] = f" {reading.what} {reading.percent}%{left}"
                self._redraw()

    def ended(self, name: str, state: str) -> float:
        """Prints the stage's line; returns how long it took, seconds."""
        with self._lock:
            seconds = time.monotonic() - self._begun.pop(name)
            del self._doing[name]
            self._num_ended += 1
            width = len(str(self._num_stages))
            left = self._num_stages - self._num_ended
            self._say(
                f"[{self._num_ended:{width}}/{self._num_stages}] {name:24} {state:22} {seconds:7.1f} s"
                f"   {left} left{', ' + str(len(self._doing)) + ' running' if self._doing else ''}"
            )
            self._redraw()
            return seconds

    def given_up(self, name: str, because: str) -> None:
        with self._lock:
            self._num_ended += 1
            self._say(f"[{self._num_ended}/{self._num_stages}] {name:24} not run: {because} failed")

    def say(self, text: str) -> None:
        with self._lock:
            self._say(text)

    def _report(self) -> None:
        while not self._closed.wait(EVERY):
            with self._lock:
                for name, doing in self._doing.items():
                    seconds = time.monotonic() - self._begun[name]
                    if seconds >= EVERY:
                        self._say(f"    {name}:{doing or ' at work'} ({seconds:.0f} s so far)")

    def _say(self, text: str) -> None:
        print(("\r\033[K" if self._live else "") + text, flush=True)

    def _redraw(self) -> None:
        if self._live:
            line = "  ".join(name + doing for name, doing in self._doing.items())
            print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
