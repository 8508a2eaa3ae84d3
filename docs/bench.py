"""Writes the tables of docs/bench.md from a run of presets/bench.yaml.

    python docs/bench.py [metrics/summary.json]

What a run was made with, and the words between the tables, are the page's own.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oxa.comparison.measures import METRICS, Metric, pass_at
from oxa.comparison.outcomes import RL
from oxa.report.markdown import aligned, cell, difference
from oxa.report.wording import predictor_rows

PAGE = Path(__file__).parent / "bench.md"
ENTROPY = [metric for metric in METRICS if metric.name.endswith("entropy")]
MARKERS = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
Summary = dict[str, Any]


def page(summary: Summary) -> str:
    """docs/bench.md with the tables of this summary in it."""
    return MARKERS.sub(
        lambda found: f"{found[1]}\n{TABLES[found[2]](summary)}\n{found[3]}", PAGE.read_text("utf-8")
    )


def arms(summary: Summary) -> str:
    """Every arm before and after RL, and its difference to the baseline there."""
    rate, baseline = pass_at(1), summary["baseline"]
    header = ["pass@1, %", f"− {baseline}", "after RL, %", f"− {baseline}{RL}"]
    return _compared(summary, header, [("", rate), (RL, rate)])


def entropies(summary: Summary) -> str:
    """Both entropies of every arm before RL, and the differences."""
    header = [text for metric in ENTROPY for text in (metric.heading, f"− {summary['baseline']}")]
    return _compared(summary, header, [("", metric) for metric in ENTROPY])


def _compared(summary: Summary, header: list[str], columns: list[tuple[str, Metric]]) -> str:
    """A line an arm: of each column, the arm's ending and a metric, the value and its difference to the baseline."""
    group = summary["groups"][-1]
    rows = []
    for arm in (name for name in summary["order"] if name in summary["predictors"]["arms"]):
        row = [f"`{arm}`"]
        for ending, metric in columns:
            row.append(cell(summary["arms"][arm + ending][group], metric))
            compared = summary["differences"].get(arm + ending, {}).get(group, {})
            row.append("" if arm == summary["baseline"] else difference(compared.get(metric.name), metric))
        rows.append(row)
    return "\n".join(aligned(["arm", *header], rows)) + "\n"


def predictors(summary: Summary) -> str:
    """Of each predictor the rank correlation with pass@1 after RL, and every arm's value."""
    header, rows = predictor_rows(summary)
    *of_arms, rho = rows
    turned = [[header[i], rho[i], *(row[i] for row in of_arms)] for i in range(1, len(header) - 1)]
    return "\n".join(aligned(["predictor", "ρ", *(row[0] for row in of_arms)], turned)) + "\n"


TABLES: dict[str, Callable[[Summary], str]] = {"arms": arms, "entropies": entropies, "predictors": predictors}

if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "metrics/summary.json")
    PAGE.write_text(page(json.loads(path.read_text("utf-8"))), encoding="utf-8")
