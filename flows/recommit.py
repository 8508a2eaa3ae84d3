"""Records regraded generations in DVC as their stages' outputs, without sampling again (the command `oxa regrade`).

oxa/grading/regrade.py makes the new verdicts; here is decided where DVC may take them. A checkpoint's generations
follow from its stage's inputs. Only where DVC says that nothing of these has changed but the verifier (ROOMS, VERIFIER
and the parameters `verify`) are the stored texts what the stage would write today; then, and only then, table and
metrics are rewritten and `dvc commit` records them as the stage's outputs of today. Elsewhere the stage is left alone.
Modules of VERIFIER that do more than grade are named when they have changed: whether their change touches how prompts
are written or answers drawn, DVC cannot tell.

Killed at any moment, the next run goes on: what is about to be written is noted with its md5 first, so that outputs
which differ from dvc.lock are known for our own, and with the changes of verdicts, so that they are printed then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows import bridge
from oxa.config.verify import Verify
from oxa.errors import UserError
from oxa.grading.regrade import Regraded, regrade
from oxa.records import schemas, tables
from oxa.runtime import files, guard

ROOMS = ("oxa/answers/", "oxa/grading/")  # all that lies in them grades
GRADING = {
    "oxa/config/verify.py",
    "oxa/comparison/estimators.py",
    "oxa/errors.py",
    "oxa/records/same_answers.py",
    "oxa/runtime/progress.py",
}
MORE = {
    "oxa/config/evaluate.py",
    "oxa/config/section.py",
    "oxa/hashes.py",
    "oxa/prompts.py",
    "oxa/records/schemas.py",
    "oxa/records/tables.py",
    "oxa/runtime/files.py",
    "oxa/stages/evaluate.py",
}
VERIFIER = GRADING | MORE | {"verify"}

# stages of dvc.yaml, beside the evaluations, that use the verifier, and what it decides there
GRADERS = {
    "gates": "what the base can do",
    "ingest": "which problems are sound",
    "pass_rate": "how hard problems are",
    "warm_up": "what is said of the sampler",
    "verify": "training sets",
    "rlvr": "rewards of RL",
}

Summarize = Callable[[pa.Table, pa.Table], dict[str, Any]]


def run(
    section: Verify,
    summarize: Summarize,
    checkpoints: Sequence[str] = (),
    *,
    changed: Callable[[], Iterable[str]] = tuple,
    dry_run: bool = False,
) -> Iterator[str]:
    """Regrades these checkpoints' generations, by default all, and yields a sentence on each.

    `summarize` makes a stage's metrics of its generations and entropies; `changed` names what of the section's source
    is another one now. With `dry_run` nothing is written.
    """
    code = guard.code_of(summarize.__module__)
    locked_stages = bridge.locked()
    known = _evaluations(locked_stages)
    for name in checkpoints:
        if name not in known:
            raise UserError(
                f"{name}: dvc.lock knows no generations of it; known: {', '.join(known) or 'none'}"
            )
    chosen = {name: known[name] for name in checkpoints or known}
    changes_by_stage = bridge.changes([stage for stage, _ in chosen.values()])
    num_committed = 0
    for name, (stage, locked) in chosen.items():
        table, entropies = (_table(locked.outs, folder) for folder in ("generations", "entropies"))
        metrics = _path(locked.outs, ".json")
        note = guard.WORK / "regrade" / f"{name}.json"
        if others := _others(changes_by_stage[stage], note):
            yield f"{name}: left alone, since {', '.join(others)} changed, too; `dvc repro {stage}` evaluates it again"
            continue
        regraded = regrade(section, table, _path(locked.deps, ".parquet"))
        numbers = summarize(regraded.table, tables.read(entropies, schemas.ENTROPIES))
        earlier = _earlier(table, note)
        changes = [*earlier, str(regraded)] if regraded.changed or not earlier else earlier
        sentence = f"{name}: {'; '.join(changes)}"
        if dry_run:
            yield sentence
            continue
        # DVC would record what stands there now as what has graded
        guard.check(f"{name} was graded; run it again", code, changed, set())
        if regraded.changed or files.read_json(metrics) != json.loads(json.dumps(numbers)):
            _write(regraded, numbers, table, metrics, note, earlier)
        now = bridge.changes([stage])[stage]
        if others := _others(now, note):  # changed meanwhile
            raise UserError(f"{name}: {', '.join(others)} changed while it was graded; run it again")
        if now:
            bridge.commit(stage)
            num_committed += 1
        doubtful = sorted(MORE & now.keys())
        doubt = f" ({', '.join(doubtful)} changed, taken to ask and draw as before)" if doubtful else ""
        yield sentence + doubt
        note.unlink(missing_ok=True)  # once it is printed
    if num_committed:
        yield (
            f"DVC has taken {num_committed} of {len(chosen)} evaluations; `dvc repro --single-item report` makes the "
            "report again"
        )
        if behind := _behind(locked_stages):
            yield (
                f"{', '.join(behind)} still stand on the old verifier ({', '.join(GRADERS[kind] for kind in behind)}); "
                "a full `dvc repro` makes them again, with all that follows from them"
            )


def _evaluations(locked: Mapping[str, bridge.Locked]) -> dict[str, tuple[str, bridge.Locked]]:
    """Stage and what dvc.lock holds of it, by checkpoint."""
    return {
        _table(step.outs, "generations").stem: (stage, step)
        for stage, step in sorted(locked.items())
        if stage.startswith("evaluate")
    }


def _behind(locked: Iterable[str]) -> list[str]:
    """Those of GRADERS that DVC would run again since the verifier has changed."""
    present = bridge.stages()  # dvc.lock may still hold some that dvc.yaml has no more
    ran = [stage for stage in locked if stage in present and stage.partition("@")[0] in GRADERS]
    changed = bridge.changes(ran) if ran else {}
    stale = {stage.partition("@")[0] for stage, how in changed.items() if _verifiers(how)}
    return [kind for kind in GRADERS if kind in stale]


def _verifiers(changed: Mapping[str, str]) -> set[str]:
    """What of this belongs to the verifier."""
    return {path for path in changed if path in VERIFIER or path.startswith(ROOMS)}


def _path(paths: Mapping[str, str], suffix: str) -> Path:
    return next(Path(path) for path in paths if path.endswith(suffix))


def _table(paths: Mapping[str, str], folder: str) -> Path:
    for path in map(Path, paths):
        if path.parent.name == folder:
            return path
    raise UserError(f"dvc.lock knows no {folder} among {', '.join(paths)}; `dvc repro` evaluates again")


def _others(changed: Mapping[str, str], note: Path) -> list[str]:
    """What changed beside the verifier and what an earlier run of ours has written."""
    ours = files.read_json(note)["files"] if note.exists() else {}
    return sorted(
        path
        for path in changed.keys() - _verifiers(changed)
        if path not in ours or not Path(path).exists() or guard.dvc_md5(Path(path)) not in ours[path]
    )


def _earlier(table: Path, note: Path) -> list[str]:
    """The changes of verdicts that runs of ours which were cut off have left in the table and not printed."""
    if not note.exists():
        return []
    noted = files.read_json(note)
    before, after = noted["files"][str(table)]
    now = guard.dvc_md5(table)
    if now == after:
        return [*noted["earlier"], *noted["changes"]]
    return list(noted["earlier"]) if now == before else []


def _write(
    regraded: Regraded,
    numbers: dict[str, Any],
    output: Path,
    metrics: Path,
    note: Path,
    earlier: Sequence[str],
) -> None:
    """Puts both in place, after a note of what they are about to be."""
    made = {
        output: note.with_name(f"{note.stem}.parquet"),
        metrics: note.with_name(f"{note.stem}-metrics.json"),
    }
    note.parent.mkdir(parents=True, exist_ok=True)
    tables.write(made[output], regraded.table, schemas.GENERATIONS, regraded.notes)
    files.write_json(made[metrics], numbers)
    changes = [f"{regraded} (written by a run that was cut off)"] if regraded.changed else []
    hashes = {str(path): [guard.dvc_md5(path), guard.dvc_md5(new)] for path, new in made.items()}
    files.write_json(note, {"files": hashes, "earlier": earlier, "changes": changes})
    for path, new in made.items():
        new.replace(path)
