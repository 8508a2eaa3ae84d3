"""How a stage's command line gets what dvc.yaml does not say: the names in its paths, and a launcher.

No value of params.yaml stands in a command of dvc.yaml: a shell would read it, and obey an arm called `$(rm -r x)`. A
command holds placeholders instead, which are filled from DVC_STAGE, DVC's name for the stage at work:

    train@sft-0:   @key sft-0   @arm sft   @seed 0

Two more are filled from train.after, {sft_ul: sft}, since DVC's own templates cannot look a name up:

    train@sft_ul-0:   @from sft   @start sft-0        (@start base, of an arm that is not there)
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oxa.errors import ConfigError
from oxa.runtime import child

LAUNCHED = "OXA_LAUNCHED"  # in the environment of the processes that a launcher starts for one stage


def filled(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options' values, texts and paths, with their placeholders filled."""
    return _each_text(options, _fill)


def begun(options: Mapping[str, Any], after: Mapping[str, str]) -> dict[str, Any]:
    """The options' values with what their arm goes on from filled in."""
    before = after.get(str(options.get("arm")))
    values = {"from": before or "", "start": f"{before}-{options.get('seed')}" if before else "base"}
    return _each_text(options, lambda text: re.sub(r"@(from|start)\b", lambda match: values[match[1]], text))


def _each_text(options: Mapping[str, Any], fill: Callable[[str], str]) -> dict[str, Any]:
    return {
        name: type(value)(fill(str(value))) if isinstance(value, str | Path) else value
        for name, value in options.items()
    }


def _fill(text: str) -> str:
    """Names that the config would refuse are left out: a launcher may hand its words to a shell of another machine."""
    key = os.environ.get("DVC_STAGE", "").partition("@")[2]
    if not re.fullmatch(r"[\w.-]+", key, re.ASCII):
        return text
    arm, _, seed = key.rpartition("-")
    values = {"key": key, "arm": arm, "seed": seed}
    return re.sub(r"@(key|arm|seed)\b", lambda match: values[match[1]], text)


def become(words: Sequence[str]) -> None:
    """Becomes the launcher that OXA_LAUNCH names, which starts this command in as many processes as it says."""
    line = os.environ["OXA_LAUNCH"]
    environment = {name: value for name, value in os.environ.items() if name != "OXA_LAUNCH"}
    if "DVC_STAGE" in os.environ:
        child.die_with_parent()  # holds for what this process becomes; the others die with that
    try:
        launcher = shlex.split(line)
        command = [*launcher, "-m", "oxa.cli", *map(_fill, words)]
        os.execvpe(launcher[0], command, environment | {LAUNCHED: "1"})
    except (OSError, IndexError, ValueError):  # not found, nothing but blanks, a quote left open
        raise ConfigError(
            f"OXA_LAUNCH: {line!r} cannot be started; an example: torchrun --nproc-per-node 2"
        ) from None
