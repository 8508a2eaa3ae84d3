"""Writes docs/parameters.md: every key of params.yaml with its type, its default and its docstring in oxa/config/.

    python docs/parameters.py

A section that stands in several places is described at the first. tests/test_docs.py holds the page against this.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from oxa.config.params import Params

HEAD = """# Parameters

Every key of `params.yaml`, written by `python docs/parameters.py` from the docstrings in [oxa/config/](../oxa/config/).
A key without a default must be there. A section must be there, too, if only as `{}`; `gates`, `flow`, `tracking`,
`registry`, `plan` and `selection.ul` may be left out. NAME and N stand for a name of yours and a place in a list, none
for `null`.
"""
TYPES = {"string": "text", "boolean": "true or false", "null": "none"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
Schema = dict[str, Any]


def page() -> str:
    root = Params.model_json_schema()
    places: dict[str, list[str]] = {}  # of a section, by its name in the schema
    for path, name in _sections(root, root, ""):
        places.setdefault(name, []).append(path)
    lines = [HEAD, "## Top level", "", *_table(root)]
    for name, (path, *others) in places.items():
        schema, about = root["$defs"][name], root["$defs"][name].get("description", "")
        if not about and "." not in path:  # its module tells: Section `train`: fine-tuning of the arms.
            about = str(importlib.import_module(f"oxa.config.{path}").__doc__).partition(": ")[2].capitalize()
        kind = f" of kind `{schema['properties']['kind']['const']}`" if path == "base" else ""
        title = ", ".join(f"`{place}`" for place in (path, *others)) + kind
        level = "##" if path in ("gates.world", path.partition(".")[0]) else "###"
        lines += ["", f"{level} {title}", "", *([_prose(about), ""] if about else []), *_table(schema)]
    return "\n".join(lines) + "\n"


def _sections(root: Schema, field: Schema, path: str) -> Iterator[tuple[str, str]]:
    """(path, name in the schema) of every section of a field, each before those in it."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        yield path, name
        field = root["$defs"][name]
    for key, below in field.get("properties", {}).items():
        yield from _sections(root, below, f"{path}.{key}".strip("."))
    for below in field.get("anyOf", field.get("oneOf", [])):
        yield from _sections(root, below, path)
    if "items" in field or "propertyNames" in field:
        name = field["propertyNames"].get("const", "NAME") if "propertyNames" in field else "N"
        yield from _sections(root, _entry(field), f"{path}.{name}")


def _entry(field: Schema) -> Schema:
    """What stands in a list, or under a name."""
    several = [*field.get("prefixItems", []), *field.get("patternProperties", {}).values()]
    return several[0] if several else field.get("items") or field["additionalProperties"]


def _table(schema: Schema) -> list[str]:
    lines = ["| key | type | default | what |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        kind, about = _type(field), _prose(field.get("description", ""))
        value = field.get("default")
        dump = yaml.safe_dump if isinstance(value, float) else json.dumps  # to YAML, 5e-05 is a text
        text = dump(value).split("\n")[0]
        default = f"`{text}`" if "default" in field and kind != "section" else ""
        if kind != "section" or about:
            lines.append(" ".join(f"| `{key}` | {kind} | {default} | {about} |".split()))
    return lines


def _type(field: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if "enum" in field or "const" in field:
        return " or ".join(
            f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"
            for value in field.get("enum", [field.get("const")])
        )
    if field.get("type") in ("array", "object"):
        return f"{'list of' if field['type'] == 'array' else 'by name:'} {_type(_entry(field))}"
    bounds = [f"{sign} {field[name]:g}" for name, sign in BOUNDS.items() if field.get(name, 2**63) < 2**63]
    return f"{TYPES.get(field.get('type'), field.get('type', 'section'))} {', '.join(bounds)}".strip()


def _prose(text: str) -> str:
    """One line of Markdown, in which `<` opens no tag."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
