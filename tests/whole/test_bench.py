"""What `make bench` writes: sections that are replaced one by one, and the summary of all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

SCRIPT = """
import sys
sys.path.insert(0, {benchmarks!r})
from results import row
print("chatter", file=sys.stderr)
print("## {title}: `{name}.py`")
print()
print("It took {value} s.")
row("{name}", "a loop -- plain", {value}, {target}, better="lower", unit="s")
print("The end.")
sys.exit({status})
"""


def write(folder: Path, name: str, value: float, *, target: float | None = 2.0, status: int = 0) -> None:
    (folder / f"{name}.py").write_text(
        SCRIPT.format(
            benchmarks=str(BENCHMARKS),
            title=name.title(),
            name=name,
            value=value,
            target=target,
            status=status,
        )
    )


class Ended(NamedTuple):
    returncode: int
    stderr: str


Bench = Callable[..., tuple[str, Ended]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    """`make bench` over a folder of scripts: what it wrote, and how it ended."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run

    def ran(folder: Path, *names: str) -> tuple[str, Ended]:
        output, code = folder / "RESULTS.md", 0
        options = ["--folder", str(folder), "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["run.py", *names, *options])
        try:
            run.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1  # a sentence
        text = output.read_text() if output.exists() else ""
        return text, Ended(code, capfd.readouterr().err)

    return ran


def section(text: str, name: str) -> str:
    return text.split(f"<!-- benchmark: {name} -->\n")[1].split("<!-- benchmark:")[0]


def test_every_benchmark_has_a_section_and_its_rows_make_the_summary(tmp_path: Path, bench: Bench) -> None:
    write(tmp_path, "slow", 2.5)
    write(tmp_path, "fast", 1.25)
    write(tmp_path, "free", 7, target=None)
    text, done = bench(tmp_path)
    assert done.returncode == 0, done.stderr
    head = text.split("<!-- benchmark:")[0]
    assert "| fast | a loop -- plain | 1.25 s | ≤ 2 s | met | `fast.py` |" in head
    assert "| slow | a loop -- plain | 2.5 s | ≤ 2 s | **missed** | `slow.py` |" in head
    assert "| free | a loop -- plain | 7 s |  |  | `free.py` |" in head
    assert section(text, "slow").startswith("## Slow: `slow.py`\n\n*20")
    assert "torch 2." in section(text, "slow")
    assert "It took 2.5 s.\nThe end." in section(text, "slow")
    assert "chatter" not in text


def test_a_second_run_replaces_the_named_section_alone(tmp_path: Path, bench: Bench) -> None:
    write(tmp_path, "one", 1.0)
    write(tmp_path, "two", 2.0)
    before, _ = bench(tmp_path)
    write(tmp_path, "one", 1.5)
    write(tmp_path, "two", 2.5)
    after, done = bench(tmp_path, "one")
    assert done.returncode == 0, done.stderr
    assert section(after, "two") == section(before, "two")
    assert "It took 1.5 s." in section(after, "one")
    assert "| one | a loop -- plain | 1.5 s |" in after
    assert "| two | a loop -- plain | 2 s |" in after
    assert before.count("\n") == after.count("\n")


def test_a_benchmark_that_fails_keeps_its_section_and_the_others_run(tmp_path: Path, bench: Bench) -> None:
    write(tmp_path, "broken", 1.0)
    write(tmp_path, "whole", 1.0)
    before, _ = bench(tmp_path)
    write(tmp_path, "broken", 9.0, status=3)
    write(tmp_path, "whole", 1.5)
    after, done = bench(tmp_path)
    assert done.returncode != 0
    assert "broken.py failed (exit status 3); its old section stays" in done.stderr
    assert section(after, "broken") == section(before, "broken")
    assert "It took 1.5 s." in section(after, "whole")


def test_a_benchmark_that_cannot_run_on_this_machine_keeps_its_section_and_fails_nothing(
    tmp_path: Path, bench: Bench
) -> None:
    write(tmp_path, "gpu", 1.0)
    before, _ = bench(tmp_path)
    (tmp_path / "gpu.py").write_text("import sys\nprint('needs a GPU', file=sys.stderr)\n")
    write(tmp_path, "other", 1.0)
    after, done = bench(tmp_path)
    assert done.returncode == 0
    assert "needs a GPU" in done.stderr
    assert section(after, "gpu").rstrip() == section(before, "gpu").rstrip()
    assert "It took 1.0 s." in section(after, "other")


def test_remarks_by_hand_outlive_a_rerun_and_are_not_doubled(tmp_path: Path, bench: Bench) -> None:
    write(tmp_path, "one", 1.0)
    write(tmp_path, "two", 1.0)
    (tmp_path / "remarks").mkdir()
    (tmp_path / "remarks/one.md").write_text("Once it took longer.\n")
    for names in ((), ("two",), ("one",)):
        text, _ = bench(tmp_path, *names)
        assert text.count("Once it took longer.") == 1
        assert section(text, "one").rstrip().endswith("Once it took longer.")


def test_a_name_that_is_no_benchmark_is_refused(tmp_path: Path, bench: Bench) -> None:
    write(tmp_path, "one", 1.0)
    text, done = bench(tmp_path, "tow")
    assert done.returncode == 2
    assert "no such benchmark: tow; there are one" in done.stderr
    assert text == ""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


@pytest.mark.whole
@pytest.mark.parametrize("way", ["score", "ce", "ce+ul", "trl"])
def test_the_gpu_benchmark_measures_a_tiny_shape_on_a_cpu(gpu: Any, way: str) -> None:
    import torch

    cpu = torch.device("cpu")
    cell = gpu.score("tiny", 64, cpu) if way == "score" else gpu.fit("tiny", 64, way, cpu)
    assert cell.tokens_per_second > 0
    assert cell.gib is None
    products = (
        2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 300 * 32
    )  # q and o, k and v, the three of the MLP; head
    attention = 2 * 2 * (64 // 2) * 32 * 2  # scores and their sums, half of 64 positions, width 32, 2 layers
    assert cell.flops == (1 if way == "score" else 3) * (2 * products + attention)


@pytest.mark.whole
def test_the_gpu_benchmark_says_that_it_needs_a_gpu() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == "gpu.py needs a CUDA GPU; `--tiny` tries its code on a CPU"
