"""README.md and docs/: what they name is there, and what is generated is fresh."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.cli.parser import get_main_parser

from flows import cli as commands
from oxa import cli
from oxa.config.params import check_params

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
FOLLOWED = [
    README,
    *(
        DOCS / f"{name}.md"
        for name in ("architecture", "own-model", "report", "scale", "tracking", "tutorial")
    ),
]


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> Iterator[list[str]]:
    """Of its `sh` blocks, each in words, without comments and without the variables set in front."""
    for line in "\n".join(fenced(page, "sh")).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


FENCED = [(page.name, words) for page in FOLLOWED for words in commands_of(page) if "…" not in words]


def test_parameters_are_what_the_models_say() -> None:
    written = (DOCS / "parameters.md").read_text("utf-8")
    assert written == runpy.run_path(str(DOCS / "parameters.py"))["page"](), "run python docs/parameters.py"


def test_what_fits_where_is_what_the_plan_says() -> None:
    written = (DOCS / "scale.md").read_text("utf-8")
    assert "| Qwen2.5-1.5B | all weights |" in written
    assert written == runpy.run_path(str(DOCS / "fits.py"))["page"](), "run python docs/fits.py"


def test_how_far_more_gpus_take_it_is_what_the_plan_and_the_scheduler_say() -> None:
    written = (DOCS / "scale.md").read_text("utf-8")
    assert "| 1 | 128 |" in written
    assert written == runpy.run_path(str(DOCS / "scaling.py"))["page"](), "run python docs/scaling.py"


def test_readme_is_read_in_two_minutes() -> None:
    assert len(README.read_text("utf-8")) <= 8000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), flags=re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], (
                link
            )


def test_oxa_make_and_dvc_know_the_fenced_commands() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    parsers = {"oxa": cli._parser(commands.add), "dvc": get_main_parser()}
    seen = set()
    for page, (program, *words) in FENCED:
        seen.add(program)
        if program == "make":
            assert [word for word in words if "=" not in word and word not in targets] == [], page
        elif program in parsers:
            try:
                parsers[program].parse_args(words)
            except SystemExit:  # argparse has printed why
                pytest.fail(f"{page}: {program} {shlex.join(words)}")
    assert {"oxa", "make", "dvc"} <= seen


def test_files_in_fenced_commands_are_there() -> None:
    named, written = set(), set()
    for page, words in FENCED:
        writes = {">", "--params"} if words[:2] == ["oxa", "use"] else {">"}
        written |= {(page, path) for sign, path in pairwise(words) if sign in writes}
        parts = {part for word in words for part in re.split(r"[=\s]", word)}
        named |= {(page, part) for part in parts if part.endswith((".yaml", ".py", ".md"))}
    assert named
    assert [(page, path) for page, path in named - written if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_params_in_the_pages_are_accepted(page: Path) -> None:
    """A whole file as it stands, a piece of one put into params.yaml."""
    for block in fenced(page, "yaml"):
        piece = yaml.safe_load(block)
        whole = {} if "arms" in piece else yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
        check_params(merged(whole, piece), f"{page.name}: {block}")


def merged(whole: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    below = {
        key: merged(whole.get(key) or {}, value) for key, value in piece.items() if isinstance(value, dict)
    }
    return whole | piece | below
