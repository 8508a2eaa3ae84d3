"""`oxa`, the console script: the stages (oxa/cli.py), and what a person needs round them, from `run` to `export`.

How a command is written, flows/commands.py tells. Prefect, MLflow and torch are imported by those that need them.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from flows import lockfile, placement
from flows.commands import add, command, either, option, subcommand
from oxa import cli
from oxa.cli import add_params
from oxa.config.params import Values, check_params, load_params, read_params
from oxa.errors import ConfigError
from oxa.runtime import files


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    return cli.main(argv, add, placement.send)


VERSION = option("version", metavar="VERSION", help="number or alias (champion, challenger)")


@command(
    "run",
    "run the pipeline's stages in parallel, as a Prefect flow",
    "Runs what `dvc repro` would run, stages side by side where the graph allows, each a task of a Prefect flow; after "
    "the report it registers the checkpoints (where tracking is on). Finished stages are found in DVC's cache. Ctrl-C "
    "or a kill costs minutes at most: run it again.",
    option(
        "targets",
        nargs="*",
        metavar="STAGE",
        help="stages to bring up to date, with all they need; patterns such as 'train@*' are allowed. Default: all",
    ),
    option("--max-workers", type=int, metavar="N", help="stages at the same time; default: flow.max_workers"),
    option(
        "--accelerators",
        type=int,
        metavar="N",
        help="of these, stages that load a model; visible GPUs are shared out. Default: flow.accelerators",
    ),
    option("--force", action="store_true", help="run stages even where nothing has changed"),
    option("--record", action="store_true", help="have Prefect keep the run even where nothing has changed"),
    option("--no-register", action="store_true", help="leave the model registry alone"),
)
def run(arguments: Namespace) -> int:
    from flows import start

    return start.run(
        targets=arguments.targets,
        max_workers=arguments.max_workers,
        accelerators=arguments.accelerators,
        force=arguments.force,
        register=not arguments.no_register,
        record=arguments.record,
    )


@command(
    "ui",
    "start the Prefect and MLflow servers and print their addresses",
    "Serves the project's runs on 127.0.0.1 until Ctrl-C; flows started meanwhile show there live.",
    option("--prefect-port", type=int, default=4200, metavar="PORT", help="default: 4200"),
    option("--mlflow-port", type=int, default=5000, metavar="PORT", help="default: 5000"),
)
def ui(arguments: Namespace) -> None:
    from flows import servers

    servers.ui(arguments.prefect_port, arguments.mlflow_port)


@command(
    "doctor",
    "check the parameters, this machine and the student before a long run",
    "Says in a sentence each what would go wrong: parameters, libraries, device, chat template.",
    add_params,
    option(
        "--model",
        help="checkpoint folder or hub id to check; default: models/base where it is, else base.model",
    ),
    option(
        "--placement",
        action="store_true",
        help="send a probe to a node of the cluster that stages are placed on",
    ),
)
def doctor(arguments: Namespace) -> None:
    from flows import start

    lockfile.read()
    start.check(arguments.params, arguments.model, ask_node=arguments.placement)


@command(
    "plan",
    "forecast what each stage will do: rows, tokens, steps, FLOPs, time, memory, and what does not fit",
    "Reads a params file and prints what its stages will do on the devices that its section `plan` names, or on this "
    "machine's. Loads no weights, runs no stage, needs no GPU and no network. A forecast that does not fit names the "
    "settings that decide and still exits with 0; scripts read `fits` of --json.",
    add_params,
    option("--json", action="store_true", help="print JSON: bytes, FLOPs, hours"),
    option(
        "--data",
        type=Path,
        help="count the tables of this folder, as they lie there; default: no table is read",
    ),
)
def plan(arguments: Namespace) -> None:
    lockfile.read()  # of which it would say that nothing is done
    params = load_params(arguments.params)
    from oxa.forecast import forecast, text

    outlook = forecast.make(params, arguments.params, arguments.data)
    print(json.dumps(text.document(outlook), indent=2) if arguments.json else text.text(outlook))


@command(
    "world",
    "look at the small world",
    "The generated sums that params.yaml uses.",
    subcommand(
        "check",
        option("--model", type=Path, default=Path("models/base"), help="default: models/base"),
        add_params,
        help="measure the gates that its student must pass before arms mean much",
        description="Measures the gates on any student of the small world and prints the table: competence in every "
        "strategy, habit, headroom, no guessing, and room for the arms, for which plain SFT is trained and goes on by "
        "RL (minutes). Exits with 1 where a gate fails.",
    ),
)
def world_check(arguments: Namespace) -> int:
    from flows import world

    return 0 if world.check(arguments.params, arguments.model) else 1


@command(
    "study",
    "run a study's experiments as DVC experiments and write its page's tables",
    "Runs what the study's file asks for, in every world, each as `dvc exp run` in a clone, and writes the tables into "
    "the page. What is done is not run again; a stage that was killed goes on where it was.",
    option("--study", type=Path, default=Path("docs/study.yaml"), help="default: docs/study.yaml"),
    option("--page", type=Path, default=Path("docs/study.md"), help="default: docs/study.md"),
    option("--only", nargs="+", default=[], metavar="NAME", help="run these experiments alone"),
    option(
        "--jobs", type=int, metavar="N", help="worlds side by side; default: all of them, at most one a core"
    ),
    either(
        option("--tables", action="store_true", help="write the tables from what is there, run nothing"),
        option(
            "--list", action="store_true", help="print every experiment's command, and whether it is done"
        ),
    ),
)
def study(arguments: Namespace) -> int:
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


@command(
    "use",
    "make a preset the project's params.yaml",
    "Checks a params file and writes it to params.yaml; values can be set on the way.",
    option("preset", type=Path, help="for example presets/gsm8k.yaml"),
    option(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for example sources.folder=../my-data",
    ),
    option("--params", type=Path, default=Path("params.yaml"), help="file to write"),
)
def use(arguments: Namespace) -> None:
    from flows import start

    start.use(arguments.preset, arguments.set, arguments.params)
    print(f"{arguments.params} now holds {arguments.preset}" + "".join(f", {text}" for text in arguments.set))


@command(
    "summary",
    "print the comparison table of the last report",
    "Prints the arms side by side, with intervals and paired differences, from the report's numbers.",
    option("--summary", type=Path, default=Path("metrics/summary.json")),
)
def summary(arguments: Namespace) -> None:
    lockfile.read()  # or nobody knows whose numbers these are
    from oxa.report import markdown

    print(markdown.table(files.read_json(arguments.summary)))


@command(
    "compare",
    "compare the answers of any two checkpoints, arms or generation tables",
    "Prints both values, the paired difference with its interval and p, and Holm's p over all rows, for every "
    "benchmark. A and B: a checkpoint (base, sft-0, sft-0-rl), an arm with all its seeds (sft, sft-rl), or a path; @N "
    "behind it takes RL step N instead of the last.",
    option("a", metavar="A"),
    option("b", metavar="B"),
    option("--folder", type=Path, default=Path("data/generations"), help="default: %(default)s"),
    option("--entropies", type=Path, default=Path("data/entropies"), help="default: %(default)s"),
    option("--benchmark", metavar="NAME", help="this one only; `pooled` takes all together"),
    option("--k", type=int, metavar="K", help="of pass@k; default: the number of samples"),
    option("--json", action="store_true", help="print JSON"),
    add_params,
)
def compare(arguments: Namespace) -> None:
    lockfile.read()  # or nobody knows whose numbers these are
    from oxa.comparison import pair
    from oxa.report import markdown

    comparison = pair.run(
        load_params(arguments.params).report,
        arguments.a,
        arguments.b,
        folder=arguments.folder,
        entropies=arguments.entropies,
        benchmark=arguments.benchmark,
        k=arguments.k,
    )
    print(json.dumps(comparison, indent=2) if arguments.json else markdown.pair(comparison))


@command(
    "regrade",
    "grade stored generations again after a change of the verifier, without sampling",
    "Makes new verdicts from the stored texts and has DVC take them, wherever nothing but the verifier has changed "
    "since the evaluation; says which verdicts changed.",
    option("checkpoints", nargs="*", metavar="CHECKPOINT", help="for example sft-0; default: all"),
    option("--dry-run", action="store_true", help="say what would change, and write nothing"),
)
def regrade(arguments: Namespace) -> None:
    from flows import recommit
    from oxa.stages import evaluate

    path = Path("params.yaml")  # the one that DVC knows
    raw = read_params(path)
    section = check_params(raw, str(path)).verify
    for sentence in recommit.run(
        section,
        evaluate.summarize,
        arguments.checkpoints,
        changed=Values.of(path, raw, ["verify"]).changed,
        dry_run=arguments.dry_run,
    ):
        print(sentence, flush=True)


@command(
    "track",
    "show what MLflow has not been told yet, or tell it",
    "Every stage's record is written here first and sent to MLflow in the background. This shows what is still unsent, "
    "for example because the server was down.",
    option("--replay", action="store_true", help="send it now, and wait until it is there"),
)
def track(arguments: Namespace) -> None:
    from oxa.tracking import outbox

    print(outbox.replay() if arguments.replay else outbox.status())


@command(
    "register",
    "put the trained checkpoints into the model registry and let the gate choose",
    "Registers every arm's checkpoints as versions, by reference with hashes. The best arm becomes `challenger`, and "
    "`champion` if it beats the former one with the certainty that params.yaml asks for.",
    add_params,
)
def register(arguments: Namespace) -> None:
    from flows import promote

    outcome = promote.register(load_params(arguments.params), arguments.params)
    print("\n".join(outcome.sentences))


@command(
    "promote",
    "make a version the champion by hand",
    "Moves the alias `champion` to a registered version, whatever the gate says; the version's tags keep that it was "
    "moved by hand, and when.",
    add_params,
    VERSION,
)
def promote(arguments: Namespace) -> None:
    from oxa.tracking import registry

    print(registry.promote(load_params(arguments.params).registry, arguments.version))


@command(
    "lineage",
    "print which data, code and runs a version was made from, or what was made from data",
    "Follows a version back through its training run and every stage before it to the sources, with the DVC md5 of "
    "each file; or, with --data, the other way: from a file to the versions made from it.",
    add_params,
    option("version", metavar="VERSION", nargs="?", help="number or alias"),
    option("--data", metavar="PATH", help="a path of the pipeline, or a DVC md5 or its beginning"),
)
def lineage(arguments: Namespace) -> None:
    from oxa.tracking import lineage

    settings = load_params(arguments.params).registry
    if (arguments.version is None) == (arguments.data is None):
        raise ConfigError("oxa lineage: name either a VERSION or --data PATH")
    if arguments.data is not None:
        print(lineage.versions_from(settings, arguments.data))
    else:
        print(lineage.of(settings, arguments.version))


@command(
    "model",
    "print the checkpoint folder of a version, if it still holds what was registered",
    "Prints the folder, for example for `vllm serve $(oxa model champion)`. Refuses with the reason where the files "
    "have changed since.",
    add_params,
    VERSION,
)
def model(arguments: Namespace) -> None:
    from oxa.tracking import registry

    print(registry.path_of(load_params(arguments.params).registry, arguments.version))


@command(
    "export",
    "write a version as a plain checkpoint folder with a model card, for a hub or a colleague",
    "Copies a version's files, from the workspace or DVC's cache, beside a README.md in the hub's format: its table, "
    "its arm and settings, its data with hashes, how it was made. The licence is left to you.",
    add_params,
    VERSION,
    option(
        "folder", type=Path, metavar="FOLDER", help="new or empty, or one that holds this version already"
    ),
    option(
        "--push",
        metavar="OWNER/NAME",
        help="hand it to the Hugging Face hub, too, with its own token; a repository that is new is private",
    ),
)
def export(arguments: Namespace) -> None:
    from flows import export

    params = load_params(arguments.params)
    for sentence in export.run(params, arguments.version, arguments.folder, push=arguments.push):
        print(sentence, flush=True)


if __name__ == "__main__":
    sys.exit(main())
