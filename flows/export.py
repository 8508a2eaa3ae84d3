"""`oxa export`: a registered version as a plain checkpoint folder with a model card, and to the hub (flows/hub.py).

The files are the version's, by their hashes: from the workspace, else from DVC's cache. What the card tells comes from
the registry: settings, hashes and answers as they were at the registration. The comparison of all arms is the report's,
after RL too, as long as dvc.lock's report compared this very checkpoint; else the table that the registry keeps.

Nothing of this machine goes with it: paths outside the project are shown by their last name, and files that name one
(`_name_or_path` in config.json) lose it. A hub id is told from a local folder by looking whether such a folder is here.

The folder appears whole or not at all. One that holds the version already is left as it is, its README.md, in which the
user names the licence, and their LICENSE included; any other that is not empty is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flows import bridge, hub
from flows.promote import Results
from oxa.comparison import arms
from oxa.comparison.measures import pass_at
from oxa.comparison.outcomes import Outcomes, Tally
from oxa.config.params import Params
from oxa.config.prompt import Prompt
from oxa.config.report import Report
from oxa.errors import DataError, UserError
from oxa.report import card, markdown
from oxa.runtime import files, guard
from oxa.tracking import registry

CARD, LICENSE = "README.md", "LICENSE"  # what a user may write in an exported folder
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def run(params: Params, version: str, folder: Path, *, push: str | None = None) -> Iterator[str]:
    """Writes a version (number or alias) into the folder, and pushes it; yields what was done, a sentence each.

    Raises DataError where the version's files are nowhere or the folder holds something else, and as `hub` does.
    """
    if push is not None:
        hub.check(push)
    one = registry.find(params.registry, version)
    chain = json.loads(one.tags["oxa.lineage"])
    contents = _contents(one, chain["files"])
    is_whole = _holds(folder, contents)
    if is_whole:
        yield f"{folder} holds {one.name} already"
    if is_whole and (folder / CARD).exists():
        yield f"{folder / CARD} is left as it stands there; remove it to have it written anew"
    else:
        text = card.text(_facts(params.report, one, chain))
        if is_whole:
            with files.atomic(folder / CARD) as temporary:
                temporary.write_text(text, encoding="utf-8")
        else:
            _write(folder, one, contents, text)
        what = f"{folder / CARD}" if is_whole else f"{one.name} to {folder}"
        yield f"wrote {what}; name a licence in {CARD} before you publish it"
    if push is not None:
        yield f"pushed to {hub.push(folder, push, one.name)}; a repository that is new is private"


class _File(NamedTuple):
    """A file to write: a copy of `source`, or `text` in its place."""

    source: Path
    text: bytes | None
    md5: str

    @classmethod
    def of(cls, name: str, source: Path, md5: str) -> _File:
        """A configuration is taken without the absolute paths that libraries note of where a model was loaded from."""
        try:
            config = json.loads(source.read_text(encoding="utf-8")) if name.endswith("config.json") else None
        except ValueError:
            config = None
        if not isinstance(config, dict):
            return cls(source, None, md5)
        plain = {key: value for key, value in config.items() if not _names_machine(key, value)}
        if plain == config:
            return cls(source, None, md5)
        text = (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()
        return cls(source, text, hashlib.md5(text, usedforsecurity=False).hexdigest())

    def write(self, path: Path) -> None:
        """DataError where the source is no longer what it was."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.text is not None:
            path.write_bytes(self.text)
        else:
            shutil.copyfile(self.source, path)
            if guard.dvc_md5(path) != self.md5:
                raise DataError(
                    f"{self.source}: its md5 is no longer {self.md5}; it changed meanwhile, or the disk is at fault "
                    "(`dvc checkout` takes what DVC's cache has damaged out of it)"
                )


def _names_machine(key: str, value: Any) -> bool:
    return key.endswith("name_or_path") and isinstance(value, str) and _shown(value) != value


