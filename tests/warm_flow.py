"""`oxa run` whose stages are forked from a warm process: `python warm_flow.py FOLDER run …`.

A flow starts stages by the `oxa` beside its Python. FOLDER holds the `oxa` that hands them over to the warm process
(flows/warm.py), and gets a `python` that is this one.
"""

import sys
from pathlib import Path

from flows import cli

if __name__ == "__main__":
    python = Path(sys.argv[1]) / "python"
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    sys.executable = str(python)
    sys.exit(cli.main(sys.argv[2:]))
