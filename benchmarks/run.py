"""Runs the benchmarks one after another and writes their sections and the summary: `make bench`.

    python benchmarks/run.py [NAME ...] [--output FILE] [--options "OPTIONS OF THE SCRIPTS"]

Every script beside this one is a benchmark: it prints its section to stdout, heading first, with its rows of the
summary between the lines (results.py), and everything else to stderr; nothing at all where this machine cannot run it.
The file keeps each section with its own date and machine: only those of the benchmarks that ran are replaced, and one
that fails keeps its old section. `remarks/NAME.md`, written by hand, is put at the end of its section.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
from results import Row, line, split

HERE = Path(__file__).resolve().parent
ORDER = (
    "flow",
    "placement",
    "scoring",
    "sampling",
    "answers",
    "verification",
    "selection",
    "training_step",
    "real_model",
    "gpu",
    "soak",
    "coverage",
)
NO_BENCHMARKS = ("run", "results", "real_model_ways")
BUSY = 0.5
"""A load beyond this many times the cores is mentioned: the figures beside it are not of an idle machine."""

HEAD = """# Measured

Written by `make bench` (`make bench ONLY="NAME NAME"` runs some again): each section under its own date and machine,
all ratios of a section from one run of one script. Remarks by hand are in `benchmarks/remarks/`.
"""


def found(folder: Path) -> list[str]:
    """The benchmarks, in the order of their sections."""
    names = {path.stem for path in folder.glob("*.py")} - set(NO_BENCHMARKS)
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def machine() -> str:
    name = platform.machine()
    try:
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = cpu[1] if cpu else name
    except OSError:
        pass  # not Linux: the architecture alone
    import torch  # late: --help needs no seconds

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (
        f"{name}, {len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{', '.join(gpus) or 'no GPU'}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {importlib.metadata.version('transformers')}, trl {importlib.metadata.version('trl')}"
    )


def sections(text: str) -> dict[str, str]:
    """The sections of a written file by benchmark, rows included, remarks left out."""
    parts = re.split(r"^<!-- benchmark: (\S+) -->\n", text, flags=re.MULTILINE)[1:]
    return {
        name: body.split("<!-- remarks -->\n")[0] for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def measured(script: Path, on: str, options: list[str]) -> str | None:
    """The section of a benchmark run now, empty where it cannot run here, None where it failed."""
    load = psutil.getloadavg()[0]
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, str(script), *options], stdout=subprocess.PIPE, text=True)
    minutes = (time.perf_counter() - begun) / 60
    body, rows = split(done.stdout)
    heading, _, rest = body.lstrip().partition("\n")
    if not done.returncode and not heading:
        return ""
    if done.returncode or not heading.startswith("## "):
        why = f"exit status {done.returncode}" if done.returncode else "no section heading on stdout"
        print(f"{script.name} failed ({why}); its old section stays", file=sys.stderr)
        return None
    busy = f"; other work was running (load {load:.1f})" if load > BUSY * len(os.sched_getaffinity(0)) else ""
    stamp = f"*{date}, {minutes:.1f} min; {on}{busy}*"
    return "\n".join([heading, "", stamp, "", rest.strip(), "", *map(line, rows), ""])


def summary(of: dict[str, str]) -> str:
    lines = ["| what | against | measured | target | | section |", "|---|---|---|---|---|---|"]
    for name, section in of.items():
        for row in split(section)[1]:
            target = (
                ""
                if row.target is None
                else f"{'≥' if row.better == 'higher' else '≤'} {shown(row.target, row)}"
            )
            verdict = {True: "met", False: "**missed**", None: ""}[row.met]
            lines.append(
                f"| {row.what} | {row.against} | {shown(row.value, row)} | {target} | {verdict} | `{name}.py` |"
            )
    return "\n".join(lines) + "\n"


def shown(value: float, row: Row) -> str:
    return f"{value:.3g}{'' if row.unit == '×' else ' '}{row.unit}"


def written(of: dict[str, str], remarks: Path) -> str:
    text = f"{HEAD}\n{summary(of)}"
    for name, section in of.items():
        by_hand = remarks / f"{name}.md"
        said = f"<!-- remarks -->\n\n{by_hand.read_text().strip()}\n" if by_hand.exists() else ""
        text += f"\n<!-- benchmark: {name} -->\n{section.rstrip()}\n{said}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument(
        "--folder", type=Path, default=HERE, help="of the scripts and remarks; default: this one"
    )
    parser.add_argument("--options", type=shlex.split, default=[], help="handed to each script that runs")
    options = parser.parse_args()
    known = found(options.folder)
    if unknown := set(options.names) - set(known):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    on, failed = machine(), []
    for name in [name for name in known if name in (options.names or known)]:
        print(f"{name}.py", file=sys.stderr)
        section = measured(options.folder / f"{name}.py", on, options.options)
        if section is None:
            failed.append(name)
        if not section:
            continue
        old = sections(options.output.read_text()) if options.output.exists() else {}
        new = old | {name: section}
        of = {one: new[one] for one in known if one in new}
        beside = options.output.with_suffix(".part")
        beside.write_text(written(of, options.folder / "remarks"))
        beside.replace(options.output)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
