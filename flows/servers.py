"""The servers that a run talks to, all on 127.0.0.1, all ended with whoever started them.

    with prefect_api() as url: …   # an API for this run: yours, that of `oxa ui`, or one just for this run
    ui()                           # `oxa ui`: Prefect's and MLflow's pages until Ctrl-C

What they write lies in `.prefect/`: Prefect's SQLite database, logs, and while `oxa ui` is up `ui.json`, which holds
its addresses. It counts only while that process holds the lock beside it, which the kernel lets go when it dies: an
address left behind may be another project's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, NoReturn
from urllib.parse import urlsplit

from flows import PROJECT, bridge
from oxa.errors import ConfigError, UserError, tell
from oxa.runtime.files import atomic
from oxa.runtime.server import ANSWER, SHOWN_LINES, ServerProcess, answers, free_port, spare_loopback, within
from oxa.tracking import connection

FOLDER = PROJECT / ".prefect"
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
UI, UI_LOCK = FOLDER / "ui.json", FOLDER / "ui.lock"
PATIENCE = 300.0  # seconds for a server to come up: 5-11 on two idle cores, the most on a fresh database
DELIVERY = 10.0  # seconds for the last log lines to reach the server
LOST = 10.0  # seconds for which nobody listens at the API's address, and it is taken for gone
RAISED = re.compile(r"(\w+\.)+\w+: |\w+(Error|Exception): ")  # the last line of a traceback
UNREADABLE_DATABASE = ("is not a database", "is malformed", "Can't locate revision")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # what MLflow keeps its tables in


class ProjectServer(ServerProcess):
    """Prefect's or MLflow's server for this project; what it prints goes to a file of `.prefect/`."""

    remedy = ""
    """What to do where its database is damaged or was made by a newer version."""

    def __init__(
        self, name: str, log: str, command: Sequence[str], health: str, environment: Mapping[str, str | None]
    ) -> None:
        """A None in `environment` unsets a variable."""
        FOLDER.mkdir(exist_ok=True)
        self.name = name
        # two that made the same fresh database at once would fail each other
        self._starting = (FOLDER / f"{name.lower()}.lock").open("a")
        fcntl.flock(self._starting, fcntl.LOCK_EX)
        variables = {**os.environ, **environment}
        super().__init__(
            [sys.executable, "-m", *command],
            health=health,
            log=FOLDER / log,
            cwd=PROJECT,
            env={key: value for key, value in variables.items() if value is not None},
        )

    def wait_until_up(self) -> None:
        """Raises UserError, with the reason that its log gives, where it dies or is not up in time."""
        up = self.answers_within(PATIENCE)
        self.check()
        if not up:
            raise UserError(f"the {self.name} server was not up after {PATIENCE:.0f} s{self._reason()}")
        self._starting.close()

    def check(self) -> None:
        """Raises UserError, with the reason that its log gives, where it has ended."""
        if self.poll() is not None:
            raise UserError(f"the {self.name} server ended with exit code {self.returncode}{self._reason()}")

    def _reason(self) -> str:
        """The exception that its log ends with, and what to do about it; else the log's last lines."""
        lines = self.last_lines()
        if raised := [line for line in lines if RAISED.match(line)]:
            _, _, reason = raised[-1].partition(": ")
            remedy = self.remedy if any(sign in reason for sign in UNREADABLE_DATABASE) else ""
            return f" ({reason}); {remedy}its log: {self.log}"
        shown = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])
        return f"; {self.log} ends with:\n{shown}" if shown else ""


class PrefectServer(ProjectServer):
    """Prefect's."""

    remedy = (
        "its database is damaged, or of a newer Prefect: move .prefect/prefect.db* away, and a new one is made (it "
        "holds no results, only the runs that Prefect's pages show); "
    )


@contextmanager
def prefect_api() -> Iterator[str]:
    """An API for the flows that run inside the block, which is made Prefect's setting there; yields its address.

    PREFECT_API_URL, from the environment or Prefect's settings, goes first; then the server of a running `oxa ui` of
    this project; then one started for this block. Raises ConfigError where the first does not answer, UserError where
    the last does not start.
    """
    FOLDER.mkdir(exist_ok=True)
    spare_loopback()  # for flows that no command line started
    with ExitStack() as stack:
        url, server = os.environ.get("PREFECT_API_URL") or _api_of_ui(), None
        if not url:
            port = free_port()
            server = stack.enter_context(_prefect(port, embedded=True))
            url = f"http://127.0.0.1:{port}/api"
        import prefect

        import flows.pipeline  # noqa: F401  # two seconds that the block needs anyway, beside the server's start

        configured = prefect.settings.get_current_settings().api.url
        if configured:
            if server:
                server.end()
            check_answers(configured)
            url = configured
        elif server:
            server.wait_until_up()
        # the environment is every thread's, unlike Prefect's temporary_settings
        refresh = prefect.context.refresh_global_settings_context
        stack.callback(refresh)
        stack.enter_context(_environment("PREFECT_API_URL", url))
        refresh()
        stack.callback(_deliver)
        stack.enter_context(_ending_with(url))
        yield url


