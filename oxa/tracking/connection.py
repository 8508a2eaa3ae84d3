"""Access to the MLflow that the environment's MLFLOW_TRACKING_URI names: its address, a client, its runs, its errors.

mlflow is imported only by functions that need it, since the import takes 2 s.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from oxa.errors import UserError, without_credentials
from oxa.runtime import server

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

FOLDER = Path(".tracking")
TIMEOUT = 10  # seconds for an answer to begin, and between its parts
ANSWER = 30.0  # seconds for a whole one
FILES = 600.0  # the same for files
WITH_FILES = ("log_artifact", "log_artifacts", "log_text", "download_artifacts")
LONGEST_LINE = 2000  # characters of a line in the sender's log
MOST_RUNS = 50_000  # that MLflow returns at once
# without this tag an experiment's page opens on traces, not on runs
EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # MLflow's own retries go on for minutes; the sender has its own
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT),
    "PGCONNECT_TIMEOUT": str(TIMEOUT),
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Unreachable(Exception):
    """MLflow does not answer; str(error) is the reason."""


def uri() -> str:
    """The tracking URI; by default a database in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def shown(address: str) -> str:
    """A URI without user, password and options."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else address


def fingerprint() -> str:
    """Eight hex digits that differ between tracking URIs and do not give a password away."""
    return hashlib.sha256(uri().encode()).hexdigest()[:8]


def connect(folder: Path = FOLDER) -> MlflowClient:
    """A client that has had an answer; a database is created if there is none.

    Raises Unreachable, or whatever MLflow does.
    """
    import logging

    address = uri()
    knock()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what matters is raised
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if urlsplit(address).scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        _try_database(address)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "database.lock").open("a") as lock:  # of two that create a database at once, one fails
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(address, registry_uri=address)
        if urlsplit(address).scheme in ("http", "https"):
            client = cast("MlflowClient", _InTime(client))
        client.search_experiments(max_results=1)
    return client


class _InTime:
    """An MLflow client of which every call ends, in an answer, an error of MLflow's or requests', or Unreachable."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        method, seconds = getattr(self._client, name), FILES if name in WITH_FILES else ANSWER

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return server.within(seconds, method, *arguments, **options)
            except (MlflowException, RequestException):
                raise
            except TimeoutError as error:
                raise Unreachable(str(error)) from None
            except Exception as error:  # MLflow takes an answer apart as if it could not be wrong
                raise MlflowException(
                    f"its answer cannot be read ({type(error).__name__}: {error})"
                ) from None

        return call


def _try_database(address: str) -> None:
    """Raises Unreachable, or whatever SQLAlchemy does, where the database cannot be read.

    MLflow would try ten times, for 100 s.
    """
    import sqlalchemy

    url = sqlalchemy.make_url(address)
    question = "select 1"
    if url.get_backend_name() == "sqlite":
        if not url.database or not os.path.exists(url.database):
            return  # MLflow makes it
        if os.path.isdir(url.database):
            raise Unreachable(f"{url.database} is a folder; move it away")
        question = "pragma schema_version"
    try:
        with sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool).connect() as connected:
            connected.exec_driver_sql(question)
    except sqlalchemy.exc.DatabaseError as error:
        if isinstance(error, sqlalchemy.exc.OperationalError):
            raise
        raise Unreachable(reason(error)) from None


def knock() -> None:
    """Raises Unreachable where nobody listens at the server's port; costs nothing, where mlflow's import takes 2 s."""
    import urllib.request

    parts = urlsplit(uri())
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
    port = parts.port or ports.get(parts.scheme.partition("+")[0])
    if not parts.hostname or not port:
        return
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname):
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=TIMEOUT).close()
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from None


def client() -> MlflowClient:
    """As `connect`, for commands: raises UserError where MLflow cannot be reached."""
    try:
        return connect()
    except FileExistsError:  # a file in our folder's place, which is no fault of MLflow's
        raise
    except Exception as error:  # MLflow hands on whatever its backends raise
        raise unreachable(error) from None


@contextmanager
def opened() -> Iterator[MlflowClient]:
    """A client; what MLflow refuses or cannot do inside the block becomes a UserError of one sentence."""
    connected = client()
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield connected
    except (MlflowException, RequestException) as error:
        raise UserError(f"MLflow at {shown(uri())} refused: {reason(error)}") from None
    except Unreachable as error:
        raise unreachable(error) from None


def find_runs(experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """The experiment's runs that carry all these tags, the newest first."""
    query = " and ".join(f"tags.`{clean(name)}` = '{value}'" for name, value in tags.items())
    with opened() as connected:
        known = connected.get_experiment_by_name(experiment)
        return connected.search_runs([known.experiment_id], query, max_results=MOST_RUNS) if known else []


def experiment(client: MlflowClient, name: str) -> Experiment:
    """The experiment of this name, which may be a deleted one; it is created if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment_by_name(name) or client.get_experiment(
            client.create_experiment(name, tags=EXPERIMENT)
        )
    except MlflowException as error:  # another process has just created it
        entity = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or entity is None:
            raise
        return entity


def unreachable(error: Exception) -> UserError:
    return UserError(f"MLflow at {shown(uri())} cannot be reached ({reason(error)})")


def reason(error: Exception) -> str:
    """What went wrong, in short, and without a password."""
    text = re.split(r"\[SQL:|\(Background on", " ".join(str(error)[:20_000].split()))[0].strip()
    return without_credentials(text)[:200] or type(error).__name__


def log_traceback() -> None:
    """Prints the traceback of the exception at hand, into the sender's log."""
    lines = without_credentials(
        traceback.format_exc()
    ).splitlines()  # a server's whole answer may be among them
    print("\n".join(line[:LONGEST_LINE] for line in lines[-100:]), file=sys.stderr, flush=True)


def clean(name: str) -> str:
    """A name that MLflow takes: it allows no `@`, among others, and reads names as paths."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_")))[:250]
