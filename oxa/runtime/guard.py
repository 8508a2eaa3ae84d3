"""A guard round every stage: same inputs in, whole outputs out, and a kill -9 costs only the last minutes.

    with guard.stage("train@sft-0", module="oxa.stages.train", inputs=…, outputs=…, config=…) as run:
        …                         # works in run.scratch, writes to run.outputs[name]

- Work that can be resumed lies in `.work/<stage>/<key>/`. The key is a hash of the inputs' content, the stage's
  configuration and the code it runs, so a rerun finds its own checkpoints and never those of other inputs.
- Outputs are written there, too, and take their final names only when the stage has succeeded.
- What the stage uses, its inputs, its parameters and its modules, is read before and looked at again afterwards: DVC
  reads them when a command has ended, and would record what was edited meanwhile as what was used, in dvc.lock and in
  its run cache, for ever. Here the stage fails and stays stale. Of modules that counts as used which the process has
  imported. What is left is the time between the last look, as outputs take their names, and DVC's own reading: some
  tenths of a second, in which an edit is not seen.
- Under DVC, or a launcher that the command line became, the stage dies with it (Linux), and two copies of one stage
  never run at the same time.
- Of several processes of one stage (torchrun, accelerate) the first guards; the others share its folder, which is ready
  once they have joined it.

Hashes are DVC's own md5 (of a file's bytes; of a folder's sorted list of names and md5s), so that what a run records of
its inputs and outputs can be looked up in dvc.lock and in DVC's cache. As in DVC, what git, Mercurial and DVC itself
keep inside a folder is no part of it; a .dvcignore is not read, so where one applies the md5 is another than DVC's.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import oxa
from oxa.errors import ConfigError, DataError, UserError
from oxa.runtime import child, launch, modules
from oxa.runtime.modules import imported_modules

_md5 = partial(hashlib.md5, usedforsecurity=False)

WORK = Path(".work")
NOT_CONTENT = {".git", ".hg", ".dvc"}
PROBE = 2**20  # bytes; a disk that has no room for them counts as full


@dataclass(frozen=True)
class Run:
    """What a guarded stage works with."""

    scratch: Path
    """Folder for checkpoints and finished shards; survives a kill, is removed after success."""
    outputs: dict[str, Path]
    """Where to write each output; moved into place at the end."""
    final: dict[str, Path]
    """Where each output will lie."""
    inputs: dict[str, str]
    """Path of each input to its DVC md5."""
    key: str
    """Of the inputs' content, the stage's configuration and the code it runs."""
    keep: Callable[[], None]
    """Looks at the inputs again and puts the outputs in place; the guard does so at the end of its block, unless the
    stage, which has something to say once all is safe, has done it. Raises DataError where an input has changed."""

    def hash_outputs(self) -> dict[str, str]:
        """Final path of each output, to the DVC md5 of what has been written for it."""
        return {str(self.final[label]): dvc_md5(path) for label, path in self.outputs.items()}


@contextmanager
def stage(
    name: str,
    *,
    module: str,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    config: Any,
    changed: Callable[[], Iterable[str]] = tuple,
    work: Path = WORK,
) -> Iterator[Run]:
    """Guards one stage; see the module's text. `config` is whatever JSON can hold; `changed` names what of its source
    is another one now.

    Raises DataError where an input is missing, an output cannot be written or something that the stage uses changed
    meanwhile, ConfigError where DVC would record other modules than those that run, and UserError where another process
    runs the same stage on the same inputs.
    """
    if "DVC_STAGE" in os.environ or launch.LAUNCHED in os.environ:
        child.die_with_parent()  # a killed DVC or launcher would leave the stage running
    for label, path in inputs.items():
        if not path.exists():
            raise DataError(
                f"{path}: no such file or folder (--{label.replace('_', '-')}); `dvc repro` makes it"
            )
    for path in outputs.values():
        _make_folder(path.parent)
    own = {name.resolve() for path in outputs.values() for name in (path, _part(path))}  # may lie in an input
    code = code_of(module)
    before = {path: Fingerprint.of(path, own) for path in inputs.values()}
    key = _key(config, module, {label: before[path].content() for label, path in inputs.items()})
    folder = work / name / key
    staged = {label: folder / "out" / label / path.name for label, path in outputs.items()}
    run = Run(
        scratch=folder / "scratch",
        outputs=staged,
        final=dict(outputs),
        inputs={str(path): before[path].md5() for path in inputs.values()},
        key=key,
        keep=lambda: None,
    )
    if not is_first_process():
        yield run
        return
    _make_folder(folder)
    with _only_one(folder, name):
        _remove(folder / "out")
        for path in staged.values():
            _make_folder(path.parent)
        in_place = False

        def keep() -> None:
            nonlocal in_place
            _probe(folder)  # DVC writes dvc.lock in place next; a disk that is full then leaves half of it
            with _beside(staged, outputs) as take_names:
                when = f"stage {name} was reading it; nothing was kept, run the stage again"
                try:
                    check(when, [*before.values(), *code], changed, own)
                except DataError:
                    if _key_now(config, module, inputs, own) != key:  # work of the one, the other or both
                        _remove(folder / "scratch")
                    raise
                take_names()
            in_place = True

        with _saying_full_disk(folder):
            yield replace(run, keep=keep)
        if not in_place:
            keep()
        _forget(work / name, keep_locked=folder)


def _key(config: Any, module: str, inputs: Mapping[str, Mapping[str, str]]) -> str:
    """16 hex digits; `inputs`: hash by relative name, of each input."""
    code = {name: modules.hash_code(modules.PACKAGE.parent / name) for name in imported_modules(module)}
    parts = {"config": config, "inputs": inputs, "code": code}
    return _hash_text(json.dumps(parts, sort_keys=True))[:16]


def _key_now(config: Any, module: str, inputs: Mapping[str, Path], leave_out: set[Path]) -> str | None:
    """The key of what lies there now; None where it is not even whole."""
    try:
        contents = {label: Fingerprint.of(path, leave_out).content() for label, path in inputs.items()}
        return _key(config, module, contents)
    except (OSError, SyntaxError, ValueError):
        return None


def is_first_process() -> bool:
    """Whether this is the only process of a stage, or the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def code_of(module: str) -> list[Fingerprint]:
    """The source files that a module stands on, as this process has imported them or will.

    Raises DataError where one was edited since this process began. Under DVC also those of the folder that DVC looks
    at, where the package that runs lies elsewhere, and then ConfigError where the two differ.
    """
    names = imported_modules(module)
    used = [Fingerprint.of(modules.PACKAGE.parent / name) for name in names]
    for source in used:
        size, changed, _ = source.files[""][0]
        if oxa.SOURCES.get(source.path, (size, changed)) != (size, changed):
            raise DataError(f"{source.path}: changed while the stage was starting; run it again")
    if "DVC_STAGE" not in os.environ or modules.PACKAGE.parent == Path.cwd().resolve():
        return used
    recorded = {name: Fingerprint.of(Path(name)) for name in names if Path(name).exists()}
    for name, source in zip(names, used, strict=True):
        if name in recorded and recorded[name].content() != source.content():
            raise ConfigError(
                f"{name}: not the code that runs, which lies in {modules.PACKAGE}, and DVC would record it as such; "
                "install this folder's (`pip install -e .`)"
            )
    return used + list(recorded.values())


