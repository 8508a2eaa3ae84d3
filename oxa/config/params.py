"""params.yaml as frozen, checked sections: one a stage, plus what several stages share.

Every number of a run lives in params.yaml. Unknown keys, wrong types and values out of range are a
`ConfigError` that names the file and the key's path. A stage is handed its own section only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from oxa.config.base import Checkpoint, FromScratch
from oxa.config.evaluate import Evaluate
from oxa.config.forecast import Plan
from oxa.config.gates import Gates
from oxa.config.generate import Generate
from oxa.config.ingest import Ingest
from oxa.config.operations import Flow, Registry, Tracking
from oxa.config.pass_rate import PassRate
from oxa.config.predictors import Predictors
from oxa.config.prompt import Prompt
from oxa.config.report import Report
from oxa.config.rlvr import Rlvr
from oxa.config.sample import Sample
from oxa.config.score import Measure, Score
from oxa.config.section import Arm, Section, Seed
from oxa.config.selection import Selection
from oxa.config.sources import Sources
from oxa.config.traces import Traces
from oxa.config.train import Train
from oxa.config.verify import Verify
from oxa.errors import ConfigError, without_credentials


class Params(Section):
    """A whole params.yaml. No section that DVC tracks may be left out: it knows no defaults."""

    arms: list[Arm] = Field(min_length=1)
    """Arms that are selected, trained, evaluated and compared."""
    seeds: list[Seed] = Field(min_length=1)
    """Fine-tuning seeds; every arm is trained with each."""
    prompt: Prompt
    sources: Sources
    base: Annotated[FromScratch | Checkpoint, Field(discriminator="kind")]
    ingest: Ingest
    generate: Generate
    sample: Sample
    gates: dict[Literal["world"], Gates] = {}
    """Exams that the base is measured by; without one there is no such stage."""
    verify: Verify
    score: Score
    selection: Selection
    train: Train
    pass_rate: PassRate
    rlvr: Rlvr
    evaluate: Evaluate
    predictors: Predictors
    traces: Traces
    report: Report
    flow: Flow = Flow()
    tracking: Tracking = Tracking()
    registry: Registry = Registry()
    plan: Plan = Plan()

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        for arm in self.arms:
            if arm == "base":
                raise ValueError("arm 'base' would be confused with the base itself; give it another name")
            if arm not in self.selection.ce:
                raise ValueError(f"arm {arm!r} has no entry in selection.ce")
            by = self.selection.ce[arm].by
            if by in get_args(Measure) and by not in self.score.measures:
                raise ValueError(
                    f"arm {arm!r}: selection.ce.{arm} chooses by {by}, which is not scored; add it to score.measures"
                )
            if by == "pass_rate" and "train" not in self.pass_rate.splits:
                raise ValueError(
                    f"arm {arm!r}: selection.ce.{arm} chooses by pass_rate, which nothing measures of training "
                    "problems; add train to pass_rate.splits"
                )
            if arm not in self.train.arms:
                raise ValueError(f"arm {arm!r} has no entry in train.arms")
            unlikelihood, per_step = self.selection.ul.get(arm), self.train.arms[arm].num_ul
            if (unlikelihood is not None) != (per_step > 0):
                raise ValueError(
                    f"arm {arm!r}: selection.ul.{arm} and train.arms.{arm}.num_ul must both be set or both be absent"
                )
            if unlikelihood and unlikelihood.consensus == "judge" and self.verify.judge is None:
                raise ValueError(
                    f"arm {arm!r}: selection.ul.{arm}.consensus is `judge`, and there is none; set verify.judge to "
                    "{url: …, model: …}, or consensus to true or false"
                )
            unscored = set(unlikelihood.verdicts if unlikelihood else []) - set(self.score.self_verdicts)
            if unscored:
                raise ValueError(
                    f"arm {arm!r}: its UL set takes verdicts that score.self_verdicts leaves out: "
                    f"{', '.join(sorted(unscored))}"
                )
        for pair in self.train.after.items():
            for arm in pair:
                if arm not in self.arms:
                    raise ValueError(
                        f"arm {arm!r} of train.after ({pair[0]}: {pair[1]}) is not one of arms; add it there or take "
                        "the pair out"
                    )
        of_rl = "rlvr" if self.ingest.rlvr else "train"
        if self.rlvr.pass_rate and of_rl not in self.pass_rate.splits:
            raise ValueError(
                "source rlvr.pass_rate: it keeps problems by a pass rate that nothing measures; set pass_rate.splits "
                f"to [{of_rl}]"
            )
        for name in self.ingest.benchmarks:
            if name in ("train", "rlvr", "pooled", "macro"):
                raise ValueError(
                    f"source {name!r} cannot be a benchmark's name: it means something else in the tables"
                )
        for name in self.evaluate.num_samples_by_benchmark:
            if name not in self.ingest.benchmarks:
                raise ValueError(
                    f"source {name!r} of evaluate.num_samples_by_benchmark is not one of ingest.benchmarks: "
                    f"{', '.join(self.ingest.benchmarks)}"
                )
        if self.registry.benchmark not in (None, *self.ingest.benchmarks):
            raise ValueError(
                f"source {self.registry.benchmark!r} of registry.benchmark is not one of ingest.benchmarks: "
                f"{', '.join(self.ingest.benchmarks)}"
            )
        if self.predictors.num and not self.evaluate.entropy_samples:
            raise ValueError(
                "source predictors.num: a KL is measured on the responses that entropy is, and "
                "evaluate.entropy_samples is 0; set it to 1 or more, or predictors.num to 0"
            )
        exams = [self.registry.benchmark] if self.registry.benchmark else list(self.ingest.benchmarks)
        drawn = self.evaluate.num_samples_by_benchmark
        fewest = min((drawn.get(name, self.evaluate.num_samples) for name in exams), default=1)
        if int(self.registry.metric.removeprefix("pass@")) > fewest:
            raise ValueError(
                f"source {self.registry.metric!r} of registry.metric needs more samples than the {fewest} a problem of "
                "evaluate.num_samples"
            )
        if self.gates and isinstance(self.base, FromScratch) and not self.base.knows_world:
            raise ValueError(
                "source gates.world: it examines a student that is pretrained on the source `world` (base.corpus); "
                "leave the section gates out"
            )
        if self.gates and "world" not in self.sources.model_fields_set:
            raise ValueError("source sources.world: missing, and gates.world asks what it generates")
        for name in ("arms", "seeds"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} holds an entry twice")
        if self.report.baseline not in self.arms:
            raise ValueError(f"report.baseline {self.report.baseline!r} is not one of the arms {self.arms}")
        return self


def check_no_password(raw: Any, where: str) -> None:
    """Raises ConfigError where an address in a params file's content, which DVC will write down, has a password."""
    if isinstance(raw, str) and without_credentials(raw) != raw:
        raise ConfigError(
            f"{where}: DVC copies what stands here into dvc.lock; take user and password out of the address, and put "
            "them into ~/.netrc or the file that NETRC names: `machine HOST login USER password PASSWORD`"
        )
    entries = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for name, value in entries:
        check_no_password(value, f"{where}.{name}" if ":" in where else f"{where}: {name}")


