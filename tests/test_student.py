"""The student that comes with the repository: its files and its recipe are those that are named."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import yaml

from oxa.config.params import load_params

ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "students" / "small-world"


def test_its_files_are_those_of_its_readme() -> None:
    named = dict(re.findall(r"([0-9a-f]{64})  (\S+)", (STUDENT / "README.md").read_text()))
    made = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in STUDENT.iterdir()}
    del made["README.md"]
    assert {name: digest for digest, name in named.items()} == made


def test_its_recipe_differs_from_params_yaml_in_the_base_alone() -> None:
    recipe, params = (
        yaml.safe_load((ROOT / name).read_text())
        for name in ("presets/small-world-from-scratch.yaml", "params.yaml")
    )
    assert params.pop("base") == {"kind": "checkpoint", "model": "students/small-world"}
    assert recipe.pop("base")["seed"] == recipe["sources"]["world"]["seed"]
    assert recipe == params
    assert load_params(ROOT / "params.yaml").base.kind == "checkpoint"
