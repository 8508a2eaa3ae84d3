"""OXA: offline exploration-aware fine-tuning of math-reasoning language models (arXiv 2603.16206)."""

from pathlib import Path

SOURCES = {
    path: (path.stat().st_size, path.stat().st_mtime_ns)
    for path in sorted(Path(__file__).resolve().parent.rglob("*.py"))
    if path.is_file()  # an editor's dangling link is none
}
"""Every file of the package with its size and the time of its last change, before any of them is imported: by which
oxa/runtime/guard.py knows a module that was edited since."""
