"""A metric that is added to the list of measures.py alone stands in everything that the report shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_inputs import ALL, SECTION, make_inputs, run

from oxa.comparison import measures, pair
from oxa.comparison.measures import SHARE, Metric, Unit
from oxa.records import schemas, tables
from oxa.report import markdown
from oxa.runtime import files

MOSTLY_RIGHT = Metric(
    "mostly_right",
    "mostly right",
    SHARE,
    lambda num_samples, tally: 1.0 * (2 * tally.num_correct > num_samples),
    "question",
    more_is_better=True,
)
WASTED = Metric(
    "wasted_tokens",
    "tokens cut",
    Unit("", "tokens", digits=2),
    lambda _, tally: tally.mean_tokens * tally.truncated,
    more_is_better=False,
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of two arms before and after RL, with a metric of the question and one beside it more."""
    arms = {name: ALL[name] for name in ("sft", "oxa_mle")}
    made = make_inputs(
        tmp_path_factory.mktemp("metrics"), arms, num_steps=3, rl_steps=(5,), rates={"oxa_mle": 0.9}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "METRICS", [*measures.METRICS, MOSTLY_RIGHT, WASTED])
        run(made, lambda step, **values: None, list(arms))
        compared = pair.run(
            SECTION, "oxa_mle", "sft", folder=made["generations"], entropies=made["entropies"]
        )
        (made["output"] / "pair.md").write_text(markdown.pair(compared))
    return made


@pytest.fixture(scope="module")
def summary(paths: dict[str, Path]) -> dict[str, Any]:
    return files.read_json(paths["summary"])


def test_its_numbers_are_those_counted_by_hand(paths: dict[str, Path], summary: dict[str, Any]) -> None:
    right: dict[str, int] = {}
    for row in tables.read(paths["generations"] / "oxa_mle-0.parquet", schemas.GENERATIONS).to_pylist():
        right[row["problem_id"]] = right.get(row["problem_id"], 0) + (row["verdict"] == "correct")
    numbers = summary["arms"]["oxa_mle"]["world"]
    assert numbers["mostly_right"] == pytest.approx(sum(n > 4 for n in right.values()) / 80)
    assert 0 <= numbers["mostly_right_low"] < numbers["mostly_right"] < numbers["mostly_right_high"] <= 1
    assert numbers["wasted_tokens_low"] < numbers["wasted_tokens"] < numbers["wasted_tokens_high"]


def test_one_of_the_question_is_corrected_with_the_others_and_one_beside_it_is_not(
    summary: dict[str, Any],
) -> None:
    pairs = [*summary["differences"], *summary["gains"]]
    assert summary["num_comparisons"] == {"world": 5 * len(pairs)}
    row = summary["differences"]["oxa_mle"]["world"]
    assert row["mostly_right"]["p_holm"] is not None
    assert row["mostly_right"]["shown"]
    assert row["wasted_tokens"]["p_holm"] is None


def test_the_table_has_a_column_a_difference_and_a_sentence_of_it(
    paths: dict[str, Path], summary: dict[str, Any]
) -> None:
    text = (paths["output"] / "table.md").read_text()
    numbers = summary["arms"]["sft"]["world"]
    low, high = (f"{100 * numbers[f'mostly_right_{end}']:.1f}" for end in ("low", "high"))
    assert re.search(r"\| token entropy, nats +\| mostly right, % +\|", text)
    assert f"| {100 * numbers['mostly_right']:.1f} [{low}, {high}]" in text
    assert re.search(r"\| Δ token entropy, nats +\| Δ mostly right, points +\|", text)
    assert re.search(r"\| cut, % +\| tokens cut +\|", text)
    assert "Mostly right: before RL higher for oxa_mle" in " ".join(text.split())
    claims = [claim for claim in summary["answer"]["claims"] if claim["claim"] == "mostly right"]
    assert claims[0]["text"].startswith("oxa_mle: mostly right higher than sft's, +")


def test_the_page_shows_it_everywhere(paths: dict[str, Path]) -> None:
    html = (paths["output"] / "index.html").read_text()
    keys = set(re.findall(r'data-key="([^"]+)"', html))
    assert {
        "arms.oxa_mle.world.mostly_right_low",
        "arms.oxa_mle.world.wasted_tokens_high",
        "differences.oxa_mle.world.mostly_right.difference",
        "gains.sft.world.mostly_right.p_holm",
        "steps.sft.world.1.mostly_right",
    } <= keys
    assert not any("wasted_tokens" in key for key in keys if key.startswith(("differences", "gains")))
    for title in (
        "mostly right, %",
        "mostly right: Δ to sft, points",
        "mostly right: after minus before, points",
    ):
        assert f">{title}</th>" in html
    assert "Difference in mostly right on world" in html
    assert "mostly right on world" in html
    assert (paths["output"] / "plots" / "along_rl" / "mostly_right.csv").is_file()


def test_two_checkpoints_are_compared_by_it(paths: dict[str, Path]) -> None:
    text = (paths["output"] / "pair.md").read_text()
    assert re.search(r"\| mostly right, % +\|", text)
    assert re.search(r"\| tokens cut +\| \d+\.\d\d +\|", text)
