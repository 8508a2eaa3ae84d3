"""The stages' command line: one subcommand a stage of dvc.yaml. flows/cli.py adds what a person needs round them.

    oxa STAGE --params params.yaml --<input> PATH … --<output> PATH …

Which sections and paths a stage takes is said in oxa/runtime/stages.py. Stages are imported when they run. Exit codes:
0 done, 1 a fault of ours (with its traceback), 2 a user's mistake (one sentence), 75 something out of reach, such as a
server or the hub (one sentence; `oxa run` tries again).
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oxa.config.operations import Placement, Tracking
from oxa.config.params import Params, Values, check_no_password, check_params, read_params
from oxa.config.section import Section
from oxa.config.verify import Verify
from oxa.errors import ConfigError, UserError, is_out_of_reach, tell
from oxa.runtime import child, files, guard, launch, server
from oxa.runtime.journal import Journal
from oxa.runtime.modules import PACKAGE
from oxa.runtime.stages import STAGES, Stage
from oxa.tracking.record import recorded

THEIRS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)  # what a disk or a path may be at fault for, and the user can mend


Place = Callable[[str, Sequence[str], Placement], int | None]


def main(
    argv: Sequence[str] | None = None,
    add: Callable[[Any], None] = lambda commands: None,
    place: Place = lambda stage, words, settings: None,
) -> int:
    """Runs one command, a stage or one that `add` has added to argparse's subparsers; returns the exit code.

    `place` is asked first of a stage: it runs it elsewhere and returns its exit code, or None where it runs here.
    """
    _set_environment()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser(add).parse_args(words)
        arguments.words, arguments.place = words, place
        return int(arguments.command(arguments) or 0)
    except UserError as error:
        tell(str(error))
        return os.EX_TEMPFAIL if is_out_of_reach(error) else 2
    except KeyboardInterrupt:
        tell("interrupted; run it again, and it goes on where it was")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `oxa summary | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in files.MISPLACED and error.filename:
            tell(files.misplaced(Path(error.filename)))
            return 2
        if error.errno not in THEIRS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        tell(f"{where}{error.strerror}; nothing was kept")
        return 2


def _set_environment() -> None:
    """No telemetry, nothing in the home, no progress bars in log files; all can be set otherwise from outside."""
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    server.spare_loopback()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("MPLCONFIGDIR", str((guard.WORK / "matplotlib").resolve()))
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _parser(add: Callable[[Any], None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oxa",
        description="Offline eXploration-Aware fine-tuning. `dvc repro` runs all stages in order; see README.md.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, stage in STAGES.items():
        command = subparsers.add_parser(
            name, help=stage.help, description=f"{stage.help} (a stage of dvc.yaml)"
        )
        command.set_defaults(command=_run_stage, stage=name)
        add_params(command)
        if name == "verify":
            command.add_argument(
                "--table",
                type=Path,
                metavar="FILE",
                action=_Agreement,
                help="only print how the verdicts on answers agree with what FILE expects of them",
            )
        for item in stage.items:
            command.add_argument(f"--{item}", required=True, help="which of the stage's runs this is")
        for option in stage.inputs:
            _add_path(command, option, "read")
        for option in stage.written:
            _add_path(command, option, "written")
    add(subparsers)
    return parser


class _Agreement(argparse.Action):
    """Prints the table and ends, whatever else the stage would need."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, _: Any = None) -> None:
        from oxa.grading import agreement

        print(agreement.table(values, Verify()))
        parser.exit()


def add_params(command: argparse.ArgumentParser) -> None:
    """The option that every command with parameters has."""
    command.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")


def _add_path(command: argparse.ArgumentParser, option: str, verb: str) -> None:
    command.add_argument(
        f"--{option.replace('_', '-')}", required=True, type=Path, metavar="PATH", help=f"{verb} by the stage"
    )


def load(path: Path) -> Params:
    """Reads and checks a params file, the mappings of its sources included: before hours of work, not after them.

    Raises ConfigError.
    """
    return _checked(path, read_params(path))