def _contents(one: registry.Version, hashes: Mapping[str, str]) -> dict[str, _File]:
    """A version's files by name, from the workspace or DVC's cache; `hashes`: their md5s.

    Without any README.md: the first is the card's, and in others libraries write paths. Raises DataError where the
    files are nowhere.
    """
    path = Path(one.tags["dvc.path"])
    if path.is_dir() and guard.dvc_md5(path) == one.tags["dvc.md5"]:
        sources = {name: path / name for name in hashes}
    else:
        cache = bridge.cached(hashes.values())
        if lacking := [name for name, md5 in hashes.items() if md5 not in cache]:
            commit = one.tags.get("git.commit")
            checkout = f"git checkout {commit} && " if commit else ""
            raise DataError(
                f"{path}: {one.name} is nowhere: the workspace has {'other files' if path.exists() else 'none'}, and "
                f"DVC's cache lacks {len(lacking)} of {len(hashes)}, {lacking[0]} for one (md5 {one.tags['dvc.md5']}); "
                f"`{checkout}dvc pull {path}` brings them where a remote has them, otherwise `oxa run` trains it again"
            )
        sources = {name: cache[md5] for name, md5 in hashes.items()}
    return {
        name: _File.of(name, source, hashes[name])
        for name, source in sources.items()
        if Path(name).name != CARD
    }


def _holds(folder: Path, contents: Mapping[str, _File]) -> bool:
    """Whether the folder holds these files, and no others but the user's; DataError where it holds something else."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: a file lies here; name a new folder")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(there | contents.keys()) if there else []:
        if name not in contents and name not in (CARD, LICENSE):
            what = "is no part of it"
        elif name in contents and name not in there:
            what = "is missing"
        elif name in contents and guard.dvc_md5(folder / name) != contents[name].md5:
            what = "is another"
        else:
            continue
        raise DataError(f"{folder}: not empty, and not this version ({name} {what}); name a new folder")
    return bool(there)


def _write(folder: Path, one: registry.Version, contents: Mapping[str, _File], text: str) -> None:
    """The folder appears under its name when all is in it; what a kill left of an earlier try is removed."""
    target, source = folder.resolve(), Path(one.tags["dvc.path"])
    if target.is_relative_to(source.resolve()):
        raise DataError(f"{folder}: lies in {source}, which DVC keeps; name a folder elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if part.exists():
        shutil.rmtree(part)
    try:
        for name, file in contents.items():
            file.write(part / name)
        (part / CARD).write_text(text, encoding="utf-8")
        os.replace(part, target)  # which may be there, if it is empty
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _facts(section: Report, one: registry.Version, chain: Mapping[str, Any]) -> card.Facts:
    """What the card tells; `chain`: the version's oxa.lineage."""
    arm, seed, stage = (one.tags[f"oxa.{name}"] for name in ("arm", "seed", "stage"))
    ran_with = reversed(
        chain.get("params", {}).values()
    )  # of the stages; the checkpoint's own comes last and counts
    merged = {key: value for values in ran_with for key, value in values.items()}
    base, ingest = merged.get("base", {}), merged.get("ingest", {})
    own = (
        "train.shared",
        f"train.arms.{arm}",
        "selection.shared",
        f"selection.ce.{arm}",
        f"selection.ul.{arm}",
    )
    trained_on = [*ingest.get("teacher", ()), *base.get("corpus", ())]
    return card.Facts(
        arm=arm,
        seed=seed,
        stage=stage,
        base=_base_in_words(base),
        base_model=base["model"] if _is_hub_id(base.get("model", "")) else None,
        datasets=list(dict.fromkeys(filter(None, map(_dataset, trained_on)))),
        sources=list(dict.fromkeys(_source(source) for source in ingest.get("teacher", ()))),
        settings={key: merged[key] for key in own if key in merged},
        suffix=Prompt.model_validate(merged["prompt"]).suffix if "prompt" in merged else None,
        results=_results(section, one, ingest.get("benchmarks", {})),
        confidence=section.confidence,
        comparison=_comparison(one),
        data={_shown(path): md5 for step in chain["stages"].values() for path, md5 in step["deps"].items()},
        md5=one.tags["dvc.md5"],
        commit=one.tags.get("git.commit"),
        dirty=one.tags["git.dirty"] == "true",
        made_with=chain.get("made_with", {}),
    )


