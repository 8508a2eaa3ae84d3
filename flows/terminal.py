"""What the person who started the flow sees: a line a stage, and in a terminal how far the running ones are."""

from __future__ import annotations

import shutil
import sys
import threading
import time


class Terminal:
    """Prints a line when a stage ends; the last line of a terminal is kept for those at work."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._num_ended = 0
        self._begun: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._live = sys.stdout.isatty()
        self._lock = threading.Lock()

    def started(self, name: str) -> None:
        with self._lock:
            self._begun[name] = time.monotonic()
            self._doing[name] = name
            self._redraw()

    def progress(self, name: str, what: str, percent: int) -> None:
        with self._lock:
            if name in self._doing:
                self._doing[name] = f"{name} {what} {percent}%"
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

    def _say(self, text: str) -> None:
        print(("\r\033[K" if self._live else "") + text, flush=True)

    def _redraw(self) -> None:
        if self._live:
            line = "  ".join(self._doing.values())[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{line}", end="", flush=True)
