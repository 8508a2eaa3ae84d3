"""Before a run and its start: a params file from a preset, checks of the machine and the student, then the flow.

One function a command: `use` (`oxa use`), `check` (`oxa doctor`), `run` (`oxa run`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from flows import bridge, lockfile, placement, probe, servers, surroundings, workspace
from oxa import cli
from oxa.config.base import Checkpoint
from oxa.config.operations import Placement
from oxa.config.params import Params, check_no_password, check_params, read_params
from oxa.errors import ConfigError, DataError, UserError, tell
from oxa.runtime import files
from oxa.tracking import connection

BASE = Path("models/base")
LARGE = 4 * 2**30  # bytes of weights with which a few answers take minutes on a CPU
LIBRARIES = ("torch", "transformers", "trl", "datasets", "math-verify", "dvc", "prefect", "mlflow")


def use(preset: Path, assignments: Sequence[str], params_path: Path) -> None:
    """Checks a preset, with values set by `KEY=VALUE`, and writes it as the params file, comments and all.

    Raises ConfigError, and leaves the file as it was, where the preset or a value is wrong.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    cli.load(preset)
    yaml = YAML()  # keeps the preset's comments
    yaml.width = 120
    raw = yaml.load(preset.read_text(encoding="utf-8"))
    for assignment in assignments:
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
            raise ConfigError(f"--set {assignment}: {key} does not lead through sections of {preset}")
        try:  # plain values, so that they are written in block style
            section[last] = YAML(typ="safe").load(text)
        except YAMLError as error:
            problem = " ".join(str(error).split())
            raise ConfigError(
                f"--set {assignment}: not valid YAML, a quoted text may help: {problem}"
            ) from None
    check_params(
        json.loads(json.dumps(raw, default=str)),
        f"{preset} with {' '.join(assignments) or 'no changes'}",
    )
    with files.atomic(params_path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            yaml.dump(raw, file)
        cli.load(temporary)


def check(params_path: Path, model: str | None = None, *, ask_node: bool = False) -> None:
    """Prints a line on each; raises ConfigError or DataError where something is wrong.

    `model`: folder or hub id of the student; by default models/base, or what `base` names where that is not its copy.
    `ask_node`: whether the scheduler that places stages is to send a probe to a node.
    """
    check_no_password(read_params(params_path), str(params_path))
    params = cli.load(params_path)
    print(f"params    {params_path}: fine; arms {', '.join(params.arms)}; seeds {params.seeds}")
    exams = ", ".join(f"gates.{name}" for name in params.gates)
    print(f"gates     {exams or 'none: params has no section gates, so there is no such stage'}")
    print("libraries " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES))
    address = connection.shown(connection.uri())
    print(f"tracking  {address if params.tracking.enabled else 'nobody: tracking.enabled is false'}")
    around = [*surroundings.faults(), *filter(None, [surroundings.prefect_fault()])]
    if ask_node:
        around += _ask_node(params.flow.placement)
    for fault in around:
        print(f"around    {fault}")
    around += _check_sources(params)
    from oxa.model import loading

    print(f"device    {loading.default_device()}")
    samplers = {"sample.model": params.sample.model}
    if params.pass_rate.splits:
        samplers["pass_rate.model"] = params.pass_rate.model
    for key, sampler in samplers.items():
        if sampler is not None:
            _check_sampler(sampler, key, params)
    base = params.base if isinstance(params.base, Checkpoint) else None
    student: str | Path | None = model or _student(base)
    if student is None:
        print("student   not made yet (`dvc repro base` makes it)")
        _refuse(around)
        return
    check_student(student, params, base if base and student == base.model else None)
    print(f"student   {student}: fine")
    if params.sample.model is None and params.sample.warm_up is None and params.verify.require_think:
        _advise_warm_up(student, params)
    _refuse(around)


def _check_sources(params: Params) -> list[str]:
    """Prints what is wrong with the sources that lie here, as far as their first rows tell, and returns it."""
    from oxa.data import mappings, sources

    named, asked_later, faults = mappings.named(params), list[str](), list[str]()
    for key, source, purpose in named:
        try:
            if not sources.check_first_row(source, params.sources, purpose):
                asked_later.append(source.source)
        except UserError as error:
            faults.append(f"{key}: {error}")
    for fault in faults:
        print(f"sources   {fault}")
    num = len(named) - len(faults) - len(asked_later)
    later = f"; read from the hub, later: {', '.join(dict.fromkeys(asked_later))}" if asked_later else ""
    print(f"sources   the first rows of {num} of {len(named)} are fine{later}")
    return faults


