"""`oxa`: one subcommand a stage, and what a person needs round them.

    oxa STAGE --params params.yaml --<input> PATH … --<output> PATH …

A stage's line here says which sections of params.yaml it is handed, which paths it reads and which it writes;
dvc.yaml alone knows where those lie. Stages are imported when they run. Exit codes: 0 done, 1 a fault of ours (with
its traceback), 2 a user's mistake (one sentence).
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oxa import config, guard, records
from oxa.errors import ConfigError, DataError, UserError
from oxa.journal import Journal


@dataclass(frozen=True)
class Stage:
    """How the command line runs one stage."""

    help: str
    module: str
    sections: tuple[str, ...]
    """Keys of params.yaml, handed over in this order; `{arm}` stands for the option of that name."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("output",)
    items: tuple[str, ...] = ()
    """Options that tell the stage's runs apart; `seed` is handed to the stage, too."""
    metrics: bool = True
    """Whether what the stage returns is written to --metrics."""
    journal: bool = False
    """Whether what the stage logs is kept as --journal."""

    @property
    def written(self) -> tuple[str, ...]:
        """Options of all that is written: the stage's own outputs, then what the command line adds."""
        return self.outputs + ("metrics",) * self.metrics + ("journal",) * self.journal


STAGES = {
    "base": Stage(
        "make the student: pretrain a tiny one, or take over a checkpoint",
        "oxa.base",
        ("base", "prompt", "world", "sources"),
        journal=True,
    ),
    "ingest": Stage(
        "read teacher data and benchmarks, clean and decontaminate them",
        "oxa.ingest",
        ("ingest", "sources", "world", "verify"),
        outputs=("problems", "responses", "rejects", "contamination"),
    ),
    "sample": Stage(
        "let the student answer the training problems",
        "oxa.sample",
        ("sample", "generate", "prompt"),
        inputs=("model", "problems"),
    ),
    "verify": Stage(
        "grade responses against the gold answers",
        "oxa.verify",
        ("verify",),
        inputs=("problems", "responses"),
        items=("origin",),
    ),
    "score": Stage(
        "perplexity of responses under the base",
        "oxa.score",
        ("score", "prompt"),
        inputs=("model", "problems", "responses", "verdicts"),
        items=("origin",),
    ),
    "selection": Stage(
        "choose an arm's training set",
        "oxa.selection",
        ("selection.shared", "selection.arms.{arm}", "prompt"),
        inputs=(
            "problems",
            "teacher",
            "teacher_verdicts",
            "teacher_scores",
            "self_responses",
            "self_verdicts",
            "self_scores",
        ),
        items=("arm",),
    ),
    "train": Stage(
        "fine-tune the base on an arm's training set",
        "oxa.train",
        ("train.shared", "train.arms.{arm}"),
        inputs=("model", "data"),
        items=("arm", "seed"),
        journal=True,
    ),
    "evaluate": Stage(
        "sample a checkpoint on every benchmark and grade it",
        "oxa.evaluate",
        ("evaluate", "generate", "prompt", "verify"),
        inputs=("model", "problems"),
        items=("checkpoint",),
    ),
    "report": Stage(
        "summary, comparison table and plots",
        "oxa.report",
        ("report", "arms", "seeds"),
        inputs=("metrics", "scores", "train_sets", "generations"),
        outputs=("summary", "output"),
        metrics=False,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    _set_environment()
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments) or 0)
    except UserError as error:
        print(f"oxa: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `oxa summary | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"oxa: {where}{error.strerror}; nothing was kept", file=sys.stderr)
        return 2


def _set_environment() -> None:
    """No telemetry, and no progress bars in log files; all of it can be set otherwise from outside."""
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oxa",
        description="Offline eXploration-Aware fine-tuning. `dvc repro` runs all stages in order; see README.md.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, stage in STAGES.items():
        command = commands.add_parser(
            name, help=stage.help, description=f"{stage.help} (a stage of dvc.yaml)"
        )
        command.set_defaults(command=_run_stage, stage=name)
        _add_params(command)
        for item in stage.items:
            kind: type = int if item == "seed" else str
            command.add_argument(
                f"--{item}", required=True, type=kind, help="which of the stage's runs this is"
            )
        for option in stage.inputs:
            _add_path(command, option, "read")
        for option in stage.written:
            _add_path(command, option, "written")
    _add_doctor(commands)
    _add_use(commands)
    summary = commands.add_parser(
        "summary",
        help="print the comparison table of the last report",
        description="Prints the arms side by side, with intervals and paired differences, from the report's numbers.",
    )
    summary.add_argument("--summary", type=Path, default=Path("metrics/summary.json"))
    summary.set_defaults(command=_summary)
    return parser


def _add_params(command: argparse.ArgumentParser) -> None:
    command.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")


def _add_path(command: argparse.ArgumentParser, option: str, verb: str) -> None:
    command.add_argument(
        f"--{option.replace('_', '-')}", required=True, type=Path, metavar="PATH", help=f"{verb} by the stage"
    )


def _run_stage(arguments: argparse.Namespace) -> None:
    stage = STAGES[arguments.stage]
    params = config.load(arguments.params)
    sections = [_section(params, key.format(**vars(arguments))) for key in stage.sections]
    inputs = {option: getattr(arguments, option) for option in stage.inputs}
    outputs = {option: getattr(arguments, option) for option in stage.written}
    extra = {"seed": arguments.seed} if "seed" in stage.items else {}
    items = [str(getattr(arguments, item)) for item in stage.items]
    watched = {"sources.folder": Path(params.sources.folder)} if "sources" in stage.sections else {}
    with guard.stage(
        "@".join([arguments.stage, *(["-".join(items)] if items else [])]),
        module=stage.module,
        inputs=inputs | watched,
        outputs=outputs,
        config=[_plain(section) for section in sections] + [extra],
    ) as run:
        log = Journal(run.scratch / "metrics.jsonl")
        written = {option: run.outputs[option] for option in stage.outputs}
        metrics = importlib.import_module(stage.module).run(
            *sections, **inputs, **written, **extra, scratch=run.scratch, log=log
        )
        if stage.metrics:
            records.write_json(run.outputs["metrics"], metrics)
        if stage.journal:
            shutil.copyfile(run.scratch / "metrics.jsonl", run.outputs["journal"])


def _section(params: config.Params, key: str) -> Any:
    value: Any = params
    for name in key.split("."):
        try:
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        except KeyError:
            raise ConfigError(f"params.yaml: {key}: missing; known here: {', '.join(value)}") from None
    return value


def _plain(section: Any) -> Any:
    return section.model_dump(mode="json") if isinstance(section, config.Section) else section


def _summary(arguments: argparse.Namespace) -> None:
    from oxa import report

    print(report.table(records.read_json(arguments.summary)))


def _add_use(commands: Any) -> None:
    use = commands.add_parser(
        "use",
        help="make a preset the project's params.yaml",
        description="Checks a params file and writes it to params.yaml; values can be set on the way.",
    )
    use.add_argument("preset", type=Path, help="for example presets/gsm8k.yaml")
    use.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for example sources.folder=../my-data",
    )
    use.add_argument("--params", type=Path, default=Path("params.yaml"), help="file to write")
    use.set_defaults(command=_use)


