"""The answer and its claims in words, from the numbers of the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from oxa.comparison.measures import Row, Summary, asked
from oxa.comparison.outcomes import BASE, RL


class Said(NamedTuple):
    """Of one metric and phase."""

    shown: list[tuple[str, Row]]
    """Arms that are shown to differ, and by how much."""
    others: list[str]

    def in_numbers(self, metric: str) -> str:
        if not self.shown:
            return "no difference shown"
        told = listed([f"{arm} {_change(metric, row)}" for arm, row in self.shown])
        return told + (f", no difference shown for {listed(self.others)}" if self.others else "")

    def in_words(self) -> str:
        if not self.shown:
            return "no difference shown"
        sides = {
            "higher": [arm for arm, row in self.shown if row["difference"] > 0],
            "lower": [arm for arm, row in self.shown if row["difference"] < 0],
        }
        told = [f"{side} for {listed(arms)}" for side, arms in sides.items() if arms]
        return ", ".join(told + ([f"no difference shown for {listed(self.others)}"] if self.others else []))


def with_answer(summary: Summary) -> dict[str, Any]:
    """The summary (comparison/arms.py) with what it answers."""
    return {**summary, "answer": answer(summary)}


def answer(summary: Summary) -> dict[str, Any]:
    """{"sentence": …, "claims": [{"claim", "phase", "arm", "text", "shown"}, …]}."""
    group = summary["groups"][-1]  # pooled comes last
    num_samples = summary["arms"][summary["baseline"]][group]["num_samples"]
    metrics = asked(num_samples)
    claims, found = [], dict[str, dict[str, Said]]()
    for phase, ending in _phases(summary).items():
        for metric in metrics:
            for arm in _arms(summary):
                row = summary["differences"][arm + ending][group].get(metric)
                if row is None:
                    continue
                said = found.setdefault(metric, {}).setdefault(phase, Said([], []))
                text = _claim(arm, ending, summary, metric, row)
                claims.append(
                    {
                        "claim": title_of(metric),
                        "phase": phase,
                        "arm": arm,
                        "text": text,
                        "shown": row["shown"],
                    }
                )
                if row["shown"]:
                    said.shown.append((arm, row))
                else:
                    said.others.append(arm)
    return {"sentence": _sentence(summary["baseline"], found), "claims": claims}


def _arms(summary: Summary) -> list[str]:
    return [
        name for name in summary["order"] if name not in (BASE, summary["baseline"]) and not name.endswith(RL)
    ]


def _phases(summary: Summary) -> dict[str, str]:
    """Phase, to the ending of its arms' names."""
    after = summary["baseline"] + RL in summary["order"]
    return {"before RL": "", "after RL": RL} if after else {"before RL": ""}


def _sentence(baseline: str, found: Mapping[str, Mapping[str, Said]]) -> str:
    """The first metric with its intervals, the others in words."""
    if not found:
        return f"There is no arm to compare with {baseline}."
    first, *others = found
    parts = [f"{phase} {said.in_numbers(first)}" for phase, said in found[first].items()]
    sentences = [f"{_subject(first)}, against {baseline}: {'; '.join(parts)}."]
    for metric in others:
        words = {phase: said.in_words() for phase, said in found[metric].items()}
        if len(set(words.values())) == 1:
            told = f"{next(iter(words.values()))}, {' and '.join(words).replace(' RL and', ' and')}"
        else:
            told = "; ".join(f"{phase} {text}" for phase, text in words.items())
        sentences.append(f"{title_of(metric)[0].upper() + title_of(metric)[1:]}: {told}.")
    return " ".join(sentences)


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def title_of(metric: str) -> str:
    return "entropy" if metric == "mean_entropy" else metric.replace("pass_at_", "pass@")


def _subject(metric: str) -> str:
    if metric == "mean_entropy":
        return "Entropy"
    return f"Problems solved {_tries(metric)}"


def _tries(metric: str) -> str:
    k = metric.removeprefix("pass_at_")
    return "at the first try" if k == "1" else f"in at least one of {k} tries"


def _claim(arm: str, ending: str, summary: Summary, metric: str, row: Row) -> str:
    baseline, more = summary["baseline"], row["difference"] > 0
    group = summary["groups"][-1]
    sides = [summary["arms"][name + ending][group].get(metric) for name in (arm, baseline)]
    if metric != "mean_entropy" and sides == [1.0, 1.0]:
        return f"{arm}: no difference shown; both solve every problem {_tries(metric)}, which cannot tell them apart"
    if not row["shown"]:
        alone = row["low"] > 0 or row["high"] < 0
        why = f"; p {row['p_holm']:.3f} over {summary['num_comparisons']} comparisons" if alone else ""
        return f"{arm}: no difference shown ({_change(metric, row)}{why})"
    if metric == "mean_entropy":
        return f"{arm}: entropy {'higher' if more else 'lower'} than {baseline}'s, {_change(metric, row)}"
    return (
        f"{arm} solved {'more' if more else 'fewer'} {_tries(metric)} than {baseline}, {_change(metric, row)}"
    )


def _change(metric: str, row: Row) -> str:
    """Signed, with its interval."""
    sign, size = "−" if row["difference"] < 0 else "+", abs(row["difference"])
    text = f"{size:.3f} nats a token" if metric == "mean_entropy" else f"{100 * size:.1f} points"
    return f"{sign}{text} {_interval(metric, row)}"


def _interval(metric: str, row: Mapping[str, Any]) -> str:
    form = "{:+.3f}".format if metric == "mean_entropy" else "{:+.1f}".format
    scale = 1 if metric == "mean_entropy" else 100
    low, high = (form(scale * row[end]).replace("-", "−") for end in ("low", "high"))
    return f"[{low}, {high}]"
