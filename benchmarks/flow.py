"""What the whole demo costs, and `oxa run` beside plain `dvc repro`, wall time.

    python benchmarks/flow.py [--ways "oxa run" "dvc repro"] [--params presets/NAME.yaml]

A fresh clone of HEAD for each way, with nothing done before, run to the end (`oxa run`: registration included), then
with nothing left to do. With both ways their results are compared as well. Takes as long as one demo for each way.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import row

PROJECT = Path(__file__).resolve().parents[1]
WAYS = {"dvc repro": ["dvc", "repro"], "oxa run": ["oxa", "run"]}
OUTPUTS = ("data", "models", "metrics")


def seconds(command: list[str], folder: Path) -> float:
    own = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),  # the clone's own code, not the installed one
        "DVC_NO_ANALYTICS": "1",
    }
    begun = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return time.perf_counter() - begun


def files(folder: Path) -> list[Path]:
    found = (path for name in OUTPUTS for path in (folder / name).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder) for path in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=PROJECT / "params.yaml", help="default: params.yaml")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["oxa run"], help="default: oxa run alone")
    parser.add_argument("--repeats", type=int, default=5, help="of the runs with nothing to do")
    arguments = parser.parse_args()
    print(
        f"""## The whole demo: `benchmarks/flow.py`

A fresh clone with `{arguments.params.name}`, run from nothing to the report, registration included; then runs with
nothing left to do. Installation is left out.

| way | everything, min | nothing to do, s (median of {arguments.repeats}, range) |
|---|---|---|""",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folders = {way: Path(temporary) / way.replace(" ", "-") for way in arguments.ways}
        minutes = {}
        for way, folder in folders.items():
            subprocess.run(["git", "clone", "-q", str(PROJECT), str(folder)], check=True)
            shutil.copy(arguments.params, folder / "params.yaml")
            print(f"{way}: everything", file=sys.stderr)
            minutes[way] = seconds(WAYS[way], folder) / 60
            nothing = [seconds(WAYS[way], folder) for _ in range(arguments.repeats)]
            spread = f"{statistics.median(nothing):.1f} ({min(nothing):.1f} to {max(nothing):.1f})"
            print(f"| `{way}` | {minutes[way]:.1f} | {spread} |", flush=True)
        if len(folders) > 1:
            one, other = folders.values()
            names = files(one)
            _, differing, missing = filecmp.cmpfiles(one, other, names, shallow=False)
            differing += missing + sorted(set(files(other)) - set(names))
            found = f"these differ: {', '.join(map(str, differing))}" if differing else "all the same"
            print(f"\n{len(names)} files under {', '.join(OUTPUTS)}: {found}")
    if "oxa run" in minutes:
        row("whole demo (`oxa run`)", "–", minutes["oxa run"], 10, better="lower", unit="min")


if __name__ == "__main__":
    main()
