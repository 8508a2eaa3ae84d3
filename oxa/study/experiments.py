"""A study: which experiments it takes, in which worlds, and which of their arms its comparisons put side by side.

An experiment is a params file with some keys changed, run in every one of the study's worlds with every one of its
fine-tuning seeds; a world is a seed of the small world and of the student that is pretrained in it. A fine-tuning seed
has its own draw in selection, too: what an arm does is then not what one random set of solutions does. flows/study.py
runs them, results.py reads what they left, page.py writes it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError, model_validator

from oxa.comparison import outcomes
from oxa.config.params import check_params, sentence
from oxa.config.section import Section, Seed
from oxa.errors import ConfigError

UNSEEN = ("tracking", "flow", "registry", "plan", "report", "traces")
"""Sections of params.yaml that no experiment's results depend on; what the page says does on `report`."""

OWN = frozenset(
    {"sources", "sources.world", "sources.world.seed", "base", "base.seed", "seeds", "selection.shared.seed"}
)
"""Keys that a study's worlds and seeds set."""
SHARED = ("sources", "base", "evaluate")
"""Sections that the rows of one comparison have in common: problems, student, and how it answers."""


class Experiment(Section):
    """The study's params file with some keys changed, and how much of the graph is run."""

    set: dict[str, Any] = Field(default_factory=dict)
    """Key's path in the params file, to its value."""
    stages: list[str] = Field(default_factory=lambda: ["evaluate_base", "evaluate"])
    """Stages that are brought up to date, with all that they need."""
    seeds: list[Seed] = Field(default_factory=list)
    """Fine-tuning seeds of its own, in place of the study's: the same arm again tells what is noise."""


class Comparison(Section):
    """Arms side by side on the study's page: an entry of `tables`."""

    rows: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+/[A-Za-z0-9][A-Za-z0-9_.]*$")]]
    """Row's name, to `EXPERIMENT/ARM`."""
    baseline: str | None = None
    """Row that all others are compared with."""
    compare: dict[str, str] = Field(default_factory=dict)
    """In place of a baseline: row, to the row that it is compared with."""
    after_rl: bool = False
    """The rows after RL, too."""
    beside: list[Literal["strategies"]] = Field(default_factory=list)
    """Tables beside it: which strategies of the small world the arm was taught and takes."""

    @model_validator(mode="after")
    def _compares_its_rows(self) -> Comparison:
        if (self.baseline is None) == (not self.compare):
            raise ValueError("source rows: a table takes a baseline or compare, one of the two")
        for name in (self.baseline, *self.compare, *self.compare.values()):
            if name is not None and name not in self.rows:
                raise ValueError(
                    f"source {name!r}: the baseline, and what is compared, must be among the rows"
                )
        if any(name == other for name, other in self.compare.items()):
            raise ValueError("source compare: a row is compared with itself")
        if any(name.endswith(outcomes.RL) for name in self.rows):
            raise ValueError(f"a row's name must not end in {outcomes.RL}: after_rl adds those")
        if outcomes.BASE in self.rows:
            raise ValueError(f"no row can be called {outcomes.BASE}: every table has a line of that name")
        return self

    @property
    def pairs(self) -> dict[str, str]:
        """Row, to the row that it is compared with."""
        if self.baseline is None:
            return self.compare
        return {name: self.baseline for name in self.rows if name != self.baseline}


class Hypothesis(Section):
    """What is written down before the runs: a row of a table differs from the row that it is compared with."""

    table: str
    row: str
    """Of the table; `ROW-rl` after RL."""
    metric: Literal["pass_at_1", "response_entropy", "token_entropy"]
    claim: Annotated[str, Field(min_length=1)]
    """In words."""


class Explained(Section):
    """Whose lead in pass@1 is set against what was known of every world before it."""

    ours: str
    """`EXPERIMENT/ARM`."""
    theirs: str


