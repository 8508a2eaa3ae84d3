"""What the report says in words: the short answer, its claims and the gates' verdict, from the numbers of the summary.

A claim is of one arm, phase and metric of the question, against the baseline, on all benchmarks pooled where there are
several. The answer is about all these metrics and names every arm, better, worse or neither. Where a difference is not
`shown` (oxa/comparison/arms.py), the words are "no difference shown", whatever its sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from oxa.comparison.measures import MACRO, POOLED, Metric, Row, Summary, question
from oxa.comparison.outcomes import BASE, RL

GATES = {"G1": "competence", "G2": "habit", "G3": "headroom", "G4": "no guessing", "G5": "room"}
ENTROPIES = (
    "Response entropy is a mean over responses, then problems, token entropy one over all tokens; both are exact, of "
    "responses drawn for it at temperature 1."
)
EQUAL_WEIGHTS = (0.9, 1.1)
"""Mean weights of an arm's rollouts, over RL, between which steps are called equally large (oxa/rl/weights.py)."""
GATE_TITLES = ["gate", "what", "measured", "wanted", "verdict"]


ONE_SEED = (
    "One fine-tuning seed: all of this is of these very checkpoints; whether another seed would tell the same of the "
    "arms cannot be known from it."
)
TOGETHER = {
    POOLED: "each problem weighs the same",
    MACRO: "the mean over benchmarks, as the paper averages, each weighs the same",
}
"""What the groups are that hold several benchmarks."""
MANY_SEEDS = 5
"""From here on seeds' own spread is known well enough for a difference to be shown."""


class Contrast(NamedTuple):
    """The arms against the baseline, in one metric and phase."""

    shown: list[tuple[str, Row]]
    """Arms that are shown to differ, and by how much."""
    others: list[str]

    def in_numbers(self, metric: Metric) -> str:
        parts = [f"{arm} {change(row, metric, in_words=True)}" for arm, row in self.shown]
        return self._with_others([listed(parts)] if parts else [])

    def in_words(self) -> str:
        higher = [arm for arm, row in self.shown if row["difference"] > 0]
        lower = [arm for arm, row in self.shown if row["difference"] < 0]
        sides = {"higher": higher, "lower": lower}
        return self._with_others([f"{side} for {listed(arms)}" for side, arms in sides.items() if arms])

    def _with_others(self, parts: list[str]) -> str:
        if not self.shown:
            return "no difference shown"
        others = [f"no difference shown for {listed(self.others)}"] if self.others else []
        return ", ".join(parts + others)


def with_answer(summary: Summary) -> dict[str, Any]:
    """The summary (comparison/arms.py) with what it answers."""
    return {**summary, "answer": answer(summary)}


def seeds(summary: Summary) -> str:
    """What so few fine-tuning seeds leave unknown; "" where they are enough."""
    num = summary["arms"][summary["baseline"]][summary["groups"][-1]]["num_seeds"]
    if num == 1:
        return ONE_SEED
    if num >= MANY_SEEDS:
        return ""
    return (
        f"{num} fine-tuning seeds: an arm's seeds tell of this arm alone, and {num} tell little of their spread, so "
        f"intervals are wide; {MANY_SEEDS} seeds make them several times narrower."
    )


def families(summary: Summary) -> str:
    """Over which comparisons p is corrected."""
    groups, sizes = summary["groups"], sorted(set(summary["num_comparisons"].values()))
    size, where = (
        " to ".join(map(str, sizes[:1] + sizes[1:][-1:])),
        groups[0] if len(groups) == 1 else "a benchmark",
    )
    compared = ["arms against the baseline", "the base", *["what RL added"] * bool(summary["gains"])]
    text = (
        f"p is corrected by Holm's method over all {size} comparisons on {where} ({listed(compared)}, in pass@1, "
        "pass@n and both entropies)."
    )
    if len(groups) == 1:
        return text
    return (
        f"{text} The {len(groups)} tables are a family each: the chance of any false difference among those shown is "
        f"{1 - summary['confidence']:.0%} in one table, not in all together; the answer reads {groups[-1]} alone."
    )


