"""What the flow costs and what it saves: `oxa run` against plain `dvc repro`, wall time.

    python benchmarks/flow.py [--params presets/NAME.yaml]

Two fresh clones of HEAD; one is run by `dvc repro`, the other by `oxa run` (registration included), both with nothing
done before. Then both with nothing left to do. Takes as long as two demos.
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

PROJECT = Path(__file__).resolve().parents[1]
WAYS = {"dvc repro": ["dvc", "repro"], "oxa run": ["oxa", "run"]}
OUTPUTS = ("data", "models", "metrics")


def seconds(command: list[str], folder: Path) -> float:
    own = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
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
    parser.add_argument("--repeats", type=int, default=5, help="of the runs with nothing to do")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = {way: Path(temporary) / way.replace(" ", "-") for way in WAYS}
        print("| way | everything, s | nothing to do, s (median) |\n|---|---|---|")
        for way, command in WAYS.items():
            subprocess.run(["git", "clone", "-q", str(PROJECT), str(folders[way])], check=True)
            shutil.copy(arguments.params, folders[way] / "params.yaml")
            everything = seconds(command, folders[way])
            nothing = [seconds(command, folders[way]) for _ in range(arguments.repeats)]
            spread = f"{min(nothing):.1f} to {max(nothing):.1f}"
            print(f"| {way} | {everything:.0f} | {statistics.median(nothing):.1f} ({spread}) |", flush=True)
        one, other = folders.values()
        names = files(one)
        _, differing, missing = filecmp.cmpfiles(one, other, names, shallow=False)
        differing += missing + sorted(set(files(other)) - set(names))
        found = f"these differ: {', '.join(map(str, differing))}" if differing else "all the same"
        print(f"\n{len(names)} files under {', '.join(OUTPUTS)}: {found}")


if __name__ == "__main__":
    main()
