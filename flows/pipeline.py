"""The flow: every stage of DVC's graph as a Prefect task, side by side where the graph allows.

    oxa run [STAGE …]            or: python -m flows.pipeline [STAGE …]

DVC decides what is done and keeps the results; Prefect orders, retries, logs and shows. A task ends as `Cached` where
DVC found the stage unchanged or restored its outputs, as `Completed` where it ran. Prefect's own cache is off: it does
not look at the disk.
"""

from __future__ import annotations

import base64
import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import UUID

import httpx
from prefect import flow, get_client, get_run_logger, runtime, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.states import Completed, Crashed, Failed
from pydantic import Field

from flows import bridge, lockfile, placement, schedule, servers, warm, workspace
from flows.terminal import Terminal
from oxa.config.operations import Flow, Tracking
from oxa.config.params import Params, load_params
from oxa.errors import UserError
from oxa.runtime import files, guard, progress
from oxa.tracking import connection, outbox

PARAMS = Path("params.yaml")
SUMMARY = Path("metrics/summary.json")
UNCHANGED = "DVC: unchanged"
FEW = 2  # stages, for which a warm process would cost more than it spares
PROGRESS_EVERY = 5.0  # seconds before a stage has a progress artifact, and between two updates of it
DRAIN = 30.0  # seconds at most to wait for MLflow at the end; what is unsent then is sent later


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(
    name: str,
    changed: bool,
    force: bool,
    environment: dict[str, str],
    children: bridge.Children,
    terminal: Terminal,
) -> State[Any]:
    """One stage; `changed` is false where neither it nor anything before it has changed."""
    if not changed:
        return Completed(name="Cached", message=UNCHANGED)
    logger = get_run_logger()
    shown = _Progress(name)

    def on_line(line: str) -> None:
        if reading := progress.read(line):
            terminal.progress(name, reading)
            shown.update(reading)
        else:
            logger.info(line)

    did = children.repro(name, force=force, environment=environment, on_line=on_line)
    shown.finish()
    if did == "run":
        return Completed(message="DVC: run")
    return Completed(name="Cached", message=f"DVC: {did}")