def answer(summary: Summary) -> dict[str, Any]:
    """{"sentence": …, "claims": [{"claim", "phase", "arm", "text", "shown"}, …]}."""
    group = summary["groups"][-1]  # pooled comes last
    metrics = question(summary["arms"][summary["baseline"]][group]["num_samples"])
    claims: list[dict[str, Any]] = []
    contrasts: dict[str, dict[str, Contrast]] = {}
    for phase, ending in _phases(summary).items():
        for metric in metrics:
            for arm in _arms(summary):
                row = summary["differences"][arm + ending][group].get(metric.name)
                if row is None:
                    continue
                claim = {"claim": metric.title, "phase": phase, "arm": arm, "shown": row["shown"]}
                claims.append(claim | {"text": _claim(arm, ending, summary, metric, row)})
                contrast = contrasts.setdefault(metric.name, {}).setdefault(phase, Contrast([], []))
                if row["shown"]:
                    contrast.shown.append((arm, row))
                else:
                    contrast.others.append(arm)
    parts = [(metric, contrasts[metric.name]) for metric in metrics if metric.name in contrasts]
    return {"sentence": _framed(summary, _sentence(summary["baseline"], parts)), "claims": claims}


def _framed(summary: Summary, sentence: str) -> str:
    """With which mean it is of, where there are several benchmarks, and what one seed leaves unknown."""
    group = summary["groups"][-1]
    counts = summary["arms"][summary["baseline"]][group]
    if group == POOLED:
        num = len(summary["groups"]) - len(TOGETHER)
        sentence = (
            f"Of the {counts['num_problems']:,} problems of {num} benchmarks, pooled (the macro mean, the paper's, "
            f"stands beside it): {sentence[0].lower()}{sentence[1:]}"
        )
    if counts["num_seeds"] == 1 and _arms(summary):
        sentence += " One fine-tuning seed: what another would change cannot be known."
    return sentence


def _arms(summary: Summary) -> list[str]:
    return [
        name for name in summary["order"] if name not in (BASE, summary["baseline"]) and not name.endswith(RL)
    ]


def _phases(summary: Summary) -> dict[str, str]:
    """Phase, to the ending of its arms' names."""
    after = summary["baseline"] + RL in summary["order"]
    return {"before RL": "", "after RL": RL} if after else {"before RL": ""}


def _sentence(baseline: str, parts: Sequence[tuple[Metric, Mapping[str, Contrast]]]) -> str:
    """The first metric with its intervals, the others in words."""
    if not parts:
        return f"There is no arm to compare with {baseline}."
    (first, phases), *others = parts
    numbers = [f"{phase} {contrast.in_numbers(first)}" for phase, contrast in phases.items()]
    subject = f"Problems solved {first.solved}" if first.solved else _capital(first.title)
    sentences = [f"{subject}, against {baseline}: {'; '.join(numbers)}."]
    for metric, phases in others:
        words = {phase: contrast.in_words() for phase, contrast in phases.items()}
        if len(set(words.values())) == 1:
            text = f"{next(iter(words.values()))}, {' and '.join(words).replace(' RL and', ' and')}"
        else:
            text = "; ".join(f"{phase} {text}" for phase, text in words.items())
        sentences.append(f"{_capital(metric.title)}: {text}.")
    return " ".join(sentences)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def _claim(arm: str, ending: str, summary: Summary, metric: Metric, row: Row) -> str:
    baseline, group = summary["baseline"], summary["groups"][-1]
    size, is_more = change(row, metric, in_words=True), row["difference"] > 0
    sides = [summary["arms"][name + ending][group].get(metric.name) for name in (arm, baseline)]
    if metric.more_is_better and sides == [metric.unit.highest] * 2:
        reached = (
            f"solve every problem {metric.solved}" if metric.solved else f"have the highest {metric.title}"
        )
        return f"{arm}: no difference shown; both {reached}, which cannot tell them apart"
    if not row["shown"]:
        alone = row["low"] > 0 or row["high"] < 0
        why = (
            f"; p {p_value(row['p_holm'])} over {summary['num_comparisons'][group]} comparisons"
            if alone
            else ""
        )
        return f"{arm}: no difference shown ({size}{why})"
    if metric.solved:
        return f"{arm} solved {'more' if is_more else 'fewer'} {metric.solved} than {baseline}, {size}"
    return f"{arm}: {metric.title} {'higher' if is_more else 'lower'} than {baseline}'s, {size}"


