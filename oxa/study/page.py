"""The page of a study as Markdown, from what its arms' checkpoints answered: parts by name, each between two marks.

Worlds are the unit: an interval says what the mean would be over other worlds, each a student with its problems
(over_worlds.py, oxa/comparison/worlds.py). All differences of one table, before and after RL, in the metrics of the
question, are one family of Holm's; so are the hypotheses, which are written down before the runs. One that is still to
be run counts as well. Tables are written of the worlds that are done, and say how many that are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from oxa.comparison import room
from oxa.comparison.measures import METRICS, TOKENS, Metric, pass_at, question
from oxa.comparison.outcomes import BASE, RL
from oxa.comparison.worlds import smallest_effect
from oxa.config.report import Report
from oxa.data import world as small_world
from oxa.errors import DataError
from oxa.report import markdown, wording
from oxa.study import explanations, mixed, over_worlds
from oxa.study.experiments import Comparison, Study
from oxa.study.over_worlds import Leads, Pair, Tested
from oxa.study.results import Results

POWER = 0.8
SPREADS = (0.0, 0.03, 0.06, 0.10)  # between worlds, that a study may meet: shares of the problems
SIZES = (5, 8, 10, 12, 16, 20)  # numbers of worlds


def _mark(study: str) -> re.Pattern[str]:
    begin = rf"<!-- {re.escape(study)}: "
    return re.compile(
        rf"{begin}(\S+) -->(?:(?!{begin}).)*?(?:(<!-- end -->)|(?={begin})|\Z)", flags=re.DOTALL
    )


def asked(text: str, study: str) -> list[str]:
    """Names of the parts that a page has marks for: `<!-- STUDY: NAME -->` and `<!-- end -->`, STUDY being the name of
    the study's file without its ending."""
    return [mark[1] for mark in _mark(study).finditer(text)]


def page(text: str, study: str, parts: Mapping[str, str]) -> str:
    """The text with every part between its marks written anew.

    Raises DataError where a mark names no part, or has no end.
    """

    def fill(mark: re.Match[str]) -> str:
        name = mark[1]
        if name not in parts:
            known = ", ".join(sorted(parts))
            raise DataError(f"the page asks for {name!r}, which is no part of the study; known here: {known}")
        if not mark[2]:
            raise DataError(f"the page's mark of {name!r} has no `<!-- end -->` before the next one")
        return f"<!-- {study}: {name} -->\n\n{parts[name].strip()}\n\n<!-- end -->"

    return _mark(study).sub(fill, text)


def names(study: Study) -> list[str]:
    """Of all parts."""
    return [*OF_ALL, *study.tables]


def parts(section: Report, results: Results, wanted: Collection[str] | None = None) -> dict[str, str]:
    """The page's parts by name, all or those wanted."""
    by_name: dict[str, Callable[[], str]] = {
        name: partial(part, section, results) for name, part in OF_ALL.items()
    }
    by_name |= {
        name: partial(_table, section, results, table) for name, table in results.study.tables.items()
    }
    return {name: part() for name, part in by_name.items() if wanted is None or name in wanted}


