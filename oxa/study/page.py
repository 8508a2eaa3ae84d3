"""The page of a study: its comparisons of arms as Markdown, from what the arms' checkpoints answered.

The statistics of every row are those of the report (oxa/comparison/arms.py), with the problems of all worlds together:
a world's problems are its own, and seed s of a row stands for its fine-tuning seed s in every world. So an interval
holds for other problems and other fine-tuning seeds of these worlds and their students. How worlds differ is seen from
the differences in each, since two or three of them are too few to estimate it.

How much seeds differ is estimated from a row alone, and for a difference from its two rows: rows of a study may be far
from each other, or nearly the same. Two rows that learn from the same solutions do so in the same order under the same
seed, and are paired by seed, too.

The differences of one comparison, before and after RL, in pass@1, pass@N and entropy, are one family of Holm's; one
that is still to be run counts as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oxa.comparison import arms, drawn
from oxa.comparison.measures import TOKENS, Metric, pass_at, question
from oxa.comparison.outcomes import BASE, RL, Outcomes, unlike
from oxa.config.report import Report
from oxa.data import world
from oxa.errors import DataError
from oxa.report import markdown, wording
from oxa.report.wording import change
from oxa.study.experiments import Comparison, Run, Study
from oxa.study.results import Read, Results, of_world


def page(text: str, parts: Mapping[str, str]) -> str:
    """The text with every part between its marks, `<!-- study: NAME -->` and `<!-- end -->`, written anew.

    Raises DataError where a mark names no part, or has no end.
    """

    def fill(mark: re.Match[str]) -> str:
        name = mark[1]
        if name not in parts:
            known = ", ".join(sorted(parts))
            raise DataError(f"the page asks for {name!r}, which is no part of the study; known here: {known}")
        if not mark[2]:
            raise DataError(f"the page's mark of {name!r} has no `<!-- end -->` before the next one")
        return f"<!-- study: {name} -->\n\n{parts[name].strip()}\n\n<!-- end -->"

    pattern = r"<!-- study: (\S+) -->(?:(?!<!-- study: ).)*?(?:(<!-- end -->)|(?=<!-- study: )|\Z)"
    return re.sub(pattern, fill, text, flags=re.DOTALL)


def names(study: Study) -> list[str]:
    """Of all parts."""
    return ["gates", "experiments", *study.tables]


def parts(study: Study, section: Report, done: Mapping[str, Run], read: Read) -> dict[str, str]:
    """The page's parts by name: `gates`, `experiments` and every comparison, of the runs that are done."""
    results = Results(study, done, read)
    texts = {"gates": _gates(results), "experiments": _experiments(study, done)}
    for name, comparison in study.tables.items():
        places = {row: place for row, place in comparison.rows.items() if results.has(place)}
        missing = [row for row in comparison.rows if row not in places]
        text = f"Not run yet: {'; '.join(missing)}." if missing else ""
        if any(places.keys() >= {*pair} for pair in comparison.pairs.items()):
            text = f"{_comparison(section, comparison, places, results)}\n\n{text}"
        texts[name] = text
    return texts


def _gates(results: Results) -> str:
    """What was measured of every world's base, side by side."""
    columns = {seed: wording.gate_rows(measured) for seed, measured in results.gates().items()}
    if not columns:
        return "Not run yet."
    rows = []
    for lines in zip(*columns.values(), strict=True):
        gate, what, _, wanted, _ = lines[0]
        cells = [
            f"{measured}{'' if verdict == 'passed' else ' FAILED'}" for _, _, measured, _, verdict in lines
        ]
        rows.append([gate, what, wanted, *cells])
    return _lines(["gate", "what", "wanted", *(f"world {seed}" for seed in columns)], rows)


def _experiments(study: Study, done: Mapping[str, Run]) -> str:
    rows = [
        [
            f"`{name}`",
            ", ".join(f"`{key}={_shown(value)}`" for key, value in experiment.set.items()) or "–",
            ", ".join(
                f"`{name}-{seed}`" + ("" if f"{name}-{seed}" in done else " (not run)")
                for seed in study.worlds
            ),
        ]
        for name, experiment in study.experiments.items()
    ]
    return _lines(["experiment", "set over the study's settings", "names"], rows)


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _comparison(section: Report, comparison: Comparison, places: Mapping[str, str], results: Results) -> str:
    """Of those rows whose `places` are there."""
    study = results.study
    endings = ["", RL] if comparison.after_rl else [""]
    base = results.base(next(iter(places.values())))
    rows = {name + end: (place, end) for end in endings for name, place in places.items()}
    checkpoints = {BASE: [base]} | {name: results.outcomes(*row) for name, row in rows.items()}
    for name, runs in checkpoints.items():
        for run in runs:
            if why := unlike(run, base):
                raise DataError(f"{name}: not evaluated like {BASE}: {why}")
    first = results.drawn(*next(iter(rows.values())))[0]
    for name, row in rows.items():
        for settings in results.drawn(*row):
            if why := drawn.unlike(settings, first):
                raise DataError(f"{name}: not evaluated like {BASE}: {why}")
    metrics = question(base.num_samples)
    num_comparisons = len(comparison.pairs) * len(endings) * len(metrics)
    pairs = [
        (name + end, other + end, results.solutions(places[name]) == results.solutions(places[other]))
        for end in endings
        for name, other in comparison.pairs.items()
        if name in places and other in places
    ]
    texts = [
        f"{len(base.problem_id)} problems of {len(study.worlds)} worlds, {base.num_samples.min()} samples a problem, "
        f"{len(study.seeds)} fine-tuning seeds a world; p by Holm's method over {num_comparisons} comparisons.",
        _numbers(section, study, checkpoints, {name: _beside(results, *row) for name, row in rows.items()}),
        _differences(section, study, checkpoints, pairs, metrics, num_comparisons),
    ]
    if "tiers" in comparison.beside:
        texts.append(_tiers(section, checkpoints))
    if "strategies" in comparison.beside:
        texts.append(_strategies(places, endings, results))
    return "\n\n".join(texts)


