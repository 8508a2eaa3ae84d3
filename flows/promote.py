"""The registry's gate: registers trained checkpoints, and makes the best one champion if it is shown to be better.

    challenger  the arm whose mean of registry.metric over all seeds and problems is highest; of that arm, the seed
                that params.yaml lists first. A fixed rule: to take the seed that scored best would be to choose luck.
    champion    the version that passed last. As long as there is none, the base takes its place.
    gate        the paired difference of the two checkpoints on the same problems (oxa/comparison/estimators.py),
                challenger minus champion, with the bootstrap of the `report` section; passed if its interval's lower
                end is above registry.min_gain.

Left out: the challenger is chosen on the problems on which it is then tested, so its lead is flattered, the more the
more arms there are (a benchmark kept for the gate alone would not do that); and the interval covers the draw of
problems, not what another fine-tuning seed would have given.

A comparison needs the same problems, as many samples of each, drawn the same way. Every version's numbers of right
answers are kept with it, so that a champion can be compared when the workspace has moved on; the samples themselves
are not, so the bootstrap draws problems alone, unlike the report's. Where two versions cannot be compared the gate
stays shut, and a person decides (`oxa promote VERSION`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from flows import bridge
from oxa.comparison import arms
from oxa.comparison import estimators as statistics
from oxa.comparison.outcomes import BASE, Outcomes, outcomes, unlike
from oxa.config.evaluate import Evaluate
from oxa.config.operations import Registry
from oxa.config.params import Params
from oxa.config.report import Report
from oxa.errors import ConfigError, DataError, without_credentials
from oxa.report import markdown
from oxa.report.wording import with_answer
from oxa.tracking import provenance, registration, registry

DRAWN_BY = ("temperature", "top_p", "max_tokens")  # settings that two evaluations must share


@dataclass(frozen=True)
class Results:
    """What one checkpoint answered on the benchmarks."""

    counts: dict[str, dict[str, tuple[int, int]]]
    """Benchmark, problem_id -> samples, correct ones."""
    drawn_by: dict[str, float]
    """Settings of the draw, those of DRAWN_BY."""

    @classmethod
    def of(cls, answers: Outcomes, section: Evaluate) -> Results:
        counts: dict[str, dict[str, tuple[int, int]]] = {}
        columns = (answers.benchmark, answers.problem_id, answers.num_samples, answers.num_correct)
        for benchmark, problem, samples, correct in zip(*columns, strict=True):
            counts.setdefault(str(benchmark), {})[str(problem)] = (int(samples), int(correct))
        return cls(counts, {name: getattr(section, name) for name in DRAWN_BY})

    @classmethod
    def loads(cls, text: str) -> Results:
        """The inverse of `dumps`."""
        raw = json.loads(text)
        counts = {name: {p: (n, c) for p, (n, c) in part.items()} for name, part in raw["counts"].items()}
        return cls(counts, raw["drawn_by"])

    def dumps(self) -> str:
        """As JSON, equal for equal results."""
        return json.dumps({"counts": self.counts, "drawn_by": self.drawn_by}, sort_keys=True)

    def digest(self) -> str:
        """Hash of all of it."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()[:32]

    def on(self, benchmark: str | None) -> dict[tuple[str, str], tuple[int, int]]:
        """(benchmark, problem_id) -> samples, correct; of one benchmark or of all, in order."""
        return {
            (name, problem): counts
            for name, part in sorted(self.counts.items())
            if benchmark in (None, name)
            for problem, counts in sorted(part.items())
        }


@dataclass(frozen=True)
class Verdict:
    """The gate's decision."""

    passed: bool
    reason: str
    """The figures, or why nothing was compared."""
    difference: statistics.Difference | None = None


@dataclass
class Outcome:
    """The result of registering."""

    sentences: list[str] = field(default_factory=list)
    """For the terminal, a line each."""
    table: str = ""
    """The versions and the gate's verdict as Markdown."""
    versions: dict[str, int] = field(default_factory=dict)
    """Training stage -> number of its version."""
    challenger: int | None = None
    champion: int | None = None
    passed: bool = False
    """Whether the champion has changed."""