def check(
    when: str, before: Iterable[Fingerprint], changed: Callable[[], Iterable[str]], leave_out: set[Path]
) -> None:
    """Raises DataError where something holds another content now, or `changed` names something."""
    others = (str(source.path) for source in before if not source.still_holds(leave_out))
    for name in chain(others, changed()):
        raise DataError(f"{name}: changed while {when}")


@dataclass(frozen=True)
class Fingerprint:
    """What a file or folder held: size, time and identity of every file, and its content's hash."""

    path: Path
    files: dict[str, tuple[tuple[int, int, int], str]]

    @classmethod
    def of(cls, path: Path, leave_out: Iterable[Path] = ()) -> Fingerprint:
        """Reads and hashes everything under `path`, but for `leave_out`."""
        return cls(path, {name: (_stat(file), _hash_file(file)) for name, file in _files(path, leave_out)})

    def content(self) -> dict[str, str]:
        """Hash by relative name."""
        return {name: digest for name, (_, digest) in self.files.items()}

    def md5(self) -> str:
        """DVC's md5 of the file or folder."""
        if not self.path.is_dir():
            return self.files[""][1]
        entries = [{"md5": digest, "relpath": name} for name, digest in self.content().items()]
        listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
        return _hash_text(listing) + ".dir"

    def still_holds(self, leave_out: Iterable[Path] = ()) -> bool:
        """Whether the content is the same now; only files whose size, time or identity moved are read again."""
        try:
            now = dict(_files(self.path, leave_out))
            return now.keys() == self.files.keys() and all(
                _stat(file) == self.files[name][0] or _hash_file(file) == self.files[name][1]
                for name, file in now.items()
            )
        except FileNotFoundError:
            return False