def _lines(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(markdown.aligned(header, rows))


def _gates(_: Report, results: Results) -> str:
    """What was measured of the worlds' bases and of plain fine-tuning: the range over worlds, and how many passed."""
    measured = {world: gates["gates"] | _room(results, world) for world, gates in results.gates().items()}
    if not measured:
        return "Not run yet."
    # of every world: value, as written, verdict
    lines: dict[tuple[str, ...], list[tuple[float, str, str]]] = {}
    for gates in measured.values():
        values = (row["value"] for gate in gates.values() for row in gate["rows"].values())
        for value, (gate, what, text, wanted, verdict) in zip(
            values, wording.gate_rows({"gates": gates}), strict=True
        ):
            lines.setdefault((gate, what, wanted), []).append((value, text, verdict))
    rows = [
        [*line, min(cells)[1], max(cells)[1], f"{sum(cell[2] == 'passed' for cell in cells)} of {len(cells)}"]
        for line, cells in sorted(lines.items(), key=lambda item: item[0][0])
    ]
    return _lines(["gate", "what", "wanted", "lowest", "highest", "worlds passed"], rows)


def _room(results: Results, world: int) -> dict[str, object]:
    """Gate G5, of the baseline of the first table that has one and goes on to RL, where it is done in this world."""
    for table in results.study.tables.values():
        place = table.rows[table.baseline] if table.baseline and table.after_rl else ""
        if place and world in results.worlds(place):
            n = int(results.base(place, world).num_samples.min())
            solved = float(results.values(place, world, "", pass_at(n)).mean())
            before, after = (results.pass_at_1(place, world, ending) for ending in ("", RL))
            return {"G5": room.judge(place.partition("/")[2], n, before, solved, after)}
    return {}


def _experiments(_: Report, results: Results) -> str:
    study = results.study
    rows = []
    for name, experiment in study.experiments.items():
        settings = (f"`{key}={_shown(value)}`" for key, value in experiment.set.items())
        runs = [f"{name}-{world}-{seed}" for world in study.worlds for seed in study.seeds_of(name)]
        num_done = sum(run in results.done for run in runs)
        rows.append([f"`{name}`", ", ".join(settings) or "–", f"`{runs[0]}` …", f"{num_done} of {len(runs)}"])
    return _lines(["experiment", "set over the study's settings", "names", "done"], rows)


def _shown(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _hypotheses(section: Report, results: Results) -> str:
    """What was written down before the runs, one family; and the mean difference that so many worlds would show."""
    by_name = {metric.name: metric for metric in (pass_at(1), *METRICS)}
    family = [
        (pair, by_name[one.metric])
        for one in results.study.hypotheses
        for pair in over_worlds.pairs(results.study.tables[one.table])
        if pair.name == one.row
    ]
    rows = []
    for one, found in zip(
        results.study.hypotheses, over_worlds.tested(section, results, family), strict=True
    ):
        metric = found.metric
        cells = [one.claim, f"{found.pair.title}: {metric.difference_heading}"]
        if found.leads is None or found.row is None:
            rows.append([*cells, "not run yet", "–", "–", "–"])
            continue
        enough = smallest_effect(found.leads.deviation, len(found.leads.worlds), POWER, section.confidence)
        rows.append(
            [
                *cells,
                markdown.difference(found.row, metric),
                metric.text(found.row["spread"]),
                found.ahead,
                metric.text(enough),
            ]
        )
    header = ["hypothesis", "difference", "mean over worlds", "spread", "worlds ahead", "shown from"]
    return _lines(header, rows)


def _table(section: Report, results: Results, table: Comparison) -> str:
    """Of those rows that are done in two worlds."""
    places = {row: place for row, place in table.rows.items() if len(results.worlds(place)) > 1}
    missing = [row for row in table.rows if row not in places]
    texts = [f"Not run yet: {'; '.join(missing)}."] if missing else []
    if any(places.keys() >= {*pair} for pair in table.pairs.items()):
        texts[:0] = _compared(section, results, table, places)
    return "\n\n".join(texts)


def _compared(section: Report, results: Results, table: Comparison, places: Mapping[str, str]) -> list[str]:
    first = next(iter(places.values()))
    base = results.base(first, results.worlds(first)[0])
    metrics = question(base.num_samples)
    family = [(pair, metric) for pair in over_worlds.pairs(table) for metric in metrics]
    num_worlds = sorted({len(results.worlds(place)) for place in places.values()})
    seeds = results.study.seeds_of(first.partition("/")[0])
    texts = [
        f"{' or '.join(map(str, num_worlds))} of {len(results.study.worlds)} worlds, {len(base.problem_id)} problems "
        f"each, {base.num_samples.min()} samples a problem, {len(seeds)} fine-tuning seeds a world; intervals over "
        f"worlds; p by Holm's method over {len(family)} comparisons.",
        _numbers(section, results, over_worlds.endings(table), places, metrics),
        _differences(over_worlds.tested(section, results, family), metrics),
    ]
    if "strategies" in table.beside:
        texts.append(_strategies(results, places, over_worlds.endings(table)))
    return texts


def _numbers(
    section: Report,
    results: Results,
    endings: Sequence[str],
    places: Mapping[str, str],
    metrics: Sequence[Metric],
) -> str:
    """A line a row, the base's first: means over worlds, pass@1 in the lowest and the highest, what it learned from."""
    rows: dict[str, tuple[str, str | None]] = {BASE: (next(iter(places.values())), None)}
    rows |= {name + ending: (place, ending) for ending in endings for name, place in places.items()}
    beside = {name: _beside(results, *row) for name, row in rows.items()}
    titles = sorted({title for cells in beside.values() for title in cells})
    lines = []
    for name, (place, ending) in rows.items():
        numbers = over_worlds.numbers(results, place, ending, [*metrics, TOKENS], section.confidence)
        solved = [pass_at(1).text(results.pass_at_1(place, world, ending)) for world in results.worlds(place)]
        cells = [markdown.cell(numbers, metric) for metric in (*metrics, TOKENS)]
        ends = f"{min(solved, key=float)} to {max(solved, key=float)}"
        lines.append([name, *cells, ends, *(beside[name].get(title, "–") for title in titles)])
    header = ["row", *(metric.heading for metric in (*metrics, TOKENS)), "pass@1 by world", *titles]
    return _lines(header, lines)


def _differences(found: Sequence[Tested], metrics: Sequence[Metric]) -> str:
    """A line a pair; of pass@1 the spread between worlds, too, and in how many of them the row is ahead."""
    rows: dict[str, list[str]] = {}
    for one in found:
        cells = rows.setdefault(one.pair.title, [one.pair.title])
        cells.append(markdown.difference(one.row, one.metric))
        if one.metric.name == pass_at(1).name:
            cells += ["–", "–"] if one.row is None else [pass_at(1).text(one.row["spread"]), one.ahead]
    header = ["difference"]
    for metric in metrics:
        header.append(metric.difference_heading)
        header += ["spread", "worlds ahead"] if metric.name == pass_at(1).name else []
    return _lines(header, list(rows.values()))


def _strategies(results: Results, places: Mapping[str, str], endings: Sequence[str]) -> str:
    """Which strategies of the small world the CE sets hold, and the answers take: percent, means over worlds."""

    def shares(of: Callable[[int], Mapping[str, float]], worlds: Sequence[int]) -> str:
        found = [of(world) for world in worlds]
        return " / ".join(
            f"{100 * np.mean([one[name] for one in found]):.0f}" for name in small_world.STRATEGIES
        )

    rows = []
    for name, place in places.items():
        there = results.worlds(place)
        taken = [partial(results.strategies_taken, place, ending=ending) for ending in endings]
        rows.append(
            [name, *(shares(of, there) for of in (partial(results.strategies_taught, place), *taken))]
        )
    answers = ["answers", "answers after RL"][: len(endings)]
    return _lines([f"{' / '.join(small_world.STRATEGIES)}, %", "CE set", *answers], rows)


def _beside(results: Results, place: str, ending: str | None) -> dict[str, str]:
    """What the arm was trained on, or its temperature in RL: means over worlds and seeds, by column."""
    if ending is None:
        return {}
    selection, training = "metrics/selection/ce/{arm}.json", "metrics/train/{arm}-{seed}.json"
    columns: dict[str, tuple[str, tuple[str, ...], int]] = {
        "CE sequences": (selection, ("ce", "chosen"), 0),
        "CE tokens": (selection, ("ce", "tokens"), 0),
        "p of UL tokens": (training, ("final", "ul_probability"), 2),
    }
    if ending:
        columns = {"T of RL": ("metrics/rlvr/{arm}-{seed}.json", ("temperature",), 2)}
    found = {}
    for title, (path, keys, digits) in columns.items():
        values = [results.mean(place, world, path, *keys) for world in results.worlds(place)]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            found[title] = f"{np.mean(known):.{digits}f}"
    return found


def _each(results: Results) -> Iterator[tuple[Pair, Leads]]:
    """All pairs that are done and their leads in pass@1; one that two tables have in common comes once."""
    seen = set()
    for table in results.study.tables.values():
        for pair in over_worlds.pairs(table):
            leads = over_worlds.leads(results, pair, pass_at(1))
            if leads and (key := (pair.title, *leads.differences)) not in seen:
                seen.add(key)
                yield pair, leads


def _power(section: Report, results: Results) -> str:
    """The smallest mean difference in pass@1 that so many worlds show in four of five studies, by how much worlds may
    differ: from the noise within this study's worlds."""
    text, rows = pass_at(1).text, []
    for pair, leads in _each(results):
        noise = float(leads.variances.mean())
        for spread in SPREADS:
            deviation = math.sqrt(noise + spread**2)
            cells = [text(smallest_effect(deviation, num, POWER, section.confidence)) for num in SIZES]
            rows.append([pair.title, text(math.sqrt(noise)), text(spread), *cells])
    header = ["difference", "noise in a world", "spread between worlds", *(f"{num} worlds" for num in SIZES)]
    return _lines(header, rows) if rows else "Not run yet."


def _mixed(section: Report, results: Results) -> str:
    """The tables' differences in pass@1 by a mixed model, beside the t interval over worlds."""
    text, signed, rows = pass_at(1).text, pass_at(1).signed, []
    for pair, leads in _each(results):
        apart = [
            np.subtract(*(results.values(place, world, pair.ending, pass_at(1)) for place in pair.places))
            for world in leads.worlds
        ]
        fitted = mixed.fit([of.mean(axis=0) for of in apart])
        row = leads.row(section.confidence)
        error = leads.deviation / math.sqrt(len(leads.worlds))
        means = (signed(value) for value in (row["difference"], fitted.mean))
        others = (text(value) for value in (error, fitted.error, row["spread"], fitted.spread))
        rows.append([pair.title, *means, *others])
    header = [
        "Δ pass@1, points",
        "mean",
        "mixed model",
        "standard error",
        "mixed model",
        "spread",
        "mixed model",
    ]
    return _lines(header, rows) if rows else "Not run yet."


def _explained(_: Report, results: Results) -> str:
    """A line a world, the largest lead first, and the rank correlations."""
    explained = results.study.explained
    if explained is None or len(results.worlds(explained.ours, explained.theirs)) < 2:
        return "Not run yet."
    found = explanations.worlds_of(results, explained)
    rows = []
    for place in np.argsort(-found.before, kind="stable"):
        cells = [
            f"{value:.{one.digits}f}"
            for one, value in zip(explanations.EXPLANATIONS, found.explanations[place], strict=True)
        ]
        leads = [
            "–" if np.isnan(lead) else f"{lead:+.1f}" for lead in (found.before[place], found.after[place])
        ]
        rows.append([str(found.worlds[place]), *leads, *cells])
    rhos = [found.correlation(place) for place in range(len(explanations.EXPLANATIONS))]
    rows.append(
        [
            "ρ with the lead (p)",
            "",
            "",
            *("–" if np.isnan(rho) else f"{rho:+.2f} ({p:.2f})" for rho, p in rhos),
        ]
    )
    titles = [one.title for one in explanations.EXPLANATIONS]
    return _lines(["world", "lead, points", "lead after RL, points", *titles], rows)


OF_ALL: dict[str, Callable[[Report, Results], str]] = {
    "gates": _gates,
    "experiments": _experiments,
    "hypotheses": _hypotheses,
    "power": _power,
    "mixed": _mixed,
    "explained": _explained,
}
"""Parts of every study, beside its tables."""
