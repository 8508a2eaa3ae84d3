"""`oxa`, the console script: the stages (oxa/cli.py), and what a person needs round them, from `run` to `lineage`.

`add` hangs these commands into the command line of the stages. Prefect and MLflow are imported by those that need them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oxa import cli
from oxa.cli import add_params
from oxa.config.base import Checkpoint
from oxa.config.params import Params, check_params, load_params
from oxa.errors import ConfigError, DataError
from oxa.runtime import files, guard
from oxa.tracking import spool


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    return cli.main(argv, add)


def add(commands: Any) -> None:
    """Adds every command of this module to argparse's `commands`."""
    _add_run(commands)
    _add_ui(commands)
    _add_doctor(commands)
    _add_plan(commands)
    _add_world(commands)
    _add_study(commands)
    _add_use(commands)
    summary = commands.add_parser(
        "summary",
        help="print the comparison table of the last report",
        description="Prints the arms side by side, with intervals and paired differences, from the report's numbers.",
    )
    summary.add_argument("--summary", type=Path, default=Path("metrics/summary.json"))
    summary.set_defaults(command=_summary)
    _add_compare(commands)
    _add_regrade(commands)
    _add_track(commands)
    _add_registry(commands)


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run the pipeline's stages in parallel, as a Prefect flow",
        description="Runs what `dvc repro` would run, stages side by side where the graph allows, each a task of a "
        "Prefect flow; after the report it registers the checkpoints (where tracking is on). Finished stages are "
        "found in DVC's cache. Ctrl-C or a kill costs minutes at most: run it again.",
    )
    run.add_argument(
        "targets",
        nargs="*",
        metavar="STAGE",
        help="stages to bring up to date, with all they need; patterns such as 'train@*' are allowed. Default: all",
    )
    run.add_argument(
        "--max-workers", type=int, metavar="N", help="stages at the same time; default: flow.max_workers"
    )
    run.add_argument(
        "--accelerators",
        type=int,
        metavar="N",
        help="of these, stages that load a model; visible GPUs are shared out. Default: flow.accelerators",
    )
    run.add_argument("--force", action="store_true", help="run stages even where nothing has changed")
    run.add_argument("--no-register", action="store_true", help="leave the model registry alone")
    run.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from flows import start

    return start.run(
        targets=arguments.targets,
        max_workers=arguments.max_workers,
        accelerators=arguments.accelerators,
        force=arguments.force,
        register=not arguments.no_register,
    )


def _add_ui(commands: Any) -> None:
    ui = commands.add_parser(
        "ui",
        help="start the Prefect and MLflow servers and print their addresses",
        description="Serves the project's runs on 127.0.0.1 until Ctrl-C; flows started meanwhile show there live.",
    )
    ui.add_argument("--prefect-port", type=int, default=4200, metavar="PORT", help="default: 4200")
    ui.add_argument("--mlflow-port", type=int, default=5000, metavar="PORT", help="default: 5000")
    ui.set_defaults(command=_ui)


def _ui(arguments: argparse.Namespace) -> None:
    from flows import servers

    servers.ui(arguments.prefect_port, arguments.mlflow_port)


def _add_track(commands: Any) -> None:
    track = commands.add_parser(
        "track",
        help="show what MLflow has not been told yet, or tell it",
        description="Every stage's record is written here first and sent to MLflow in the background. This shows what "
        "is still unsent, for example because the server was down.",
    )
    track.add_argument("--replay", action="store_true", help="send it now, and wait until it is there")
    track.set_defaults(command=_track)


def _track(arguments: argparse.Namespace) -> None:
    from oxa.tracking import outbox

    print(outbox.replay() if arguments.replay else outbox.status())


def _add_registry(commands: Any) -> None:
    register = commands.add_parser(
        "register",
        help="put the trained checkpoints into the model registry and let the gate choose",
        description="Registers every arm's checkpoints as versions, by reference with hashes. The best arm becomes "
        "`challenger`, and `champion` if it beats the former one with the certainty that params.yaml asks for.",
    )
    promote = commands.add_parser(
        "promote",
        help="make a version the champion by hand",
        description="Moves the alias `champion` to a registered version, whatever the gate says; the version's tags "
        "keep that it was moved by hand, and when.",
    )
    lineage = commands.add_parser(
        "lineage",
        help="print which data, code and runs a version was made from, or what was made from data",
        description="Follows a version back through its training run and every stage before it to the sources, with "
        "the DVC md5 of each file; or, with --data, the other way: from a file to the versions made from it.",
    )
    model = commands.add_parser(
        "model",
        help="print the checkpoint folder of a version, if it still holds what was registered",
        description="Prints the folder, for example for `vllm serve $(oxa model champion)`. Refuses with the reason "
        "where the files have changed since.",
    )
    for command in (register, promote, lineage, model):
        add_params(command)
    for command in (promote, model):
        command.add_argument("version", metavar="VERSION", help="number or alias (champion, challenger)")
    lineage.add_argument("version", metavar="VERSION", nargs="?", help="number or alias")
    lineage.add_argument(
        "--data", metavar="PATH", help="a path of the pipeline, or a DVC md5 or its beginning"
    )
    register.set_defaults(command=_register)
    promote.set_defaults(command=_promote)
    lineage.set_defaults(command=_lineage)
    model.set_defaults(command=_model)