class Study(Section):
    params: str = "params.yaml"
    """The params file that every experiment begins with; a student that is pretrained in each world wants one whose
    `base` does that."""
    worlds: list[Seed] = Field(min_length=1)
    """Seeds of worlds and their students."""
    seeds: list[Seed] = Field(min_length=1)
    """Fine-tuning seeds of every arm, and of its selection's draws."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What holds for every experiment, over the params file."""
    experiments: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], Experiment] = Field(min_length=1)
    """In the order in which they run."""
    tables: dict[str, Comparison] = Field(default_factory=dict)
    """By name, which is also their place in the page."""
    hypotheses: list[Hypothesis] = Field(default_factory=list)
    """One family of Holm's, apart from the tables'."""
    explained: Explained | None = None
    """The comparison whose lead differs between worlds; none: nothing is set against it."""

    @model_validator(mode="after")
    def _has_each_world_and_seed_once(self) -> Study:
        own = ((f"experiments.{name}.seeds", one.seeds) for name, one in self.experiments.items())
        for name, values in (("worlds", self.worlds), ("seeds", self.seeds), *own):
            if len(set(values)) < len(values):
                raise ValueError(f"source {name}: one of them is named twice, and would count as two")
        for where, changes in self._sets():
            for key in sorted(OWN & {*changes}):
                raise ValueError(f"source {where}: {key} is set by the study's worlds and seeds")
        return self

    def seeds_of(self, experiment: str) -> list[Seed]:
        return self.experiments[experiment].seeds or self.seeds

    def _sets(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "set", self.set
        for name, experiment in self.experiments.items():
            yield f"experiments.{name}.set", experiment.set

    @model_validator(mode="after")
    def _asks_of_what_is_compared(self) -> Study:
        for number, one in enumerate(self.hypotheses):
            where = f"source hypotheses.{number}"
            if one.table not in self.tables:
                raise ValueError(f"{where}: no table is called {one.table!r}")
            table, arm = self.tables[one.table], one.row.removesuffix(outcomes.RL)
            if arm not in table.pairs:
                raise ValueError(f"{where}: {one.table} compares no row {arm!r} with another")
            if arm != one.row and not table.after_rl:
                raise ValueError(f"{where}: {one.table} has no rows after RL")
        for place in (self.explained.ours, self.explained.theirs) if self.explained else ():
            if place.partition("/")[0] not in self.experiments:
                raise ValueError(f"source explained: {place!r} is of no experiment")
        return self

    @model_validator(mode="after")
    def _compares_what_is_alike(self) -> Study:
        for name, comparison in self.tables.items():
            shared: dict[str, dict[str, Any]] = {}
            for row, place in comparison.rows.items():
                experiment = place.partition("/")[0]
                if experiment not in self.experiments:
                    raise ValueError(f"source {place!r} of tables.{name}.rows.{row} is no experiment")
                changes = self.experiments[experiment].set
                shared[experiment] = {key: changes[key] for key in changes if key.partition(".")[0] in SHARED}
            first, *others = shared
            for other in others:
                if shared[other] != shared[first]:
                    raise ValueError(
                        f"source tables.{name}: {first} and {other} do not have the same student, problems or "
                        f"evaluation ({', '.join(SHARED)}), so their rows cannot be compared"
                    )
        return self


class Run(NamedTuple):
    """One experiment in one world with one fine-tuning seed."""

    experiment: str
    world: int
    seed: int
    changes: dict[str, Any]
    """All that is set over the params file."""
    stages: list[str]
    params: str = "params.yaml"
    """The params file that it begins with."""

    @property
    def name(self) -> str:
        return f"{self.experiment}-{self.world}-{self.seed}"


def load(path: Path) -> Study:
    """Reads a study's file; ConfigError, with the key's path, where it is not one."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(sentence(str(path), fault) for fault in error.errors())) from None


def runs(study: Study) -> list[Run]:
    """Every experiment in every world with every seed, a world after the other."""
    return [
        Run(
            name,
            world,
            seed,
            {
                "sources.world.seed": world,
                "base.seed": world,
                "seeds": [seed],
                "selection.shared.seed": seed,
            }
            | study.set
            | experiment.set,
            experiment.stages,
            study.params,
        )
        for world in study.worlds
        for name, experiment in study.experiments.items()
        for seed in study.seeds_of(name)
    ]


def changed(raw: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A params file's content with the changes; ConfigError where the result is none."""
    result = copy.deepcopy(dict(raw))
    for path, value in changes.items():
        *folders, key = path.split(".")
        section = result
        for folder in folders:
            section = section.setdefault(folder, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{where}: {path}: {folder} holds no keys in the params file")
        section[key] = _merged(section.get(key), value)
    check_params(result, where)
    return result


def _merged(old: Any, new: Any) -> Any:
    """As --set-param merges: keys of a dict that are not named stay."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _merged(old.get(key), value) for key, value in new.items()}
    return copy.deepcopy(new)


def refuse_empty_rows(study: Study, arms: Mapping[str, list[str]], where: str) -> None:
    """ConfigError where a comparison asks for what no experiment makes; `arms` are those of each experiment."""
    for name, comparison in study.tables.items():
        for row, place in comparison.rows.items():
            experiment, _, arm = place.partition("/")
            if arm not in arms[experiment]:
                known = ", ".join(arms[experiment])
                raise ConfigError(
                    f"{where}: tables.{name}.rows.{row}: {experiment} has no arm {arm!r}; known here: {known}"
                )
            if comparison.after_rl and "evaluate_rlvr" not in study.experiments[experiment].stages:
                raise ConfigError(
                    f"{where}: tables.{name}: after_rl needs evaluate_rlvr among the stages of {experiment}"
                )


def same_results(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two contents of params.yaml ask for the same results."""
    return all(ours.get(key) == theirs.get(key) for key in {*ours, *theirs} - {*UNSEEN})