def _student(base: Checkpoint | None) -> str | Path | None:
    """models/base, where that was made of what `base` names now; else what it names, None where it is pretrained."""
    if base is None:
        return BASE if BASE.exists() else None
    stage = (lockfile.read() or {}).get("base", {})
    made_of = stage.get("params", {}).get("params.yaml", {}).get("base", {}).get("model")
    return BASE if BASE.exists() and made_of == base.model else base.model


def _ask_node(settings: Placement) -> list[str]:
    if not placement.is_elsewhere(settings):
        raise ConfigError(
            f"--placement: stages run on this machine; flow.placement.by or {placement.VARIABLE} says so"
        )
    answer, faults = probe.ask(settings)
    print(f"node      {answer}")
    return probe.database_faults() + faults


def _advise_warm_up(student: str | Path, params: Params) -> None:
    """Asks the base, which is to sample, a few questions: a line where it does not answer in the form that is read."""
    from oxa.model import loading
    from oxa.stages import warm_up

    if not Path(student).is_dir():
        print(
            f"sampler   {student}: asked whether it writes <think> once it is here (`oxa run base`, then this again)"
        )
        return
    size = sum(path.stat().st_size for path in Path(student).glob("*.safetensors"))
    if loading.default_device().type == "cpu" and size > LARGE:
        print(f"sampler   {student}: not asked whether it writes <think>: too large for this machine's CPU")
        return
    num = warm_up.num_in_form(Path(student), params.prompt)
    asked = f"{num} of {len(warm_up.QUESTIONS)} test answers hold <think> or </think>"
    if 2 * num >= len(warm_up.QUESTIONS):
        print(f"sampler   {student}: fine; {asked}")
    else:
        print(
            f"sampler   {student}: {asked}: its self-samples would be unparsable, and nothing could be suppressed; "
            "set sample.warm_up (`{}` takes its defaults), or sample.model to a sibling that does"
        )


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ConfigError(f"no run would end well here for the reason{'s' * (len(faults) > 1)} above")


def _check_sampler(model: str, key: str, params: Params) -> None:
    from oxa.model import preflight

    for fault in (faults := preflight.check_checkpoint(model, params.prompt, is_student=False)):
        print(f"sampler   {model}: {fault}")
    if faults:
        raise DataError(f"{model}: cannot sample ({key}) for the reason{'s' * (len(faults) > 1)} above")
    print(f"sampler   {model}: fine")


def check_student(model: str | Path, params: Params, base: Checkpoint | None = None) -> None:
    """Prints what is wrong with a checkpoint, and raises DataError where something is.

    `base`: the section that takes it over, with its own revision and chat template.
    """
    from oxa.model import preflight

    template = preflight.chosen_template(base.chat_template, Path(params.sources.folder)) if base else None
    faults = preflight.check_checkpoint(
        model, params.prompt, base.revision if base else None, template=template
    )
    for fault in faults:
        print(f"student   {model}: {fault}")
    if faults:
        raise DataError(f"{model}: not usable as a student for the reason{'s' * (len(faults) > 1)} above")


def run(
    *,
    targets: list[str],
    max_workers: int | None,
    accelerators: int | None,
    force: bool,
    register: bool,
    record: bool = False,
) -> int:
    """Runs the flow to its end; returns the exit code. Raises UserError before anything has started.

    Where DVC finds all unchanged, Prefect and its server are not even started, unless `record` asks for that.
    """
    for name, value in (("--max-workers", max_workers), ("--accelerators", accelerators)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: expected 1 or more")
    path = Path("params.yaml")
    check_no_password(read_params(path), str(path))
    cli.load(path)
    if not Path("dvc.yaml").exists():
        raise ConfigError("dvc.yaml: no such file; run in the project's folder")
    for fault in surroundings.faults():
        raise ConfigError(fault)
    # the person at the terminal gets a line a stage; Prefect's log lines go to its interface
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # nor do its client's own troubles belong here, 10 kB a line of events that it could not send
    os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")
    with ExitStack() as stack:
        stack.enter_context(workspace.held("`oxa run`"))
        if mended := lockfile.mend():
            print(mended)
        if not (force or record):
            nodes = bridge.plan(targets)
            if not any(node.changed for node in nodes):
                print(
                    f"{len(nodes)} stages: 0 run, {len(nodes)} cached; nothing has changed, so Prefect was not started "
                    "(--record has it keep such a run)"
                )
                return 0
        stack.enter_context(servers.prefect_api())
        from flows.pipeline import pipeline

        state = pipeline(
            targets=targets or None,
            max_workers=max_workers,
            accelerators=accelerators,
            force=force,
            register_models=register,
            return_state=True,
        )
        if state.is_completed():
            return 0
        error = state.result(raise_on_failure=False)
        if isinstance(error, Exception):
            raise error  # a fault of ours, which wants its traceback, or of a server that is gone
    tell(str(state.message))
    return 1
