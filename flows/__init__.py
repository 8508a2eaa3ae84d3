"""Prefect flows over the DVC graph. Importing this package keeps what Prefect writes inside the project."""

import os
from pathlib import Path

PROJECT = Path.cwd()

os.environ.setdefault("PREFECT_HOME", str(PROJECT / ".prefect"))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
