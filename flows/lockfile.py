"""dvc.lock, as DVC left it, or what is wrong with it.

DVC writes it in place: a kill or a full disk at that moment leaves it empty or cut off. Of one that is cut off between
two lines DVC takes what there is, and brings the rest back from its run cache; all else it refuses in words of its own.
`oxa run` mends what a kill has left; our other commands refuse it with a sentence.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from oxa.errors import DataError
from oxa.runtime import files

LOCK = Path("dvc.lock")
HALF = ("empty", "cut off")  # how a fault begins that a kill or a full disk may have left
LOOKS = 3  # at a lock that is not whole, a second each: DVC may be writing it


def read() -> dict[str, Any] | None:
    """Its stages as they stand there, by name; None where there is no such file. Raises DataError where it is not
    whole."""
    stages, fault = _look()
    if fault:
        by_itself = "`oxa run` mends it; by hand, " if fault.startswith(HALF) else ""
        raise DataError(
            f"{LOCK}: {fault}; {by_itself}`git checkout {LOCK}` brings back the one that git has; where there is none, "
            "remove the file: what was done comes back from DVC's cache"
        )
    return stages


def mend() -> str | None:
    """Puts git's copy in the place of a lock that a kill has left half, or removes it where git has none.

    DVC stages its lock in git after every stage, and what the copy does not have comes back from DVC's cache. Returns a
    sentence on it; None where there was nothing to mend, or what DVC did not leave: the two sides of a merge.
    """
    fault = _look()[1]
    if not fault.startswith(HALF):
        return None
    copy = subprocess.run(["git", "show", f":./{LOCK}"], capture_output=True).stdout.decode(errors="replace")
    if _parse(copy)[1]:
        LOCK.unlink()
        return f"{LOCK}: {fault}; removed: what was done comes back from DVC's cache"
    with files.atomic(LOCK) as temporary:
        temporary.write_text(copy, encoding="utf-8")
    return f"{LOCK}: {fault}; git's copy took its place, and what that lacks comes back from DVC's cache"


def _look() -> tuple[dict[str, Any] | None, str]:
    """The stages and what is wrong, as `_parse`; none where there is no file. One that DVC may be writing is looked at
    again."""
    fault = ""
    for left in reversed(range(LOOKS)):
        try:
            text = LOCK.read_bytes().decode()
        except FileNotFoundError:
            return None, ""
        except (OSError, UnicodeDecodeError):
            fault = "cannot be read as text"
        else:
            stages, fault = _parse(text)
            if not fault:
                return stages, ""
        if left:
            time.sleep(1.0)
    return None, fault


def _parse(text: str) -> tuple[dict[str, Any], str]:
    """The stages, and what is wrong with them, or an empty text."""
    if not text.strip():
        return {}, f"{HALF[0]} (a kill or a full disk while DVC wrote it?)"
    if re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE):
        return {}, "holds both sides of a merge that met a conflict"
    cut = f"{HALF[1]} (by a kill or a full disk while DVC wrote it?)"
    if not text.endswith("\n"):
        return {}, cut
    try:
        content = yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return {}, f"not valid YAML{f' in line {mark.line + 1}' if mark else ''}"
    stages = content.get("stages", {}) if isinstance(content, dict) and "schema" in content else None
    if not isinstance(stages, dict):
        return {}, cut
    broken = next((name for name, stage in stages.items() if not _whole(stage)), None)
    return stages, "" if broken is None else f"{cut} at stage {broken}"


def _whole(stage: Any) -> bool:
    """Whether it has what DVC writes of every stage, each part with something in it."""
    if not isinstance(stage, dict) or "cmd" not in stage or None in stage.values():
        return False
    params = stage.get("params", {})
    entries = [*stage.get("deps", []), *stage.get("outs", [])]
    return None not in params.values() and all(
        entry and "path" in entry and len(entry) > 1 for entry in entries
    )