def _register(arguments: argparse.Namespace) -> None:
    from flows import promote

    outcome = promote.register(load_params(arguments.params), arguments.params)
    print("\n".join(outcome.sentences))


def _promote(arguments: argparse.Namespace) -> None:
    from oxa.tracking import registry

    print(registry.promote(load_params(arguments.params).registry, arguments.version))


def _lineage(arguments: argparse.Namespace) -> None:
    from oxa.tracking import lineage

    settings = load_params(arguments.params).registry
    if (arguments.version is None) == (arguments.data is None):
        raise ConfigError("oxa lineage: name either a VERSION or --data PATH")
    if arguments.data is not None:
        print(lineage.versions_from(settings, arguments.data))
    else:
        print(lineage.of(settings, arguments.version))


def _model(arguments: argparse.Namespace) -> None:
    from oxa.tracking import registry

    print(registry.path_of(load_params(arguments.params).registry, arguments.version))


def _summary(arguments: argparse.Namespace) -> None:
    from oxa.report import markdown

    print(markdown.table(files.read_json(arguments.summary)))


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare the answers of any two checkpoints, arms or generation tables",
        description="Prints both values, the paired difference with its interval and p, and Holm's p over all rows, "
        "for every benchmark. A and B: a checkpoint (base, sft-0, sft-0-rl), an arm with all its seeds (sft, sft-rl), "
        "or a path; @N behind it takes RL step N instead of the last.",
    )
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--folder", type=Path, default=Path("data/generations"), help="default: %(default)s")
    compare.add_argument("--benchmark", metavar="NAME", help="this one only; `pooled` takes all together")
    compare.add_argument("--k", type=int, metavar="K", help="of pass@k; default: the number of samples")
    compare.add_argument("--json", action="store_true", help="print JSON")
    add_params(compare)
    compare.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from oxa.report import pair

    found = pair.run(
        load_params(arguments.params).report,
        arguments.a,
        arguments.b,
        folder=arguments.folder,
        benchmark=arguments.benchmark,
        k=arguments.k,
    )
    print(json.dumps(found, indent=2) if arguments.json else pair.text(found))


def _add_regrade(commands: Any) -> None:
    regrade = commands.add_parser(
        "regrade",
        help="grade stored generations again after a change of the verifier, without sampling",
        description="Makes new verdicts from the stored texts and has DVC take them, wherever nothing but the verifier "
        "has changed since the evaluation; says which verdicts changed.",
    )
    regrade.add_argument(
        "checkpoints", nargs="*", metavar="CHECKPOINT", help="for example sft-0; default: all"
    )
    regrade.add_argument("--dry-run", action="store_true", help="say what would change, and write nothing")
    regrade.set_defaults(command=_regrade)


def _regrade(arguments: argparse.Namespace) -> None:
    from flows import regrade
    from oxa.stages import evaluate

    section = load_params(Path("params.yaml")).verify  # the one that DVC knows
    for said in regrade.run(section, evaluate.summarize, arguments.checkpoints, dry_run=arguments.dry_run):
        print(said, flush=True)


def _add_world(commands: Any) -> None:
    world = commands.add_parser(
        "world", help="look at the small world", description="The generated sums that params.yaml uses."
    ).add_subparsers(required=True, metavar="COMMAND")
    check = world.add_parser(
        "check",
        help="measure the gates that its student must pass before arms mean much",
        description="Measures what the stage `gates` measures, on any student of the small world, and prints the "
        "table: competence in every strategy, habit, headroom, no guessing. Exits with 1 where a gate fails.",
    )
    check.add_argument("--model", type=Path, default=Path("models/base"), help="default: models/base")
    add_params(check)
    check.set_defaults(command=_world_check)


def _world_check(arguments: argparse.Namespace) -> int:
    from oxa.report import gates as verdict
    from oxa.report import markdown
    from oxa.stages import gates

    params = load_params(arguments.params)
    if "world" not in params.gates:
        raise ConfigError(
            f"{arguments.params}: no section gates.world, which says how the student is examined"
        )
    if not arguments.model.is_dir():
        raise DataError(f"{arguments.model}: no such folder; `oxa run base` makes the student")
    _check_student(arguments.model, params)
    folder = guard.WORK / "world-check"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = gates.run(
            params.gates["world"],
            params.sources.world,
            params.generate,
            params.prompt,
            params.verify,
            model=arguments.model,
            output=folder / "gates.parquet",
            scratch=Path(scratch),
            log=lambda step, **values: None,
        )
    print("\n".join(markdown.aligned(verdict.GATE_TITLES, verdict.gate_rows(found))))
    print(
        f"{found['num_problems']:,} held-out problems, temperature {found['temperature']:g}; the responses: {folder}"
    )
    warning = verdict.gates(found)
    print(warning or "All gates passed.")
    return 1 if warning else 0