def _checked(path: Path, raw: dict[str, Any]) -> Params:
    from oxa.data import mappings

    params = check_params(raw, str(path))
    mappings.check_all(params, path)
    return params


def _run_stage(arguments: argparse.Namespace) -> int:
    stage = STAGES[arguments.stage]
    if fault := child.socket_fault():
        raise ConfigError(fault)
    raw = read_params(arguments.params)  # once: what is read is what the stage has worked with
    if "DVC_STAGE" in os.environ:
        check_no_password(raw, str(arguments.params))
    params = _checked(arguments.params, raw)
    code: int | None = arguments.place(arguments.stage, arguments.words, params.flow.placement)
    if code is not None:
        return code
    if stage.launched and os.environ.get("OXA_LAUNCH"):
        launch.become(arguments.words)
    options = launch.begun(launch.filled(vars(arguments)), params.train.after)
    sections = sections_of(params, stage, options)
    names = [list(_section(params, key)) for key in stage.names]
    inputs = {option: options[option] for option in stage.inputs}
    outputs = {option: options[option] for option in stage.written}
    extra = {"seed": _seed(options["seed"])} if "seed" in stage.items else {}
    items = {item: options[item] for item in stage.items} | {
        name: str(value) for name, value in extra.items()
    }
    name = "@".join([arguments.stage, *(["-".join(items.values())] if items else [])])
    watched = {name: PACKAGE / name for name in stage.assets}
    untold = {str(path) for path in [*watched.values(), *(inputs[option] for option in stage.gathers)]}
    if "sources" in stage.sections:
        watched["sources.folder"] = Path(params.sources.folder)
    plain = [_plain(section) for section in sections]
    keys = [key.format(**options) for key in stage.sections]
    values = Values.of(arguments.params, raw, [*keys, *stage.names])
    first = guard.is_first_process()
    with (
        guard.stage(
            name,
            module=stage.module,
            inputs=inputs | watched,
            outputs=outputs,
            config=[*plain, *names, extra],
            changed=values.changed,
        ) as run,
        recorded(
            params.tracking if first else Tracking(enabled=False),
            stage=os.environ.get("DVC_STAGE", name),  # dvc.yaml's name, where the two differ
            kind=arguments.stage,
            items=items,
            key=run.key,
            params=dict(zip(keys, plain, strict=True)),
            inputs={path: md5 for path, md5 in run.inputs.items() if path not in untold},
        ) as record,
    ):
        log = Journal(run.scratch / "metrics.jsonl", also=record.log)  # the first process alone logs
        written = {option: run.outputs[option] for option in stage.outputs}
        metrics = importlib.import_module(stage.module).run(
            *sections, *names, **inputs, **written, **extra, scratch=run.scratch, log=log
        )
        if not first:
            return 0
        if stage.metrics:
            files.write_json(run.outputs["metrics"], metrics)
        if stage.journal:
            (run.scratch / "metrics.jsonl").touch()  # a checkpoint that is taken over logs nothing
            shutil.copyfile(run.scratch / "metrics.jsonl", run.outputs["journal"])
        for option in stage.shown + stage.records:
            record.artifact(run.outputs[option])
        made = run.hash_outputs()
        run.keep()  # before the record says that all is well
        record.finish(metrics, made)
    if "DVC_STAGE" in os.environ:
        # DVC reads next what the guard has looked at last; to take torch and TRL apart takes seconds, open to edits
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(os.EX_OK)
    return 0


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--seed {text}: expected a whole number") from None


def sections_of(params: Params, stage: Stage, items: Mapping[str, Any]) -> list[Any]:
    """What the stage is handed of the parameters; `items`: values of its options, of which keys may hold names."""
    return [_section(params, key.format(**items)) for key in stage.sections]


def _section(params: Params, key: str) -> Any:
    value: Any = params
    for name in key.split("."):
        try:
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        except KeyError:
            raise ConfigError(f"params.yaml: {key}: missing; known here: {', '.join(value)}") from None
    return value


def _plain(section: Any) -> Any:
    return section.model_dump(mode="json") if isinstance(section, Section) else section


if __name__ == "__main__":
    sys.exit(main())
