"""README and the tutorial, followed: every fenced command is run in order, in a repository of tiny size."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from pipelines import FLOW, ROOT, copied, environment, reference, run
from processes import wait_until_left
from test_docs import commands_of

pytestmark = pytest.mark.whole

UNTOUCHED = {"make", ".", "git"}
"""make is what CI runs; `git checkout params.yaml` is done by the test, whose repository has no commit."""
ELSEWHERE = {"oxa ui": "tests/flows/test_servers.py starts and stops the pages"}


@pytest.fixture(scope="module")
def flowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory, FLOW)


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_every_fenced_command_does_what_it_says(page: str, flowed: Path, tmp_path: Path) -> None:
    folder = copied(flowed, tmp_path / "copy")
    shutil.copytree(ROOT / "presets", folder / "presets")
    tiny = (folder / "params.yaml").read_text("utf-8")
    followed = []
    for words in commands_of(ROOT / page):
        line = shlex.join(words)
        if words[0] in UNTOUCHED or line in ELSEWHERE:
            if words[:2] == ["git", "checkout"]:
                (folder / "params.yaml").write_text(tiny, encoding="utf-8")
            continue
        words = [
            str(folder / "models" / "base") if word == "Qwen/Qwen2.5-Math-1.5B" else word for word in words
        ]
        print(line, flush=True)
        run(folder, *words)
        followed.append(words[:2])
        if (
            words[:2] == ["oxa", "use"] and words[2] != "params.yaml"
        ):  # a real model and the hub's data from here on
            (folder / "params.yaml").write_text(tiny, encoding="utf-8")
    wait_until_left(folder)
    assert ["oxa", "run"] in followed
    assert ["oxa", "plan"] in followed


def test_what_is_not_followed_is_known() -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "tutorial.md"]
    lines = {shlex.join(words) for page in pages for words in commands_of(page)}
    assert set(ELSEWHERE) <= lines
    assert subprocess.run(["oxa", "--help"], env=environment(), capture_output=True, check=True).stdout
