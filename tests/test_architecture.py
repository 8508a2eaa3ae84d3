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

from oxa.runtime import modules
from oxa.runtime.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path for folder in ("oxa", "flows") for path in (ROOT / folder).rglob("*.py"))
GRAPH: dict[str, dict[str, Any]] = {
    name: entry.get("do", entry)
    for name, entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}

# Which room imports which, from the roof to the ground: rooms below it alone, and of these the ones named.
# `errors`, `hashes` and `prompts` are files of the ground floor that every room may use.
ARROWS = {
    "flows": "cli stages study report forecast comparison tracking grading data model records runtime config",
    "cli": "data grading tracking runtime config",  # stages it imports by name, when they run
    "stages": "report comparison rl training selection generation model data grading records runtime config",
    "study": "report comparison data records runtime config",
    "report": "comparison records runtime",
    "forecast": "training generation model data records config",
    "comparison": "records config",
    "rl": "training generation model grading runtime config",
    "training": "model records runtime config",
    "generation": "model runtime config",
    "model": "data runtime config",
    "data": "grading records config",
    "grading": "answers records runtime config",
    "answers": "",
    "selection": "records runtime config",
    "records": "runtime",
    "tracking": "runtime config",
    "runtime": "",
    "config": "",
}
GROUND = {"errors", "hashes", "prompts"}
MLFLOW = {
    f"tracking/{name}.py"
    for name in ("connection", "delivery", "lineage", "registration", "registry", "sender")
}
ARGUMENTS = {
    "oxa/cli.py",
    "flows/cli.py",
    "flows/commands.py",
    "oxa/runtime/child.py",
    "flows/warm.py",
    "flows/node.py",
    "flows/probe.py",
    "flows/ray_task.py",
}  # the last three: processes of their own


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


