"""How many responses each condition left, from the raw rows to the training sets, and where the others went.

Counts come from the metrics of ingest, verify and selection; nothing is counted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from oxa.report.training_sets import Selections
from oxa.runtime import files

CONDITIONS = {  # of the selection, in its order: (what is left, what is lost)
    "verdict": ("verdict", "other verdict"),
    "scored": ("scored", "not scored"),
    "train": ("of training problems", "of other problems"),
    "apart": ("of the arms' problems", "of problems kept apart for the sampler's warm-up"),
    "whole": ("not cut by a limit", "cut by the sampler's or the scorer's limit"),
    "fits": ("short enough to train on", "longer than training takes"),
    "floor": ("ppl at the floor or above", "ppl below the floor"),
    "consensus": ("wrong by a second check", "not wrong by a second check"),
}


class Step(NamedTuple):
    name: str
    num_responses: int
    """Responses left."""
    note: str
    """Where the others went, or what the set is like."""
    arm: str | None = None
    """The arm whose training set this is."""


class Loss(NamedTuple):
    where: str
    reason: str
    num_lost: int


def sides(metrics: Path, selections: Selections) -> dict[str, list[Step]]:
    """The ways to the training sets, by title."""
    ways = {
        "Teacher responses → CE sets": teacher(metrics, selections),
        "The student's own responses → UL sets": own(metrics, selections),
    }
    return {title: steps for title, steps in ways.items() if steps}


def losses(metrics: Path, selections: Selections, seeds: Sequence[int]) -> list[Loss]:
    """Every row and response that was lost on the way, largest first at each place."""
    ingested = files.read_json(metrics / "ingest.json")
    lost = _losses("ingestion, teacher", ingested["totals"]["dropped"])
    for part, title in (("rlvr", "RL problems"), ("benchmarks", "benchmark")):
        for name, counts in ingested.get(part, {}).items():
            lost += _losses(f"ingestion, {title} {name}", counts.get("dropped", {}))
    for objective, origin in (("ce", "teacher"), ("ul", "self")):
        for arm, chosen in _sets(selections, objective).items():
            verdicts = files.read_json(metrics / "verify" / f"{origin}.json")["verdicts"]
            taken = {f"verdict {name}": n for name, n in verdicts.items() if name not in chosen["verdicts"]}
            before = chosen["funnel"]["verdict"]
            for key, (_, reason) in CONDITIONS.items():
                if key in chosen["funnel"] and key != "verdict":
                    taken[reason], before = before - chosen["funnel"][key], chosen["funnel"][key]
            lost += _losses(f"{objective.upper()} set of {arm}", taken)
    for arm in selections:  # of whatever seed: which prompts are too long depends on none
        rlvr = metrics / "rlvr" / f"{arm}-{seeds[0]}.json"
        if rlvr.is_file():
            lost += _losses(f"RL prompts of {arm}", files.read_json(rlvr)["dropped"])
    return lost


def _losses(where: str, counts: dict[str, int]) -> list[Loss]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Loss(where, name.replace("_", " "), count) for name, count in ranked if count]


def teacher(metrics: Path, selections: Selections) -> list[Step]:
    """From the teacher's rows to each arm's CE set."""
    totals = files.read_json(metrics / "ingest.json")["totals"]
    verdicts = files.read_json(metrics / "verify" / "teacher.json")["verdicts"]
    read, ingested = totals["responses_read"], totals["responses"]
    reasons = _listed(totals["dropped"])
    lost = [f"−{read - ingested:,} at ingestion"] if read > ingested else []
    lost += [f"rows and responses dropped: {reasons}"] if reasons else []
    steps = [Step("read from the sources", read, ""), Step("kept by ingestion", ingested, "; ".join(lost))]
    sets = _sets(selections, "ce")
    steps += _conditions(next(iter(sets.values())), verdicts)
    return steps + [_chosen(arm, "CE", described) for arm, described in sets.items()]


def own(metrics: Path, selections: Selections) -> list[Step]:
    """From the student's samples to each UL set; nothing where no arm has one."""
    sets = _sets(selections, "ul")
    if not sets:
        return []
    verdicts = files.read_json(metrics / "verify" / "self.json")["verdicts"]
    first = next(iter(sets.values()))
    steps = [Step("sampled", first["funnel"]["responses"], _warmed_up(metrics))]
    for arm, described in sets.items():
        if described is first or described["funnel"] != first["funnel"]:
            steps += _conditions(described, verdicts)
        steps.append(_chosen(arm, "UL", described))
    return steps


def _warmed_up(metrics: Path) -> str:
    """What the warm-up of the sampler changed; "" where there was none, or nothing was left to measure it on."""
    measured = files.read_json(metrics / "warm_up.json")
    if "after" not in measured:
        return ""
    before, after = (measured[when]["parsable"] for when in ("before", "after"))
    return (
        f"by the base after a warm-up on {measured['training']['ce_rows']:,} solutions: {after:.0%} of its answers can "
        f"be read, {before:.0%} before ({measured['probed']} answers)"
    )


def _sets(selections: Selections, objective: str) -> dict[str, dict[str, Any]]:
    return {arm: selection[objective] for arm, selection in selections.items() if objective in selection}


def _conditions(described: dict[str, Any], verdicts: dict[str, int]) -> list[Step]:
    """The first condition, and each later one that took something away."""
    counts, wanted = described["funnel"], described["verdicts"]
    before, steps = counts["responses"], []
    for key, (left, lost) in CONDITIONS.items():
        if key in counts and (key == "verdict" or counts[key] < before):
            note = f"−{before - counts[key]:,} {lost}" if counts[key] < before else ""
            if key == "verdict":
                left = f"verdict {' or '.join(wanted)}"
                others = _listed({name: count for name, count in verdicts.items() if name not in wanted})
                note += f" ({others})" if note and others else ""
            steps.append(Step(left, counts[key], note))
            before = counts[key]
    return steps


def _chosen(arm: str, objective: str, described: dict[str, Any]) -> Step:
    notes = [f"of {described['eligible']:,} eligible", f"{described['problems']:,} problems"]
    if described["mean_tokens"] is not None:
        notes.append(f"mean {described['mean_tokens']:.0f} tokens")
    if described["chosen"] < described["asked"]:
        notes.append(f"{described['asked'] - described['chosen']:,} fewer than asked")
    return Step(f"{arm}: {objective} set", described["chosen"], ", ".join(notes), arm)


def _listed(counts: dict[str, int]) -> str:
    """The largest counts first, five at most."""
    ranked = sorted(
        ((count, name) for name, count in counts.items() if count), key=lambda item: (-item[0], item[1])
    )
    shown = [f"{name.replace('_', ' ')} {count:,}" for count, name in ranked[:5]]
    return ", ".join(shown + ([f"{len(ranked) - 5} more reasons"] if len(ranked) > 5 else []))