@contextmanager
def _ending_with(url: str) -> Iterator[None]:
    """Ends this process, its stages first, with one sentence, where the API is gone while the block runs.

    Without it Prefect's client retries, raises what it likes or hangs, in threads that nobody can end, also as Python
    exits. A server that is slow still takes connections, and is waited for.
    """
    if not _listens(url):  # behind a proxy
        yield
        return
    over = threading.Event()
    threading.Thread(target=_watch, args=(url, over), daemon=True).start()
    try:
        yield
    except Exception:  # of whatever kind Prefect's client has for it
        if not _listens(url):
            _give_up(url)
        raise
    finally:
        over.set()


def _watch(url: str, over: threading.Event) -> None:
    heard = time.monotonic()
    while not over.wait(1.0):
        if _listens(url):
            heard = time.monotonic()
        elif time.monotonic() - heard > LOST:
            _give_up(url)


def _give_up(url: str) -> NoReturn:
    bridge.end_all()
    print(file=sys.stderr)  # behind what Prefect has begun to say
    tell(
        f"the Prefect server at {connection.shown(url)} is gone, and the stages at work were ended; what is done "
        "is kept: `oxa run` again goes on from there"
    )
    os._exit(os.EX_TEMPFAIL)


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    try:
        socket.create_connection((parts.hostname or "", port or 0), timeout=ANSWER).close()
    except TimeoutError:  # it may have too much to do
        return True
    except OSError:
        return False
    return True


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _deliver() -> None:
    """Sends what Prefect still holds back, log lines and the events that task states are made of."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for service in (APILogWorker, EventsWorker):
        service.drain_all(timeout=DELIVERY)


def ui(prefect_port: int = PREFECT_PORT, mlflow_port: int = MLFLOW_PORT) -> None:
    """Runs Prefect's and MLflow's servers until Ctrl-C or SIGTERM, and prints where they are.

    An MLFLOW_TRACKING_URI that is an http address is shown instead of a server of ours. Raises UserError where this
    project's `oxa ui` runs already or a server does not start or dies, ConfigError for an unusable tracking URI.
    """
    tracking = connection.uri()
    remote = tracking.startswith(("http://", "https://"))
    if not remote and tracking.partition(":")[0].partition("+")[0] not in DATABASES:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI {connection.shown(tracking)!r} is neither a database nor an http address; an example: sqlite:///mlflow.db"
        )
    with ExitStack() as stack:
        stack.enter_context(_only_ui())
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with Ctrl-C ignored
            stack.callback(signal.signal, number, signal.signal(number, signal.default_int_handler))
        try:
            _serve(prefect_port, None if remote else mlflow_port, tracking, stack)
        except KeyboardInterrupt:
            print(flush=True)


def _serve(prefect_port: int, mlflow_port: int | None, tracking: str, stack: ExitStack) -> None:
    port = _port("Prefect", prefect_port)
    servers = [stack.enter_context(_prefect(port, embedded=False))]
    shown = connection.shown(tracking)
    if mlflow_port is not None:
        mlflow_port = _port("MLflow", mlflow_port)
        servers.append(stack.enter_context(_mlflow(mlflow_port, tracking)))
        shown = f"http://127.0.0.1:{mlflow_port}"
    for server in servers:
        server.wait_until_up()
    addresses = {"pid": os.getpid(), "prefect": f"http://127.0.0.1:{port}", "mlflow": shown}
    with atomic(UI) as temporary:
        temporary.write_text(json.dumps(addresses | {"prefect_api": f"http://127.0.0.1:{port}/api"}))
    stack.callback(UI.unlink, missing_ok=True)
    print(f"Prefect  {addresses['prefect']}")
    print(f"MLflow   {addresses['mlflow']}")
    print("`oxa run` finds it by itself; a shell for `prefect` commands, such as a worker's, needs:")
    print(f"export PREFECT_API_URL={addresses['prefect']}/api")
    print("Ctrl-C ends both, and breaks a run that is under way", flush=True)
    while True:
        for server in servers:
            server.check()
        time.sleep(0.5)


def _prefect(port: int, *, embedded: bool) -> ProjectServer:
    """Prefect's server. The embedded one leaves out what serves pages and schedules; flows need all the rest."""
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    own, api = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/api"
    environment: dict[str, str | None] = {
        # by default any page that is open in a browser here may start flows; the UI's may, under both its names
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{own},http://localhost:{port}"
    }
    if embedded:
        command += ["--no-ui", "--no-scheduler", "--no-late-runs"]
        # block types are for the pages and cost half a second; memoized, the server of `oxa ui` would skip them, too
        environment |= {
            "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
            "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        }
        return PrefectServer("Prefect", "server.log", command, f"{api}/health", environment)
    environment |= {
        "PREFECT_API_URL": None,
        "PREFECT_UI_API_URL": api,  # else the pages ask the port of Prefect's settings
        "PREFECT_UI_STATIC_DIRECTORY": str(FOLDER / "pages"),  # else inside the installed package
    }
    return PrefectServer("Prefect", "ui-prefect.log", command, f"{api}/health", environment)


def _mlflow(port: int, tracking: str) -> ProjectServer:
    """MLflow's server over the project's database.

    A run that was logged to the database directly has its artifacts in `mlruns/`, as a path, and the server reads
    them from there. Experiments that the server makes are to have theirs at the same place: behind the server's own
    address they would be out of reach for whoever opens the database.
    """
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--default-artifact-root", str(PROJECT / "mlruns")]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": tracking,  # as an option its password would show in `ps`
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return ProjectServer("MLflow", "ui-mlflow.log", command, f"http://127.0.0.1:{port}/health", environment)


@contextmanager
def _only_ui() -> Iterator[None]:
    """Holds the lock that says that this project's `oxa ui` is up."""
    FOLDER.mkdir(exist_ok=True)
    with UI_LOCK.open("a") as lock:
        if not _lock(lock, fcntl.LOCK_EX):
            other = _read_ui()
            where = (
                f"at {other['prefect']} and {other['mlflow']} (process {other['pid']})"
                if other
                else "starting"
            )
            raise UserError(f"oxa ui already runs here: {where}")
        UI.unlink(missing_ok=True)  # left by one that was killed
        yield


def _api_of_ui() -> str | None:
    """Address of the API of this project's `oxa ui`; None where it is not up or does not answer."""
    with contextlib.suppress(FileNotFoundError), UI_LOCK.open() as lock:
        addresses = _read_ui()
        if addresses and not _lock(lock, fcntl.LOCK_SH) and answers(f"{addresses['prefect_api']}/health"):
            return addresses["prefect_api"]
    return None


def _lock(file: IO[str], kind: int) -> bool:
    """Whether the lock could be had; it is gone when the file is closed."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def mlflow_pages() -> str:
    """Address of MLflow's pages: a remote server's, or `oxa ui`'s, where it runs or would run."""
    address = connection.shown(connection.uri())
    if address.startswith(("http://", "https://")):
        return address
    return (_read_ui() or {}).get("mlflow", f"http://127.0.0.1:{MLFLOW_PORT}")


def _read_ui() -> dict[str, str] | None:
    with contextlib.suppress(FileNotFoundError):
        addresses: dict[str, str] = json.loads(UI.read_text())
        return addresses
    return None


def check_answers(url: str) -> None:
    """Raises ConfigError where the configured API does not answer or is too old for this client.

    Asked as Prefect itself asks, with its keys.
    """
    import httpx
    from prefect.client.orchestration import get_client

    def ask() -> tuple[Exception | None, str | None]:
        with get_client(httpx_settings={"timeout": ANSWER}, sync_client=True) as client:
            fault = client.api_healthcheck()
            if fault is None:
                client.raise_for_api_version_mismatch()  # pages answer /health, too: theirs is not an API's
            return fault, None if fault else _older(client.api_version(), client.client_version())

    try:
        fault, old = within(4 * ANSWER, ask)
    except (RuntimeError, ValueError, TimeoutError, httpx.HTTPError) as error:
        fault, old = error, None
    if fault:
        raise ConfigError(
            f"PREFECT_API_URL {url}: no Prefect API answers ({' '.join(str(fault).split())[:200]}); start its server "
            "and mind the /api at the end, or unset it: `oxa run` then starts a server of its own"
        )
    if old:
        raise ConfigError(f"PREFECT_API_URL {url}: {old}")


def _older(server: str, client: str) -> str | None:
    """What to say of a server that is older than this client, some of whose requests it does not know."""
    theirs, ours = (
        [int(number) for number in re.findall(r"\d+", version)[:2]] for version in (server, client)
    )
    if theirs >= ours:
        return None
    return (
        f"its Prefect server is of version {server[:40]}, older than the {client} here; update the server, or unset "
        "the address: `oxa run` then starts a server of its own"
    )


def _port(name: str, wanted: int) -> int:
    """The wanted port, or the next free one, and then says so."""
    port = free_port(wanted)
    if port != wanted:
        print(f"port {wanted} is taken; the {name} server listens on {port}", flush=True)
    return port