def _files(path: Path, leave_out: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path)
            if file.is_file() and NOT_CONTENT.isdisjoint(name.parts) and file.resolve() not in leave_out:
                yield name.as_posix(), file
    else:
        yield "", path


def dvc_md5(path: Path) -> str:
    """The md5 under which DVC keeps a file or folder; a folder's ends in `.dir`. Raises FileNotFoundError."""
    return Fingerprint.of(path).md5()


def _stat(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _md5).hexdigest()


def _hash_text(text: str) -> str:
    return _md5(text.encode()).hexdigest()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); free the path or choose another"
        ) from None


@contextmanager
def _only_one(folder: Path, name: str) -> Iterator[None]:
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"stage {name} already runs on the same inputs (process {lock.read().strip() or 'unknown'}); "
                "wait for it or end it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        (folder / "scratch").mkdir(exist_ok=True)
        yield


@contextmanager
def _saying_full_disk(folder: Path) -> Iterator[None]:
    """Raises OSError with its number where the block fails and the folder's disk is full.

    torch and safetensors report a full disk as errors of their own, torch without a word of it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) or error.errno is None:
            _probe(folder)
        raise


def _probe(folder: Path) -> None:
    """Raises OSError where the folder's disk, or a quota on it, is full."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def _forget(stage_folder: Path, keep_locked: Path) -> None:
    """Removes the finished run's folder and those that earlier inputs left behind, unless one is at work there."""
    for folder in stage_folder.iterdir():
        with (folder / "lock").open("a+") as lock:
            try:
                if folder != keep_locked:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder)


@contextmanager
def _beside(staged: Mapping[str, Path], final: Mapping[str, Path]) -> Iterator[Callable[[], None]]:
    """All outputs or none: each comes to lie beside its final name, where a full disk stops them; the function that is
    yielded lets them take it."""
    beside = {label: _part(path) for label, path in final.items()}

    def take_names() -> None:
        for label, path in beside.items():
            if final[label].is_dir():
                shutil.rmtree(final[label])
            os.replace(path, final[label])

    try:
        for label, path in staged.items():
            assert path.exists(), f"the stage did not write {final[label]}"
            _remove(beside[label])
            _move(path, beside[label])
        yield take_names
    except BaseException:
        for path in beside.values():
            _remove(path)
        raise


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _move(source: Path, target: Path) -> None:
    """Renames; where the two lie on different disks, copies."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        try:
            for name, file in _files(source, ()):  # copytree would go on after a full disk, and not say so
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target / name)
        except OSError as failed:  # it names the source
            raise OSError(failed.errno, failed.strerror, str(target)) from None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
