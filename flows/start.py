"""`oxa run`: starts the flow with a Prefect API to report to, the project's own where there is no other."""

from __future__ import annotations

import os
from pathlib import Path

from flows import servers, workspace
from oxa.config.params import load_params
from oxa.errors import ConfigError, tell


def run(
    *,
    targets: list[str],
    max_workers: int | None,
    accelerators: int | None,
    force: bool,
    register: bool,
) -> int:
    """Runs the flow to its end; returns the exit code. Raises UserError before anything has started."""
    for name, value in (("--max-workers", max_workers), ("--accelerators", accelerators)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: expected 1 or more")
    load_params(Path("params.yaml"))
    if not Path("dvc.yaml").exists():
        raise ConfigError("dvc.yaml: no such file; run in the project's folder")
    # the person at the terminal gets a line a stage; Prefect's log lines go to its interface
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with workspace.held("`oxa run`"), servers.prefect_api():
        from flows.pipeline import pipeline

        state = pipeline(
            targets=targets or None,
            max_workers=max_workers,
            accelerators=accelerators,
            force=force,
            register_models=register,
            return_state=True,
        )
    if state.is_completed():
        return 0
    error = state.result(raise_on_failure=False)
    if isinstance(error, Exception):
        raise error  # a fault of ours, which wants its traceback
    tell(str(state.message))
    return 1