def room(name: str) -> str:
    """`oxa.records.tables` lies in `records`, `oxa.errors` in `errors`, `flows.bridge` in `flows`."""
    first, *rest = name.split(".")
    return first if first == "flows" or not rest else rest[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def rooms_used(name: str) -> set[str]:
    """Rooms of which the files of a room import something."""
    used = {
        room(imported)
        for path in MODULES
        if room(name_of(path)) == name
        for imported in imports(path)
        if imported.startswith(("oxa.", "flows."))
    }
    return used - {name} - GROUND


def test_every_room_stands_in_the_table_of_arrows():
    folders = {path.parent.name for path in MODULES if path.parent.parent.name == "oxa"}
    assert folders | {"flows", "cli"} == set(ARROWS)
    files = {path.stem for path in MODULES if path.parent.name == "oxa"}
    assert files == GROUND | {"cli", "__init__"}


@pytest.mark.parametrize("name", ARROWS)
def test_a_room_imports_the_rooms_that_the_table_names(name: str):
    assert rooms_used(name) == set(ARROWS[name].split())


def test_no_arrow_runs_upward():
    order = list(ARROWS)
    for name, below in ARROWS.items():
        assert all(order.index(other) > order.index(name) for other in below.split()), name


def test_the_ground_floor_stands_on_nothing_but_errors():
    for path in MODULES:
        if path.parent.name == "oxa" and path.stem in GROUND:
            assert {room(name) for name in imports(path) if name.startswith("oxa.")} <= {"errors"}


def test_folders_have_few_files_and_files_few_lines():
    for path in MODULES:
        assert len(path.read_text().splitlines()) <= 400, path
        assert path.name != "__init__.py" or len(path.read_text().splitlines()) < 20, "no re-exports"
    for folder in {path.parent for path in MODULES if path.parent.parent.name == "oxa"}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 11 or folder.name in ("config", "stages"), (
            f"{folder}: these two have one a section"
        )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_orchestrators_stay_out_of_the_research_modules(path: Path):
    if path.is_relative_to(ROOT / "oxa"):
        allowed = {"mlflow"} if str(path.relative_to(ROOT / "oxa")) in MLFLOW else set()
        assert roots(path) & {"prefect", "dvc", "mlflow"} <= allowed


def test_stages_never_import_stages():
    for path in (ROOT / "oxa" / "stages").glob("*.py"):
        assert "stages" not in {room(name) for name in imports(path) if name.startswith("oxa.")}, path


@pytest.mark.parametrize("path", ["training/losses.py", "comparison/estimators.py"])
def test_losses_and_estimators_import_nothing_of_ours_and_touch_no_files(path: str):
    assert not roots(ROOT / "oxa" / path) & {"oxa", "pathlib", "os", "io", "json", "pyarrow"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_reads_its_arguments(path: Path):
    if str(path.relative_to(ROOT)) not in ARGUMENTS:
        assert "argparse" not in roots(path)
        assert "sys.argv" not in path.read_text()


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = {"torch", "transformers", "trl", "datasets", "dvc", "mlflow", "prefect"}
    code = f"import sys, flows.cli; print({heavy} & set(sys.modules))"
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
    used = set(modules.imported_modules(stage.module))
    assets = {f"oxa/{asset}" for asset in stage.assets}
    assert {dep for dep in entry["deps"] if dep.startswith("oxa/")} == used | assets
    assert {re.sub(r"\$\{(item\.\w+|key)\}", "{}", key) for key in entry.get("params", [])} == {
        re.sub(r"\{\w+\}", "{}", section) for section in stage.sections
    }


@pytest.mark.parametrize("name", GRAPH)
def test_no_value_of_params_stands_in_a_command_that_a_shell_reads(name: str):
    assert re.fullmatch(r"[\w@/.\- ]+", GRAPH[name]["cmd"].strip())


def placeholders(path: str) -> str:
    """What a command calls it: `models/${item.arm}-${item.seed}` is `models/@key`."""
    both = path.replace("${item.arm}-${item.seed}", "@key").replace("${item}", "@from")
    return re.sub(r"\$\{(item\.\w+|key)\}", "@key", both)


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
    # what an arm of two passes goes on from, it depends on by way of `begin`
    options = {option: re.sub("@(arm|seed)", "@key", value) for option, value in options.items()}
    options = {option: value.replace("@start", "base") for option, value in options.items()}
    written = paths_of(entry["outs"]) | paths_of(entry.get("metrics", []))
    assert {placeholders(path) for path in written} == {options[output] for output in stage.written}
    inputs = {options[option] for option in stage.inputs}
    data = {placeholders(dep) for dep in entry["deps"] if not dep.startswith("oxa/")}
    gathered = {options[option] for option in stage.gathers}  # metrics hold the report's own summary, too
    parts = {dep for dep in data if any(dep.startswith(f"{folder}/") for folder in gathered)}
    assert bool(parts) == bool(gathered)
    assert data - parts == (inputs - gathered) | (
        {"${sources.folder}"} if "sources" in stage.sections else set()
    )


def test_sections_that_a_stage_takes_match_its_run_functions_parameters():
    for stage in STAGES.values():
        tree = ast.parse((ROOT / f"{stage.module.replace('.', '/')}.py").read_text())
        run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
        assert len(run.args.args) == len(stage.sections + stage.names), stage.module
        expected = {*stage.inputs, *stage.outputs, "scratch", "log", *({"seed"} & set(stage.items))}
        assert {argument.arg for argument in run.args.kwonlyargs} == expected, stage.module


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *(ROOT / "presets").glob("*.yaml")], ids=lambda path: path.stem
)
def test_every_params_file_holds_the_keys_that_the_graph_tracks(path: Path):
    params = yaml.safe_load(path.read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, entry in GRAPH.items():
        each = re.sub(r"\$\{(.*)\}", r"\1", stages[name].get("foreach", "arms"))
        for item in value_of(params, each) or ():
            for key in entry.get("params", []):
                key = re.sub(r"\$\{(item\.arm|key)\}", item, key)
                assert value_of(params, key) is not None, f"{path.name}: {key}"


def value_of(params: dict[str, Any], key: str) -> Any:
    value: Any = params
    for name in key.split("."):
        value = (value or {}).get(name)
    return value


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_files_of_its_own_sections_alone(name: str):
    shared = {"section", "fine_tuning"}  # what several sections are made of
    own = {key.partition(".")[0] for key in STAGES[name].sections} | shared
    files = {
        file.split("/")[2] for file in modules.imported_modules(STAGES[name].module) if "/config/" in file
    }
    assert files <= {f"{section}.py" for section in own}
