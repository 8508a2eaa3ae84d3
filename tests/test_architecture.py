"""Fences: which way imports point, and that dvc.yaml says of every stage what the code does."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from oxa import guard
from oxa.cli import STAGES

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "oxa").glob("*.py"))
STAGE_MODULES = {stage.module.removeprefix("oxa.") for stage in STAGES.values()}
GRAPH: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def imports(path: Path) -> set[str]:
    """Full names of everything that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_orchestrators_stay_out_of_the_research_modules(path: Path):
    allowed = {"mlflow"} if path.stem in ("shipment", "tracking", "registry", "lineage") else set()
    assert roots(path) & {"prefect", "dvc", "mlflow"} <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_stages_never_import_stages(path: Path):
    if path.stem not in ("cli", "commands"):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("oxa.")}
        assert not ours & (STAGE_MODULES | {"cli"})


@pytest.mark.parametrize("name", ["losses", "metrics"])
def test_losses_and_metrics_import_nothing_of_ours_and_touch_no_files(name: str):
    found = roots(ROOT / "oxa" / f"{name}.py")
    assert not found & {"oxa", "pathlib", "os", "io", "json", "pyarrow"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_the_command_line_reads_its_arguments(path: Path):
    if path.stem not in ("cli", "commands", "lifeline"):  # the last is a process of its own
        assert "argparse" not in roots(path)
        assert "sys.argv" not in path.read_text()


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = {"torch", "transformers", "trl", "datasets", "dvc", "mlflow", "prefect"}
    code = f"import sys, oxa.cli; print({heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    )


def words_of(entry: dict[str, Any]) -> list[str]:
    """What follows `oxa` on a stage's command line."""
    words = shlex.split(entry["cmd"])
    assert words[:2] == ["exec", "oxa"]
    return words[2:]


def test_graph_and_command_line_hold_the_same_stages():
    assert {words_of(entry)[0] for entry in GRAPH.values()} == set(STAGES)


def paths_of(entries: list[Any]) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


@pytest.mark.parametrize("name", GRAPH)
def test_a_stages_dependencies_are_the_modules_and_sections_that_it_uses(name: str):
    entry = GRAPH[name]
    stage = STAGES[words_of(entry)[0]]
    used = {f"oxa/{path.name}" for path in guard.imported_modules(stage.module)}
    assets = {f"oxa/{asset}" for asset in stage.assets}
    assert {dep for dep in entry["deps"] if dep.startswith("oxa/")} == used | assets
    assert {re.sub(r"\$\{item\.(\w+)\}", r"{\1}", key) for key in entry["params"]} == set(stage.sections)


@pytest.mark.parametrize("name", GRAPH)
def test_a_stages_paths_are_the_ones_on_its_command_line(name: str):
    entry = GRAPH[name]
    words = words_of(entry)
    stage = STAGES[words[0]]
    options = {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in zip(words[1::2], words[2::2], strict=True)
    }
    assert set(options) == {*stage.items, *stage.inputs, *stage.written}
    assert paths_of(entry["outs"]) | paths_of(entry["metrics"]) == {
        options[output] for output in stage.written
    }
    inputs = {options[option] for option in stage.inputs}
    data = {dep for dep in entry["deps"] if not dep.startswith("oxa/")}
    gathered = {options[option] for option in stage.gathers}  # metrics hold the report's own summary, too
    parts = {dep for dep in data if any(dep.startswith(f"{folder}/") for folder in gathered)}
    assert bool(parts) == bool(gathered)
    assert data - parts == (inputs - gathered) | (
        {"${sources.folder}"} if "sources" in stage.sections else set()
    )


def test_sections_that_a_stage_takes_match_its_run_functions_parameters():
    for stage in STAGES.values():
        tree = ast.parse((ROOT / "oxa" / f"{stage.module.removeprefix('oxa.')}.py").read_text())
        run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
        assert len(run.args.args) == len(stage.sections), stage.module
        expected = {*stage.inputs, *stage.outputs, "scratch", "log", *({"seed"} & set(stage.items))}
        assert {argument.arg for argument in run.args.kwonlyargs} == expected, stage.module


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *(ROOT / "presets").glob("*.yaml")], ids=lambda path: path.stem
)
def test_every_params_file_holds_the_keys_that_the_graph_tracks(path: Path):
    params = yaml.safe_load(path.read_text())
    for entry in GRAPH.values():
        for arm in params["arms"]:
            for key in entry["params"]:
                value = params
                for name in key.replace("${item.arm}", arm).split("."):
                    assert name in value, f"{path.name}: {key}"
                    value = value[name]