def p_value(value: float) -> str:
    """To three digits: `0.012`, `< 0.001`."""
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def change(row: Row | None, metric: Metric, *, in_words: bool = False) -> str:
    """A difference with its interval: `-0.2 [-0.9, +0.3]`, or, in words, `−0.2 points [−0.9, +0.3]`."""
    if row is None:
        return "–"
    size, low, high = (metric.signed(row[key]) for key in ("difference", "low", "high"))
    if not in_words:
        return f"{size} [{low}, {high}]"
    return f"{size} {metric.unit.difference} [{low}, {high}]".replace("-", "−")


def predictor_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was known of the arms before RL, and how it goes with what they solve after it."""
    found = summary["predictors"]
    columns = found["columns"]

    def text(value: float | None, column: Mapping[str, Any]) -> str:
        return "–" if value is None else f"{column['scale'] * value:.{column['digits']}f}"

    rate = {"scale": 100, "digits": 1}
    rows = [
        [arm, *(text(values[one["name"]], one) for one in columns), text(values["after_rl"], rate)]
        for arm, values in found["arms"].items()
    ]
    if found["correlations"]:
        rhos = (found["correlations"].get(one["name"]) for one in columns)
        cells = [
            f"{rho['rho']:+.2f} [{rho['low']:+.2f}, {rho['high']:+.2f}], p {p_value(rho['p_value'])}"
            if rho
            else "–"
            for rho in rhos
        ]
        rows.append(["ρ", *cells, ""])
    return ["arm", *(one["title"] for one in columns), "pass@1 after RL, %"], rows


def sizes(summary: Summary) -> dict[int, list[str]]:
    """Responses in a CE set, to the arms whose sets have as many.

    There are several entries where a Gaussian came short, as selection.shared.max_shortage allows, or where the sets
    are to be equal in tokens.
    """
    by_size: dict[int, list[str]] = {}
    for arm in summary["order"]:
        if arm in summary["selection"]:
            by_size.setdefault(summary["selection"][arm]["ce"]["chosen"], []).append(arm)
    return by_size


def gates(measured: Mapping[str, Any]) -> str:
    """A warning of what the metrics of the gates (oxa/data/gates.py) tell; "" where none failed, or none applies."""
    failed = [name for name, gate in measured.get("gates", {}).items() if not gate["passed"]]
    sentences = []
    if of_base := [f"{name} ({GATES[name]})" for name in failed if name != "G5"]:
        sentences.append(
            f"Beware: the base fails {listed(of_base)} of the small world's gates, so the arms' comparison measures "
            "something else than which data to train on."
        )
    if "G5" in failed:
        sentences.append(
            f"Beware: gate G5 ({GATES['G5']}) of the small world fails, so plain SFT, or RL after it, leaves the arms "
            "little to differ in."
        )
    return " ".join(sentences)


def unequal_steps(weights: Mapping[str, float]) -> str:
    """A warning of the mean weights of arms' rollouts in RL; "" where all are near 1."""
    low, high = EQUAL_WEIGHTS
    far = [f"{arm} {mean:.2f}" for arm, mean in weights.items() if not low <= mean <= high]
    if not far:
        return ""
    return (
        f"Beware: the mean weight of the rollouts is far from 1 for {listed(far)}, so the arms' steps differ in size "
        "and with them what RL adds (rlvr.rollout_correction)."
    )


def gate_rows(measured: Mapping[str, Any]) -> list[list[str]]:
    """Gate, what, measured, wanted and verdict of every value."""
    return [
        [f"{name} {GATES[name]}", what, _measured(row), _bounds(row), "passed" if row["passed"] else "FAILED"]
        for name, gate in measured["gates"].items()
        for what, row in gate["rows"].items()
    ]


def _measured(row: Row) -> str:
    if row["value"] is None:
        return "nothing to measure"
    if row["margin"] is None:
        return f"{row['value']:,}" if isinstance(row["value"], int) else f"{100 * row['value']:.1f}%"
    return f"{100 * row['value']:.1f}% ± {100 * row['margin']:.1f}"


def _bounds(row: Row) -> str:
    low, high = row["low"], row["high"]
    if high is None:
        return f"{low:,} or more" if isinstance(low, int) else f"at least {100 * low:.0f} points"
    if low == high:
        return f"{low}"
    if low == 0:
        return f"at most {100 * high:.0f}%"
    return f"at least {100 * low:.0f}%" if high == 1 else f"{100 * low:.0f} to {100 * high:.0f}%"