@dataclass
class _Contest:
    """What dvc.lock and the workspace hold of these parameters' arms and seeds."""

    checkpoints: list[registration.Checkpoint] = field(default_factory=list)
    answers: dict[str, Outcomes] = field(default_factory=dict)
    """By training stage; absent where it was not evaluated."""
    base: Outcomes | None = None
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Why checkpoints cannot be registered, to their stages."""
    unready: list[str] = field(default_factory=list)
    """Why arms and seeds cannot all be compared, a sentence each."""


def register(params: Params, params_path: Path = Path("params.yaml")) -> Outcome:
    """Registers all checkpoints of these parameters that dvc.lock holds and the workspace has, then asks the gate.

    What is registered already is not registered again, and an MLflow run `register` (the answers, the table, the
    decision, the parameters) is made only where there is something new to keep. Raises DataError where DVC has no
    lock file yet, ConfigError where the gate asks for more than was evaluated, UserError where MLflow is out of reach.
    """
    locked = bridge.locked()
    for stage in (f"evaluate@{arm}-{seed}" for arm in params.arms for seed in params.seeds):
        if stage in locked and not _ran_with(params.evaluate, locked[stage].params.get("evaluate")):
            raise DataError(f"{params_path}: `evaluate` has changed since {stage} ran; `oxa run` first")
    commit, dirty = provenance.git()
    return settle(params, locked, commit, dirty == "true", params_path=params_path)


def _ran_with(section: Evaluate, recorded: Any) -> bool:
    try:
        return Evaluate.model_validate(recorded) == section
    except ValidationError:  # of an earlier version
        return False


def settle(
    params: Params,
    locked: Mapping[str, registration.Step],
    commit: str | None,
    dirty: bool,
    *,
    params_path: Path = Path("params.yaml"),
) -> Outcome:
    """`register`, with dvc.lock's stages and git's commit."""
    settings, experiment = params.registry, params.tracking.experiment
    contest = _contest(params, locked)
    results = {stage: Results.of(answers, params.evaluate) for stage, answers in contest.answers.items()}
    arm = None if contest.unready else _best_arm(params, results)
    comparison = "" if contest.unready or contest.base is None else _comparison(params, contest)

    known: dict[str, registry.Version] = {}
    new: list[int] = []
    for checkpoint in contest.checkpoints:
        version, is_new = registration.register(
            settings, checkpoint, locked, commit=commit, dirty=dirty, experiment=experiment
        )
        known[checkpoint.stage] = version
        new += [version.number] * is_new
        if is_new or comparison:  # a table is not taken away because an evaluation is missing now
            registry.describe(settings, version, _description(checkpoint, comparison))
    outcome = Outcome(versions={stage: version.number for stage, version in known.items()})
    outcome.sentences = [_counted(settings.model, new, list(outcome.versions.values()))]
    for reason, stages in contest.refused.items():
        outcome.sentences.append(f"not registered: {', '.join(stages)}: {reason}")

    champion = registry.with_alias(registry.versions(settings), registry.CHAMPION)
    chosen = known[f"train@{arm}-{params.seeds[0]}"] if arm else None
    if chosen:
        verdict = _gate(params, chosen, champion, known, results, contest.base)
    else:
        verdict = Verdict(False, f"not asked, for want of all arms and seeds: {contest.unready[0]}")
    outcome.sentences.append(f"gate: {'passed; ' if verdict.passed else ''}{verdict.reason}")

    fresh = {
        stage: result
        for stage, result in results.items()
        if not registry.has_results(known[stage], result.digest())
    }
    if fresh or verdict.passed:
        files = {_artifact(stage): result.dumps() for stage, result in fresh.items()}
        files["decision.txt"] = "\n".join(outcome.sentences) + "\n"
        if comparison:
            files["table.md"] = comparison
        if params_path.exists():
            files["params.yaml"] = without_credentials(params_path.read_text(encoding="utf-8"))
        tags = {"oxa.versions": ", ".join(map(str, outcome.versions.values())), "oxa.gate": verdict.reason}
        tags |= {"git.commit": commit or "", "git.dirty": str(dirty).lower()}
        numbers = verdict.difference._asdict() if verdict.difference else {}
        run_id = registry.record(experiment, files, tags, {f"gate.{k}": v for k, v in numbers.items()})
        for stage, result in fresh.items():
            registry.keep_results(settings, known[stage], run_id, _artifact(stage), result.digest())
    if chosen:
        outcome.challenger = chosen.number
        registry.challenge(settings, chosen)
        if verdict.passed:
            champion = registry.promote(settings, str(chosen.number), by="gate", why=verdict.reason)
            outcome.sentences.append(f"{champion.name} is the champion now")
    outcome.passed, outcome.champion = verdict.passed, champion.number if champion else None
    outcome.table = _table(params, outcome, known, results if arm else {})
    return outcome


def judge(
    settings: Registry, section: Report, challenger: tuple[str, Results], champion: tuple[str, Results]
) -> Verdict:
    """The gate's rule, for two named checkpoints."""
    (name, ours), (their_name, theirs) = challenger, champion
    if why := _unlike(ours, theirs, settings.benchmark):
        return Verdict(False, f"{name} cannot be compared with {their_name}: {why}")
    a, b = (_metric(settings, result) for result in (ours, theirs))
    difference = statistics.paired_difference(
        a, b, resamples=section.resamples, confidence=section.confidence, seed=section.seed
    )
    passed = difference.low > settings.min_gain
    mean, low, high = (f"{100 * value:+.1f}" for value in difference[:3])
    where = settings.benchmark or ", ".join(sorted(ours.counts))
    reason = (
        f"{name} against {their_name}: {settings.metric} {a.mean():.1%} and {b.mean():.1%} on {len(a)} problems "
        f"({where}), difference {mean} points, {section.confidence:.0%} interval [{low}, {high}], "
        f"{'' if passed else 'not '}all above {100 * settings.min_gain:+.1f}"
    )
    return Verdict(passed, reason, difference)