def _numbers(
    section: Report,
    study: Study,
    checkpoints: Mapping[str, Sequence[Outcomes]],
    beside: Mapping[str, Mapping[str, str]],
) -> str:
    """A line a row, the base's first: numbers over all worlds, pass@1 in each, and what the row was made from."""
    metrics = question(checkpoints[BASE][0].num_samples)
    titles = sorted({title for cells in beside.values() for title in cells})
    lines = []
    for name, runs in checkpoints.items():
        numbers = arms.numbers_of(section, runs, metrics)
        solved = np.mean([run.num_correct / run.num_samples for run in runs], axis=0)
        by_world = (pass_at(1).text(solved[of_world(runs[0], seed)].mean()) for seed in study.worlds)
        cells = [markdown.cell(numbers, metric) for metric in (*metrics, TOKENS)]
        more = [beside.get(name, {}).get(title, "–") for title in titles]
        lines.append([name, *cells, " / ".join(by_world), *more])
    in_worlds = f"pass@1 in world {' / '.join(map(str, study.worlds))}"
    return _lines(["row", *(metric.heading for metric in (*metrics, TOKENS)), in_worlds, *titles], lines)


def _differences(
    section: Report,
    study: Study,
    checkpoints: Mapping[str, Sequence[Outcomes]],
    pairs: Sequence[tuple[str, str, bool]],
    metrics: Sequence[Metric],
    num_comparisons: int,
) -> str:
    """A line a pair, corrected by Holm's method, and one for each world, with intervals alone.

    A pair: two rows, and whether they learn from the same solutions.
    """

    def compare(pair: tuple[str, str, bool], seed: int | None = None) -> dict[str, Any]:
        """In all worlds together, or in one."""
        name, other, same_seeds = pair
        sides = [checkpoints[name], checkpoints[other]]
        if seed is not None:
            sides = [[run.only(of_world(run, seed)) for run in runs] for runs in sides]
        size = num_comparisons if seed is None else 1
        return arms.differences(section, *sides, only=metrics, same_seeds=same_seeds, num_comparisons=size)

    together = [compare(pair) for pair in pairs]
    compared = [rows[metric.name] for rows in together for metric in metrics if metric.name in rows]
    to_be_run = [{"p_value": 1.0, "low": 0.0, "high": 0.0}] * (num_comparisons - len(compared))
    arms.correct(section, [*compared, *to_be_run])
    lines = []
    for pair, rows in zip(pairs, together, strict=True):
        cells = (markdown.difference(rows.get(metric.name), metric) for metric in metrics)
        lines.append([f"{pair[0]} − {pair[1]}", *cells])
        for seed in study.worlds if len(study.worlds) > 1 else []:
            rows = compare(pair, seed)
            lines.append([f"· in world {seed}", *(change(rows.get(m.name), m) for m in metrics)])
    return _lines(["difference", *(metric.difference_heading for metric in metrics)], lines)


def _lines(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(markdown.aligned(header, rows))


def _tiers(section: Report, checkpoints: Mapping[str, Sequence[Outcomes]]) -> str:
    """pass@1 by tier, in the order of the small world where it is one."""
    tier = checkpoints[BASE][0].tier
    tiers = sorted(
        set(tier.tolist()), key=lambda one: (one not in world.TIERS, (*world.TIERS, one).index(one))
    )
    rows = []
    for name, runs in checkpoints.items():
        cells = []
        for one in tiers:
            of_tier = [run.only(tier == one) for run in runs]
            cells.append(markdown.cell(arms.numbers_of(section, of_tier, [pass_at(1)]), pass_at(1)))
        rows.append([name, *cells])
    return _lines([pass_at(1).heading, *tiers], rows)


def _strategies(places: Mapping[str, str], endings: Sequence[str], results: Results) -> str:
    """Which strategies of the small world the CE sets hold, and the answers take, percent."""

    def shares(counts: Counter[str]) -> str:
        return " / ".join(f"{100 * counts[name] / max(1, counts.total()):.0f}" for name in world.STRATEGIES)

    rows = [
        [
            name,
            shares(results.strategies_taught(place)),
            *(shares(results.strategies_taken(place, end)) for end in endings),
        ]
        for name, place in places.items()
    ]
    answers = ["answers", "answers after RL"][: len(endings)]
    return _lines([f"{' / '.join(world.STRATEGIES)}, %", "CE set", *answers], rows)


def _beside(results: Results, place: str, ending: str) -> dict[str, str]:
    """What the arm was trained on, or its temperature in RL: means over worlds and seeds, by column."""
    if ending:
        cells = {"T of RL": (results.mean(place, "metrics/rlvr/{arm}-{seed}.json", "temperature"), 2)}
    else:
        selection, training = "metrics/selection/ce/{arm}.json", "metrics/train/{arm}-{seed}.json"
        cells = {
            "CE sequences": (results.mean(place, selection, "ce", "chosen"), 0),
            "CE tokens": (results.mean(place, selection, "ce", "tokens"), 0),
            "p of UL tokens": (results.mean(place, training, "final", "ul_probability"), 2),
        }
    return {title: f"{value:.{digits}f}" for title, (value, digits) in cells.items() if value is not None}