def _use(arguments: argparse.Namespace) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    config.load(arguments.preset)
    yaml = YAML()  # keeps the preset's comments
    yaml.width = 120
    raw = yaml.load(arguments.preset.read_text(encoding="utf-8"))
    for assignment in arguments.set:
        key, sign, text = assignment.partition("=")
        if not sign:
            raise ConfigError(
                f"--set {assignment}: expected KEY=VALUE, for example sources.folder=../my-data"
            )
        *parents, last = key.split(".")
        section = raw
        for name in parents:
            section = section.setdefault(name, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise ConfigError(
                f"--set {assignment}: {key} does not lead through sections of {arguments.preset}"
            )
        try:  # plain values, so that they are written in block style
            section[last] = YAML(typ="safe").load(text)
        except YAMLError as error:
            problem = " ".join(str(error).split())
            raise ConfigError(
                f"--set {assignment}: not valid YAML, a quoted text may help: {problem}"
            ) from None
    config.check(
        json.loads(json.dumps(raw, default=str)),
        f"{arguments.preset} with {' '.join(arguments.set) or 'no changes'}",
    )
    with records.atomic(arguments.params) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            yaml.dump(raw, file)
        config.load(temporary)
    print(f"{arguments.params} now holds {arguments.preset}" + "".join(f", {text}" for text in arguments.set))


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check the parameters, this machine and the student before a long run",
        description="Says in a sentence each what would go wrong: parameters, libraries, device, chat template.",
    )
    _add_params(doctor)
    doctor.add_argument(
        "--model",
        help="checkpoint folder or hub id to check; default: models/base where it is, else base.model",
    )
    doctor.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from importlib.metadata import version

    params = config.load(arguments.params)
    print(f"params    {arguments.params}: fine; arms {', '.join(params.arms)}; seeds {params.seeds}")
    names = ("torch", "transformers", "trl", "datasets", "math-verify", "dvc")
    print("libraries " + ", ".join(f"{name} {version(name)}" for name in names))
    from oxa import base, lm

    print(f"device    {lm.default_device()}")
    model = arguments.model or _default_model(params)
    if model is None:
        print("student   not made yet (`dvc repro base` makes it)")
        return 0
    revision = (
        params.base.revision
        if isinstance(params.base, config.Checkpoint) and model == params.base.model
        else None
    )
    faults = base.check_checkpoint(model, params.prompt, revision)
    for fault in faults:
        print(f"student   {model}: {fault}")
    if faults:
        raise DataError(f"{model}: not usable as a student for the reason{'s' * (len(faults) > 1)} above")
    print(f"student   {model}: fine")
    return 0


def _default_model(params: config.Params) -> str | Path | None:
    made = Path("models/base")
    if made.exists():
        return made
    return params.base.model if isinstance(params.base, config.Checkpoint) else None