def _gate(
    params: Params,
    chosen: registry.Version,
    champion: registry.Version | None,
    known: Mapping[str, registry.Version],
    results: Mapping[str, Results],
    base: Outcomes | None,
) -> Verdict:
    by_number = {known[stage].number: result for stage, result in results.items()}
    ours = (chosen.name, by_number[chosen.number])
    if champion is None:
        if base is None:
            return Verdict(
                False, "not asked: there is no champion yet, and the base is not evaluated; `oxa run` does it"
            )
        return judge(params.registry, params.report, ours, ("the base", Results.of(base, params.evaluate)))
    if champion.number == chosen.number:
        return Verdict(
            False, f"{chosen.name} is the champion already, and its arm still the best; nothing to do"
        )
    name = f"the champion, {champion.name}"
    theirs = by_number.get(champion.number)
    if theirs is None and (text := registry.results(champion)):
        theirs = Results.loads(text)
    if theirs is not None:
        verdict = judge(params.registry, params.report, ours, (name, theirs))
        if verdict.difference is not None:
            return verdict
        reason = verdict.reason
    else:
        reason = f"{chosen.name} cannot be compared with {name}: what that answered is not to be had"
    return Verdict(False, f"{reason}; `oxa promote {chosen.number}` makes it champion by hand")


def _unlike(ours: Results, theirs: Results, benchmark: str | None) -> str:
    """Why two results cannot be compared; "" where they can."""
    for name in DRAWN_BY:
        if ours.drawn_by[name] != theirs.drawn_by[name]:
            return f"evaluated with {name} {ours.drawn_by[name]:g} and {theirs.drawn_by[name]:g}"
    a, b = ours.on(benchmark), theirs.on(benchmark)
    if a.keys() != b.keys():
        return f"evaluated on {len(a)} and {len(b)} problems, {len(a.keys() & b.keys())} of them the same"
    for key, (num_samples, _) in a.items():
        if num_samples != b[key][0]:
            return f"evaluated with {num_samples} and {b[key][0]} samples a problem of {key[0]}"
    return ""


def _metric(settings: Registry, results: Results) -> Any:
    """registry.metric of each problem of registry.benchmark, [P]."""
    num_samples, num_correct = np.array(list(results.on(settings.benchmark).values())).T
    k = int(settings.metric.removeprefix("pass@"))
    if k > num_samples.min():
        raise ConfigError(
            f"registry.metric {settings.metric} needs {k} samples of every problem, found {num_samples.min()}; lower "
            "it, or raise evaluate.num_samples and run again"
        )
    return statistics.pass_at_k(num_samples, num_correct, k)


