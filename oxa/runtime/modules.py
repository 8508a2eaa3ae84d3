"""The package's own source files: which of them a module stands on, and what they do."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def imported_modules(module: str) -> list[str]:
    """Source files, as `oxa/…/….py`, of `module` and of every oxa module that it imports, directly or not, sorted.

    Read off the syntax tree, imports inside functions included, those under `if TYPE_CHECKING:` left out, which do
    nothing at run time. The packages' own files are empty and left out.
    """
    seen: set[str] = set()
    todo = [module]
    while todo:
        file = _source(todo.pop())
        if file is None or file in seen:
            continue
        seen.add(file)
        for node in _run_time_nodes(ast.parse((PACKAGE.parent / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:  # of a module, or of a package's module
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted(seen)


def _run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The tree's nodes without what stands under `if TYPE_CHECKING:`."""
    yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = iter(node.orelse)
    for inner in children:
        yield from _run_time_nodes(inner)


def _source(module: str) -> str | None:
    """The module's file; None of what is no module of oxa's."""
    file = f"{module.replace('.', '/')}.py"
    return file if module.startswith("oxa.") and (PACKAGE.parent / file).is_file() else None


def hash_code(path: Path) -> str:
    """Hash of what the code does: of its syntax tree without comments, docstrings and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return hashlib.md5(ast.dump(tree).encode(), usedforsecurity=False).hexdigest()


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a text alone, as docstrings are."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