def _worth_another_try(task: Any, task_run: Any, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    again = isinstance(error, bridge.StageFailed) and error.retry
    if again:
        get_run_logger().warning("%s; trying again", error)
    return again


class _Progress:
    """A stage's progress artifact; short stages have none. Without a key it shows with its run, and only there.

    A server that does not take it costs the artifact, not the stage.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._updated = time.monotonic()

    def update(self, reading: progress.Reading) -> None:
        if time.monotonic() - self._updated < PROGRESS_EVERY:
            return
        self._updated = time.monotonic()
        self._show(float(reading.percent), f"{self._stage}: {reading.what}")

    def finish(self) -> None:
        if self._artifact is not None:
            self._show(100.0, f"{self._stage}: done")

    def _show(self, percent: float, description: str) -> None:
        try:
            if self._artifact is None:
                made = create_progress_artifact(percent, description=description)
                self._artifact = cast(UUID, made)  # awaitable only where it is called from a coroutine
            else:
                update_progress_artifact(self._artifact, percent, description=description)
        except (httpx.HTTPError, PrefectException) as error:
            get_run_logger().warning("no progress shown: %s", error)
            self._updated = float("inf")


@flow(name="oxa", persist_result=False)
def pipeline(
    targets: list[str] | None = None,
    max_workers: Annotated[int, Field(ge=1)] | None = None,
    accelerators: Annotated[int, Field(ge=1)] | None = None,
    force: bool = False,
    register_models: bool = True,
) -> State[Any]:
    """Brings the targets, by default all stages, up to date; after the report, registers the checkpoints.

    Args:
        targets: stages, or patterns such as `train@*`; with each, all that it needs.
        max_workers: stages at the same time; by default flow.max_workers of params.yaml.
        accelerators: of these, stages that load a model; by default flow.accelerators.
        force: run stages even where nothing has changed.
        register_models: put the checkpoints into the model registry and let the gate choose.
    """
    try:
        params = load_params(PARAMS)
        with workspace.held(f"the flow run {runtime.flow_run.name}"):
            if mended := lockfile.mend():
                get_run_logger().warning("%s", mended)
            _claim_and_reconcile()
            settings = params.flow.model_copy(
                update={
                    name: value
                    for name, value in (("max_workers", max_workers), ("accelerators", accelerators))
                    if value is not None
                }
            )
            return _run(params, settings, targets or [], force, register_models)
    except UserError as error:
        return Failed(message=str(error))


def _run(params: Params, settings: Flow, targets: list[str], force: bool, register: bool) -> State[Any]:
    nodes = bridge.plan(targets)
    placement.check([node.name for node in nodes], settings.placement)
    terminal = Terminal(len(nodes))
    begun, since = time.monotonic(), time.time()
    if force:
        nodes = [replace(node, changed=True) for node in nodes]
    with terminal, outbox.sending(params.tracking), _stages_environment(nodes, settings) as environment:
        states = _walk(nodes, settings, force, terminal, bridge.Children(environment))
        failed = {name: state for name, state in states.items() if not state.is_completed()}
        if params.tracking.enabled and (unsent := outbox.wait_until_sent(seconds=DRAIN, since=since)):
            terminal.say(unsent)
        if not failed and "report" in states:
            _show_report(params.tracking)
            if register and params.tracking.enabled:
                _register(params, terminal)
    closing = _closing(states, len(nodes), time.monotonic() - begun)
    terminal.say(closing)
    if "report" in states and not failed:
        terminal.say(files.read_json(SUMMARY)["answer"]["sentence"])
    if failed:
        return Failed(message="\n".join(f"stage {name}: {state.message}" for name, state in failed.items()))
    return Completed(message=closing)


@contextmanager
def _stages_environment(nodes: list[bridge.Node], settings: Flow) -> Iterator[dict[str, str]]:
    """What stages start with: where there are several to run, PATH begins with the `oxa` of a warm process."""
    own = bridge.own_environment()
    if placement.is_elsewhere(settings.placement) or not (
        settings.warm and warm.possible() and len(schedule.stale(nodes)) > FEW
    ):
        yield own
        return
    if settings.max_workers > 1:  # libraries read it once; as in schedule.environment
        own.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warm.stages(own, Path.cwd()) as environment:
        yield environment


def _walk(
    nodes: list[bridge.Node], settings: Flow, force: bool, terminal: Terminal, children: bridge.Children
) -> dict[str, State[Any]]:
    """Runs the stages; returns the end state of each that was run."""
    elsewhere = placement.is_elsewhere(settings.placement)
    accelerators = settings.max_workers if elsewhere else settings.accelerators
    plan = schedule.Schedule(nodes, max_workers=settings.max_workers, accelerators=accelerators)
    gpus = schedule.devices()
    run_id = f"{runtime.flow_run.name}-{str(runtime.flow_run.id)[:8]}"
    common = {"OXA_PIPELINE_RUN": run_id, progress.VARIABLE: "1"}
    stage: Any = run_stage.with_options(
        retries=settings.retries,
        retry_delay_seconds=settings.retry_delay,
        retry_condition_fn=_worth_another_try,
    )
    futures: dict[str, PrefectFuture[Any]] = {}
    states: dict[str, State[Any]] = {}
    rows: list[dict[str, Any]] = []
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    try:
        while plan.num_left:
            for node, slot in plan.ready():
                # what DVC restored may be other content than the plan has seen
                fresh = any(states[name].message != UNCHANGED for name in node.upstream)
                sharing = 1 if elsewhere else plan.sharing(node.name)
                environment = common | schedule.environment(slot, accelerators, sharing, gpus)
                terminal.started(node.name)
                futures[node.name] = stage.submit(
                    node.name,
                    node.changed or fresh,
                    force,
                    environment,
                    children,
                    terminal,
                    wait_for=[futures[name] for name in sorted(node.upstream)],
                )
                futures[node.name].add_done_callback(partial(_put, ended, node.name))
            name = ended.get()
            state = states[name] = _end_state(futures[name])
            plan.ended(name, state.is_completed())
            message = (state.message or "").strip()
            seconds = terminal.ended(name, _shown(state))
            if not state.is_completed():
                terminal.say("\n".join(f"    {line}" for line in message.splitlines()))
            rows.append({"stage": name, "state": state.name, "seconds": round(seconds, 1), "DVC": message})
    except BaseException:
        children.end()
        raise
    for name, cause in plan.given_up.items():
        terminal.given_up(name, cause)
        rows.append({"stage": name, "state": "not run", "seconds": 0.0, "DVC": f"stage {cause} failed"})
    create_table_artifact(rows, key="stages", description="What DVC did, stage by stage.")
    return states


def _put(ended: queue.SimpleQueue[str], name: str, _: PrefectFuture[Any]) -> None:
    ended.put(name)


def _end_state(future: PrefectFuture[Any]) -> State[Any]:
    """The task's end state; its message is the failed stage's own words."""
    future.wait()
    state = future.state
    if state.is_failed():
        error = state.result(raise_on_failure=False)
        if isinstance(error, bridge.StageFailed):
            return state.model_copy(update={"message": str(error)})
    return state


def _shown(state: State[Any]) -> str:
    if not state.is_completed():
        return "FAILED"
    return "cached (restored)" if "restored" in (state.message or "") else (state.name or "").lower()


def _closing(states: Mapping[str, State[Any]], num_stages: int, seconds: float) -> str:
    num_cached = sum(state.name == "Cached" for state in states.values())
    num_failed = sum(not state.is_completed() for state in states.values())
    counts = [f"{len(states) - num_cached - num_failed} run", f"{num_cached} cached"]
    if num_failed:
        counts += [f"{num_failed} failed", f"{num_stages - len(states)} not run"]
    return f"{num_stages} stages: {', '.join(counts)}; {seconds:.1f} s"


def _show_report(settings: Tracking, folder: Path = Path("reports")) -> None:
    """The report's page, the comparison and its plots, as artifacts of the flow run."""
    page = (folder / "index.html").resolve()
    create_link_artifact(
        _address_in_mlflow(settings, folder)
        or page.as_uri(),  # no browser follows a link from http to a file
        link_text="the report",
        key="report",
        description=f"The page that shows the whole run; on its machine: {page}",
    )
    create_markdown_artifact(
        (folder / "table.md").read_text(encoding="utf-8"),
        key="comparison",
        description="The arms side by side.",
    )
    for path in sorted(folder.glob("*.png")):
        picture = base64.b64encode(path.read_bytes()).decode()
        create_image_artifact(
            f"data:image/png;base64,{picture}",
            key=f"plot-{path.stem.replace('_', '-').lower()}",
            description=f"{path} of this run",
        )


def _address_in_mlflow(settings: Tracking, folder: Path) -> str | None:
    """Where MLflow's pages show this very report, whichever run wrote it; None where it is not there."""
    if not settings.enabled:
        return None
    try:
        tags = {"oxa.stage": "report", f"dvc.out.{folder}": guard.dvc_md5(folder)}
        runs = [run.info for run in connection.find_runs(settings.experiment, tags)]
    except UserError:
        return None
    newest = next((run for run in runs if run.status == "FINISHED"), None)
    if newest is None:
        return None
    return (
        f"{servers.mlflow_pages()}/#/experiments/{newest.experiment_id}/runs/{newest.run_id}"
        f"/artifacts/{folder.name}/index.html"
    )


def _register(params: Params, terminal: Terminal) -> None:
    """Registers the checkpoints. MLflow being out of reach does not fail a run whose stages succeeded."""
    from flows import promote

    try:
        outcome = promote.register(params)
    except UserError as error:
        terminal.say(f"not registered: {error}; `oxa register` does it later")
        return
    terminal.say("\n".join(outcome.sentences))
    create_markdown_artifact(outcome.table, key="registry", description="What the gate decided.")


def _claim_and_reconcile() -> None:
    """Marks this run as this folder's, and ends the records of earlier ones that were killed.

    The folder is held by this run, so whatever else of it still counts as running was left so by a kill.
    """
    own = UUID(str(runtime.flow_run.id))
    with get_client(sync_client=True) as client:
        client.update_flow_run(own, tags={*runtime.flow_run.tags, workspace.tag()})
        alive = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
        left = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[workspace.tag()]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=alive)),
            )
        )
        for flow_run in left:
            if flow_run.id == own:
                continue
            crashed: State[Any] = Crashed(
                message="its process was killed; found by the next run of this folder"
            )
            tasks = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])),
                task_run_filter=TaskRunFilter(
                    state=TaskRunFilterState(type=TaskRunFilterStateType(any_=alive), name=None)
                ),
            )
            for task_run in tasks:
                client.set_task_run_state(task_run.id, crashed, force=True)
            client.set_flow_run_state(flow_run.id, crashed, force=True)
