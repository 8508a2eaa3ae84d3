"""A checkpoint's model card in the Hugging Face hub's format: YAML between two lines of dashes, then Markdown.

The front matter holds what the hub reads (base_model, datasets, model-index), the text what a person asks: how good it
is, with intervals, which arm and settings made it, from which data, and how to make it again. The licence is left out,
for the user to name: it hangs on the base's, on the data's, and on what they want.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from oxa.comparison.measures import Row, pass_at
from oxa.comparison.outcomes import RL
from oxa.report.markdown import aligned, cell
from oxa.report.wording import listed

PAPER = "https://arxiv.org/abs/2603.16206"
NO_LICENSE = (
    "# license: yours to name, as the licences of the base and of the data allow (`license: apache-2.0`, say)"
)


@dataclass(frozen=True)
class Result:
    """What the checkpoint alone reaches on a benchmark."""

    benchmark: str
    dataset: str | None
    """Its id on the hub, where it comes from there."""
    numbers: Row
    """num_problems, num_samples N, and pass_at_1 and pass_at_N with the ends of their intervals."""


@dataclass(frozen=True)
class Facts:
    """All that a card tells."""

    arm: str
    seed: str
    stage: str
    """As DVC calls it, for example `train@sft-0`."""
    base: str
    """The base in words."""
    base_model: str | None
    """Its id on the hub, where it comes from there."""
    datasets: Sequence[str]
    """Ids on the hub of what it was trained on."""
    sources: Sequence[str]
    """All sources of the teacher's solutions, as a person may know them."""
    settings: Mapping[str, Any]
    """What params.yaml set for the arm, by key; empty where it is not known."""
    suffix: str | None
    """What follows every problem in the user's turn, where it is known."""
    results: Sequence[Result]
    confidence: float
    comparison: str | None
    """The report's table of all arms, Markdown."""
    data: Mapping[str, str]
    """DVC md5 of each file or folder that it was made from."""
    md5: str
    """DVC md5 of the checkpoint's folder as it was trained."""
    commit: str | None
    dirty: bool
    """Whether files that git knows differed from the commit."""
    made_with: Mapping[str, str]
    """DVC md5 of dvc.lock and params.yaml."""


def text(facts: Facts) -> str:
    """The whole README.md."""
    origin = facts.base_model and f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
    lines = [
        *("---", *_front_matter(facts), "---", ""),
        *(f"# {facts.arm}, seed {facts.seed}", ""),
        f"A language model for mathematical reasoning, fine-tuned from {origin or facts.base} as the arm `{facts.arm}` "
        f"of a comparison of training data and losses: OXA, offline exploration-aware fine-tuning ([paper]({PAPER})).",
        "",
    ]
    if facts.suffix is not None:
        shown = f", followed by this text:\n\n{_block(facts.suffix)}" if facts.suffix else " alone."
        lines += [f"It expects its chat template, the user's turn being the problem{shown}", ""]
    lines += [*_results(facts), *_settings(facts), *_data(facts), *_making(facts)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _front_matter(facts: Facts) -> list[str]:
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if facts.base_model:
        front |= {"base_model": facts.base_model, "base_model_relation": "finetune"}
    if facts.datasets:
        front["datasets"] = list(facts.datasets)
    front["tags"] = ["oxa", "math", "reasoning"]
    if facts.results:
        results = [_indexed(result) for result in facts.results]
        front["model-index"] = [{"name": f"{facts.arm}-{facts.seed}", "results": results}]
    return [NO_LICENSE, *yaml.safe_dump(front, sort_keys=False, allow_unicode=True).splitlines()]


def _indexed(result: Result) -> dict[str, Any]:
    """A result as the hub's model-index has it; percentages."""
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": result.dataset or result.benchmark, "name": result.benchmark},
        "metrics": [
            {"type": metric.title, "name": metric.title, "value": round(100 * result.numbers[metric.name], 2)}
            for metric in map(pass_at, dict.fromkeys((1, result.numbers["num_samples"])))
        ],
    }


def _results(facts: Facts) -> list[str]:
    lines = ["## Results", ""]
    if facts.results:
        header = ["benchmark", "problems", "samples a problem", "pass@1, %", "pass@samples, %"]
        rows = [
            [
                result.benchmark,
                *(str(result.numbers[key]) for key in ("num_problems", "num_samples")),
                *(cell(result.numbers, pass_at(k)) for k in (1, result.numbers["num_samples"])),
            ]
            for result in facts.results
        ]
        level = f"{facts.confidence:.0%}"
        lines += [f"This checkpoint alone; {level} intervals, bootstrap over problems and samples:", ""]
        lines += [*aligned(header, rows), ""]
    else:
        lines += ["It was not evaluated when it was registered.", ""]
    if facts.comparison:
        means = "the means of its seeds, of which this checkpoint is one"
        if f"{facts.arm}{RL}" in facts.comparison:
            means += f"; `{facts.arm}{RL}` is what became of them by RL, which this checkpoint has not been through"
        lines += [f"In what follows `{facts.arm}` stands for {means}.", ""]
        lines += [re.sub(r"(?m)^#", "###", facts.comparison.strip()), ""]
    return lines


def _settings(facts: Facts) -> list[str]:
    lines = ["## The arm and its settings", ""]
    if not facts.settings:
        return [*lines, "Its registration did not keep them; params.yaml of its commit may have them.", ""]
    nested: dict[str, Any] = {}
    for key, value in facts.settings.items():
        *parents, last = key.split(".")
        section = nested
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    dumped = yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)
    return [*lines, "What params.yaml set; all else had its default.", "", "```yaml", dumped + "```", ""]


def _data(facts: Facts) -> list[str]:
    lines = ["## Data", ""]
    if facts.sources:
        lines += [f"Problems and teacher solutions: {listed([f'`{name}`' for name in facts.sources])}.", ""]
    rows = [[f"`{_plain(path)}`", f"`{md5}`"] for path, md5 in facts.data.items()]
    return [*lines, *aligned(["made from", "DVC md5"], rows), ""]


def _making(facts: Facts) -> list[str]:
    hashes = {"the checkpoint's folder as it was trained": facts.md5}
    hashes |= {f"`{name}` when it was registered": md5 for name, md5 in facts.made_with.items()}
    rows = [["git commit", f"`{facts.commit or 'none'}`{', with uncommitted changes' * facts.dirty}"]]
    rows += [[name, f"md5 `{md5}`"] for name, md5 in hashes.items()]
    commands = [f"git checkout {facts.commit}"] * bool(facts.commit) + [f"oxa run {facts.stage}"]
    return [
        *("## How it was made", "", *aligned(["what", "which"], rows), ""),
        *("```sh", *commands, "```", ""),
        "makes it again from the same sources, to the last bit on a processor of the same kind.",
    ]


def _block(text: str) -> str:
    return f"```json\n{json.dumps(text, ensure_ascii=False)}\n```"


def _plain(text: str) -> str:
    return text.replace("|", "\\|")
