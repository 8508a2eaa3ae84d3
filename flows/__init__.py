"""Prefect flows over the DVC graph. Importing this package keeps what Prefect writes inside the project.

Prefect derives only its database and profiles from PREFECT_HOME (3.7): the two other paths lie in the user's home
unless they are set, and it warns where the folder is missing. A server is started, and surely ended, by servers.py,
never by Prefect itself.
"""

import os
from pathlib import Path

PROJECT = Path.cwd()

os.environ.setdefault("PREFECT_HOME", str(PROJECT / ".prefect"))
os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", f"{os.environ['PREFECT_HOME']}/storage")
os.environ.setdefault("PREFECT_MEMO_STORE_PATH", f"{os.environ['PREFECT_HOME']}/memo_store.toml")
os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