def _best_arm(params: Params, results: Mapping[str, Results]) -> str:
    """The arm with the highest mean; of equal ones the first listed."""

    means = {
        arm: np.mean([_metric(params.registry, results[f"train@{arm}-{seed}"]) for seed in params.seeds])
        for arm in params.arms
    }
    return max(means, key=means.__getitem__)


def _contest(params: Params, locked: Mapping[str, registration.Step]) -> _Contest:
    contest = _Contest()
    for arm, seed in product(params.arms, params.seeds):
        stage = f"train@{arm}-{seed}"
        try:
            checkpoint = registration.Checkpoint(stage, arm, seed, *bridge.output(locked, stage, ".dir"))
        except DataError as error:
            contest.refused.setdefault(str(error), []).append(stage)
            continue
        contest.checkpoints.append(checkpoint)
        try:
            contest.answers[stage] = _answers(locked, f"evaluate@{arm}-{seed}")
        except DataError as error:
            contest.unready.append(str(error))
    everyone = dict(contest.answers)
    with contextlib.suppress(DataError):  # only a gate without a champion needs it, and says so
        contest.base = everyone["evaluate_base"] = _answers(locked, "evaluate_base")
    contest.unready = [*contest.refused, *contest.unready] or _faults(params.registry.benchmark, everyone)
    return contest


def _faults(benchmark: str | None, answers: Mapping[str, Outcomes]) -> list[str]:
    """Why answers of the same `evaluate` section cannot be compared with one another; at most one sentence."""
    first, *others = answers
    if benchmark not in (None, *answers[first].benchmark):
        return [f"nothing was evaluated on registry.benchmark {benchmark}; `oxa run` does it"]
    for other in others:
        if why := unlike(answers[first], answers[other]):
            return [f"{first} and {other} were {why}; `oxa run` evaluates them again"]
    return []


def _answers(locked: Mapping[str, registration.Step], stage: str) -> Outcomes:
    answers, entropies = (
        Path(bridge.output(locked, stage, ".parquet", folder)[0]) for folder in ("generations", "entropies")
    )
    return outcomes(answers, entropies=entropies)


def _comparison(params: Params, contest: _Contest) -> str:
    """The report's table, of these answers."""
    assert contest.base is not None
    by_arm = {arm: [contest.answers[f"train@{arm}-{seed}"] for seed in params.seeds] for arm in params.arms}
    compared = arms.summarize(params.report, {BASE: [contest.base], **by_arm})
    return markdown.table({**with_answer(compared), "guess_rate": {}})


def _description(checkpoint: registration.Checkpoint, comparison: str) -> str:
    reference = (
        f"{checkpoint.arm}, seed {checkpoint.seed}: {checkpoint.path} (DVC md5 {checkpoint.md5}), by reference. "
        "`oxa model VERSION` checks it and prints its path, `oxa lineage VERSION` what it was made from."
    )
    return f"{reference}\n\n{comparison}" if comparison else reference


def _counted(model: str, new: list[int], everyone: list[int]) -> str:
    if not everyone:
        return f"registry: no checkpoint to register in {model}"
    old = len(everyone) - len(new)
    parts = [f"{len(new)} registered as {registry.ranges(new)}"] * bool(new)
    parts += [f"{old} known already as {registry.ranges([n for n in everyone if n not in new])}"] * bool(old)
    return f"registry: checkpoints of {model}: {', '.join(parts)}"


def _artifact(stage: str) -> str:
    return f"results/{stage.partition('@')[2]}.json"


def _table(
    params: Params,
    outcome: Outcome,
    known: Mapping[str, registry.Version],
    results: Mapping[str, Results],
) -> str:
    """The versions as Markdown, under the sentences."""
    settings = params.registry
    lines = ["# Model registry", "", *(f"- {sentence}" for sentence in outcome.sentences), ""]
    lines += [
        f"| version | checkpoint | {settings.metric}, % | alias | DVC md5 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage, version in known.items():
        rate = f"{100 * _metric(settings, results[stage]).mean():.1f}" if stage in results else "–"
        holders = {registry.CHAMPION: outcome.champion, registry.CHALLENGER: outcome.challenger}
        aliases = ", ".join(alias for alias, number in holders.items() if number == version.number)
        cells = (version.number, version.tags["dvc.path"], rate, aliases, version.tags["dvc.md5"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