@dataclass(frozen=True)
class Values:
    """Values of a params file as a stage was started with them: what is to stand there when DVC records it."""

    path: Path
    values: dict[str, Any]
    """By dotted key."""

    @classmethod
    def of(cls, path: Path, raw: dict[str, Any], keys: Iterable[str]) -> Values:
        """`raw`: the file's content, as `read_params` gives it."""
        return cls(path, {key: _value(raw, key) for key in keys})

    def changed(self) -> list[str]:
        """The keys that hold another value in the file now."""
        try:
            raw = read_params(self.path)
        except ConfigError as error:
            return [str(error)]
        return [f"{self.path}: {key}" for key, value in self.values.items() if _value(raw, key) != value]


def _value(raw: Any, key: str) -> Any:
    for name in key.split("."):
        raw = raw.get(name) if isinstance(raw, dict) else None
    return raw


def load_params(path: Path) -> Params:
    """Reads and checks a params file.

    Raises ConfigError, one line a fault, each with the key's path, what was found and what was expected.
    """
    return check_params(read_params(path), str(path))


def read_params(path: Path) -> dict[str, Any]:
    """A params file's content, unchecked. Raises ConfigError where it is none."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            f"{path}: no such file; run in the project's folder or name one with --params"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: expected sections such as `base:` and `train:`, found {type(raw).__name__}"
        )
    return raw


def check_params(raw: dict[str, Any], where: str) -> Params:
    """Raises ConfigError as `load_params`; `where` names the file in it."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(sentence(where, fault) for fault in error.errors())) from None


def sentence(where: str, fault: Any) -> str:
    # pydantic puts the union's tag into the location; a person looks for the key in the file
    path = [
        str(p)
        for p in fault["loc"]
        if p not in ("from_scratch", "checkpoint", "Mapping", "str") and "[" not in str(p)
    ]
    key = ".".join(path)
    at = f"{where}: {key}" if key else where
    if fault["type"] == "extra_forbidden":
        return f"{at}: unknown key; docs/parameters.md lists those that there are"
    if fault["type"] == "missing":
        return f"{at}: missing; give it a value"
    message = fault["msg"].removeprefix("Value error, ")
    value = fault["input"]
    shown = "" if isinstance(value, dict) or message.startswith(("arm ", "source ")) else f", found {value!r}"
    return f"{at}: {message[0].lower()}{message[1:]}{shown}"