def _add_study(commands: Any) -> None:
    study = commands.add_parser(
        "study",
        help="run a study's experiments as DVC experiments and write its page's tables",
        description="Runs what the study's file asks for, in every world, each as `dvc exp run` in a clone, and writes "
        "the tables into the page. What is done is not run again; a stage that was killed goes on where it was.",
    )
    study.add_argument("--study", type=Path, default=Path("docs/study.yaml"), help="default: docs/study.yaml")
    study.add_argument("--page", type=Path, default=Path("docs/study.md"), help="default: docs/study.md")
    study.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run these experiments alone")
    study.add_argument(
        "--jobs", type=int, metavar="N", help="worlds side by side; default: all of them, at most one a core"
    )
    what = study.add_mutually_exclusive_group()
    what.add_argument(
        "--tables", action="store_true", help="write the tables from what is there, run nothing"
    )
    what.add_argument(
        "--list", action="store_true", help="print every experiment's command, and whether it is done"
    )
    study.set_defaults(command=_study)


def _study(arguments: argparse.Namespace) -> int:
    from flows import study

    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"--jobs {arguments.jobs}: expected 1 or more")
    if arguments.list:
        for line in study.show(arguments.study):
            print(line)
        return 0
    return study.run(
        arguments.study, arguments.page, only=arguments.only, jobs=arguments.jobs, tables=arguments.tables
    )


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

    load_params(arguments.preset)
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
    check_params(
        json.loads(json.dumps(raw, default=str)),
        f"{arguments.preset} with {' '.join(arguments.set) or 'no changes'}",
    )
    with files.atomic(arguments.params) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            yaml.dump(raw, file)
        load_params(temporary)
    print(f"{arguments.params} now holds {arguments.preset}" + "".join(f", {text}" for text in arguments.set))


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check the parameters, this machine and the student before a long run",
        description="Says in a sentence each what would go wrong: parameters, libraries, device, chat template.",
    )
    add_params(doctor)
    doctor.add_argument(
        "--model",
        help="checkpoint folder or hub id to check; default: models/base where it is, else base.model",
    )
    doctor.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from importlib.metadata import version

    params = load_params(arguments.params)
    print(f"params    {arguments.params}: fine; arms {', '.join(params.arms)}; seeds {params.seeds}")
    names = ("torch", "transformers", "trl", "datasets", "math-verify", "dvc", "prefect", "mlflow")
    print("libraries " + ", ".join(f"{name} {version(name)}" for name in names))
    told = spool.shown(spool.uri()) if params.tracking.enabled else "nobody: tracking.enabled is false"
    print(f"tracking  {told}")
    from oxa.model import loading

    print(f"device    {loading.default_device()}")
    model = arguments.model or _default_model(params)
    if model is None:
        print("student   not made yet (`dvc repro base` makes it)")
        return 0
    revision = (
        params.base.revision if isinstance(params.base, Checkpoint) and model == params.base.model else None
    )
    _check_student(model, params, revision)
    print(f"student   {model}: fine")
    return 0


def _check_student(model: str | Path, params: Params, revision: str | None = None) -> None:
    """Prints what is wrong with a checkpoint, and raises DataError where something is."""
    from oxa.model import preflight

    faults = preflight.check_checkpoint(model, params.prompt, revision)
    for fault in faults:
        print(f"student   {model}: {fault}")
    if faults:
        raise DataError(f"{model}: not usable as a student for the reason{'s' * (len(faults) > 1)} above")


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="forecast what each stage will do: rows, tokens, steps, FLOPs, time, memory, and what does not fit",
        description="Reads a params file and prints what its stages will do on the devices that its section `plan` "
        "names, or on this machine's. Loads no weights, runs no stage, needs no GPU and no network. A forecast that "
        "does not fit names the settings that decide and still exits with 0; scripts read `fits` of --json.",
    )
    add_params(plan)
    plan.add_argument("--json", action="store_true", help="print JSON: bytes, FLOPs, hours")
    plan.add_argument(
        "--data",
        type=Path,
        help="count the tables of this folder, as they lie there; default: no table is read",
    )
    plan.set_defaults(command=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    params = load_params(arguments.params)
    from oxa.forecast import forecast
    from oxa.forecast import text as outlook

    plan = forecast.make(params, arguments.params, arguments.data)
    print(json.dumps(outlook.document(plan), indent=2) if arguments.json else outlook.text(plan))


def _default_model(params: Params) -> str | Path | None:
    made = Path("models/base")
    if made.exists():
        return made
    return params.base.model if isinstance(params.base, Checkpoint) else None
