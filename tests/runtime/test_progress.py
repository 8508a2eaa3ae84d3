import io
import re

import pytest

from oxa.runtime import progress


def test_a_log_file_is_spared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    shown = io.StringIO()
    assert list(progress.bar(range(100), desc="work", file=shown)) == list(range(100))
    assert shown.getvalue() == ""


def test_a_parent_that_asks_can_read_how_far_the_work_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(progress.VARIABLE, "1")
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    shown = io.StringIO()
    list(progress.bar(range(4), desc="scoring text", unit="tok", miniters=1, file=shown))
    readings = [progress.read(line) for line in re.split(r"[\r\n]", shown.getvalue()) if line.strip()]
    assert [reading.percent for reading in filter(None, readings)] == [0, 25, 50, 75, 100, 100][
        -len(readings) :
    ]
    assert {reading.what for reading in filter(None, readings)} == {"scoring text"}
    assert None not in readings


@pytest.mark.parametrize(
    ("line", "reading"),
    [
        ("training:  45%|####  | 90/200 [00:40<01:05,  2.2it/s]", ("training", 45, "01:05")),
        ("training:   0%|      | 0/200 [00:00<?, ?it/s]", ("training", 0, "")),
        ("scoring:  99%|#####| 1.2M/1.3M [2:00:40<1:01:05, 2.2tok/s]", ("scoring", 99, "1:01:05")),
    ],
)
def test_a_line_tells_what_how_far_and_how_long_still(line: str, reading: tuple[str, int, str]):
    assert progress.read(line) == reading


def test_quiet_work_says_nothing_even_when_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(progress.VARIABLE, "1")
    shown = io.StringIO()
    list(progress.bar(range(4), desc="work", quiet=True, file=shown))
    assert shown.getvalue() == ""


@pytest.mark.parametrize(
    "line", ["", "oxa: data.jsonl: row 3: 50% of it", "Running stage 'train@sft-0':", "12 | 3%"]
)
def test_other_lines_are_no_progress(line: str):
    assert progress.read(line) is None