def _base_in_words(base: Mapping[str, Any]) -> str:
    if "model" in base:
        return f"a model of its maker's own (`{_shown(base['model'])}`)"
    return "a small model that was pretrained for it" if base else "a base that its registration did not keep"


def _is_hub_id(model: str) -> bool:
    return HUB_ID.fullmatch(model) is not None and not Path(model).exists()


def _dataset(source: Mapping[str, Any]) -> str | None:
    """The hub's id of a source that comes from there."""
    name = source.get("source", "")
    return name.removeprefix("hf:").partition(":")[0] if name.startswith("hf:") else None


def _source(source: Mapping[str, Any]) -> str:
    name = _shown(source["source"].removeprefix("hf:"))
    return f"{name} at {source['revision']}" if source.get("revision") else name


def _shown(path: str) -> str:
    """A path as others may read it: of one that leads out of the project, its last name."""
    parts = Path(path).parts
    return Path(path).name if Path(path).is_absolute() or {"..", "~"} & set(parts) else path


def _results(section: Report, one: registry.Version, benchmarks: Mapping[str, Any]) -> list[card.Result]:
    """What the version answered, as the registry keeps it, in the report's numbers."""
    text = registry.results(one)
    if text is None:
        return []
    kept = Results.loads(text)
    results = []
    for name in sorted(kept.counts):
        outcomes = _outcomes(kept.on(name))
        wanted = [pass_at(k) for k in dict.fromkeys((1, int(outcomes.num_samples.min())))]
        numbers = arms.numbers_of(section, [outcomes], wanted)
        results.append(card.Result(name, _dataset(benchmarks.get(name, {})), numbers))
    return results


def _outcomes(counts: Mapping[tuple[str, str], tuple[int, int]]) -> Outcomes:
    """Of (benchmark, problem_id) -> samples, correct: right answers alone are known, all else is NaN."""
    num_samples, num_correct = np.array(list(counts.values())).T
    names = np.array(list(counts))
    unknown = np.full(len(counts), np.nan)
    others = dict.fromkeys((field.name for field in fields(Tally) if field.name != "num_correct"), unknown)
    return Outcomes(
        num_correct=num_correct,
        benchmark=names[:, 0],
        problem_id=names[:, 1],
        tier=np.full(len(counts), ""),
        num_samples=num_samples,
        **others,
    )


def _comparison(one: registry.Version) -> str | None:
    """The report's table where it compared this very checkpoint, else the one that the registry keeps."""
    summary = _summary(one)
    return registry.comparison(one) if summary is None else markdown.table(files.read_json(summary))


def _summary(one: registry.Version) -> Path | None:
    """The report's numbers, if they are of what this checkpoint, as dvc.lock knows it, answered."""
    stage = f"evaluate@{one.tags['oxa.arm']}-{one.tags['oxa.seed']}"
    try:
        locked = bridge.locked()
        answers = Path(bridge.output(locked, stage, ".parquet", "generations")[0]).parent
        summary = Path(bridge.output(locked, "report", ".json")[0])
    except (
        UserError
    ):  # there is no DVC here or it is at work, there is no report, or something has moved on since
        return None
    is_evaluated = locked[stage].deps.get(one.tags["dvc.path"]) == one.tags["dvc.md5"]
    is_reported = locked["report"].deps.get(str(answers)) == guard.dvc_md5(answers)
    return summary if is_evaluated and is_reported else None
