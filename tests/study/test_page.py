"""A study's tables, from generations of which it is known what they must say."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oxa.comparison import worlds
from oxa.config.report import Report
from oxa.data import world
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.runtime import files
from oxa.study import explanations, figures, mixed, page
from oxa.study.experiments import Comparison, Experiment, Explained, Hypothesis, Run, Study
from oxa.study.results import Results

SECTION = Report(resamples=200)
WORLDS, SEEDS = [4, 5, 6], [0, 1]
STUDY = Study(
    worlds=WORLDS,
    seeds=SEEDS,
    experiments={
        "first": Experiment(stages=["gates", "evaluate", "evaluate_rlvr"]),
        "second": Experiment(set={"arms": ["b"]}),
    },
    tables={
        "one": Comparison(
            rows={"plain": "first/a", "new": "second/b"}, baseline="plain", beside=["strategies"]
        ),
        "rl": Comparison(rows={"plain": "first/a", "new": "first/b"}, baseline="plain", after_rl=True),
        "pairs": Comparison(
            rows={"plain": "first/a", "new": "second/b", "old": "first/b"},
            compare={"new": "old", "old": "plain"},
        ),
    },
    hypotheses=[
        Hypothesis(table="rl", row="new", metric="pass_at_1", claim="more are solved"),
        Hypothesis(table="rl", row="new-rl", metric="pass_at_1", claim="and after RL"),
        Hypothesis(table="one", row="new", metric="token_entropy", claim="of higher entropy"),
    ],
    explained=Explained(ours="second/b", theirs="first/a"),
)
RATES = {"base": 1, "first/a": 2, "first/b": 3, "second/b": 4}
"""Of the four samples of an easy problem, how many are right in world 4; in later ones one less for a row above 3."""


def generations(seed: int, num_right: int, strategy: str) -> list[dict[str, Any]]:
    """12 problems of a world, half of them easy; on hard ones one sample less is right."""
    rows = []
    for problem in range(12):
        tier = "easy" if problem % 2 else "hard"
        for sample in range(4):
            right = sample < num_right - (tier == "hard")
            rows.append(
                {
                    "benchmark": "world",
                    "problem_id": f"w{seed}-{problem}",
                    "tier": tier,
                    "step": 0,
                    "sample_index": sample,
                    "text": world.respond(111, 222, strategy),
                    "num_tokens": 10 + sample,
                    "finish_reason": "stop",
                    "verdict": "correct" if right else "incorrect",
                    "predicted": "333",
                }
            )
    return rows


def write_answers(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """A checkpoint's generations and, one a problem, the responses that its entropy is measured on."""
    tables.write(folder / f"data/generations/{name}.parquet", rows, schemas.GENERATIONS)
    num_right = sum(row["verdict"] == "correct" for row in rows if row["tier"] == "easy") // (
        6 * len({row["step"] for row in rows})
    )
    apart = [
        {name: row[name] for name in ("benchmark", "problem_id", "tier", "step", "sample_index", "text")}
        | {"finish_reason": "stop", "num_tokens": 10, "entropy": 1.0 * num_right}
        for row in rows
        if row["sample_index"] == 0
    ]
    tables.write(folder / f"data/entropies/{name}.parquet", apart, schemas.ENTROPIES)


def right_in(seed: int, rate: int) -> int:
    return rate - (seed != 4 and rate > 3)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for every experiment, world and seed, with what a table reads."""
    root = tmp_path_factory.mktemp("experiments")
    for experiment, arms in (("first", "ab"), ("second", "b")):
        for seed in WORLDS:
            for number in SEEDS:
                folder = root / f"{experiment}-{seed}-{number}"
                write_answers(folder, "base", generations(seed, 1, "digits"))
                write_teacher(folder, seed)
                gate = {"passed": True, "rows": {"digits: share, left alone": gate_row(0.7 + seed / 100)}}
                files.write_json(folder / "metrics/evaluate/gates-world.json", {"gates": {"G2": gate}})
                for arm in arms:
                    write_arm(folder, arm, seed, number, RATES[f"{experiment}/{arm}"])
    return root


def gate_row(value: float) -> dict[str, Any]:
    return {"value": value, "margin": 0.01, "low": 0.7, "high": 0.75, "passed": value <= 0.75}


def write_teacher(folder: Path, seed: int) -> None:
    """A right solution a strategy, whose perplexities lie the farther apart the later the world; one that is wrong."""
    ids = [*world.STRATEGIES, "wrong"]
    responses = [
        {"response_id": name, "text": world.respond(111, 222, "columns" if name == "wrong" else name)}
        for name in ids
    ]
    verdicts = [
        {"response_id": name, "verdict": "incorrect" if name == "wrong" else "correct"} for name in ids
    ]
    scores = [{"response_id": name, "ppl": 1.0 + place * seed} for place, name in enumerate(ids)]
    for name, rows, schema in (
        ("responses", responses, schemas.RESPONSES),
        ("verdicts", verdicts, schemas.VERDICTS),
        ("scores", scores, schemas.SCORES),
    ):
        blank = {field.name: BLANK[str(field.type)] for field in schema}
        tables.write(folder / f"data/{name}/teacher.parquet", [blank | row for row in rows], schema)


BLANK = {"string": "", "int32": 0, "int64": 0, "float": 0.0, "double": 1.0, "bool": False}


def write_arm(folder: Path, arm: str, seed: int, number: int, rate: int) -> None:
    train = {
        "response_id": f"r{number}",
        "problem_id": "p",
        "prompt": "q",
        "completion": world.respond(111, 222, "columns" if arm == "b" else "places"),
        "objective": "ce",
        "ppl": 1.0,
        "num_tokens": 9,
        "finish_reason": "stop",
    }
    tables.write(folder / f"data/train/{arm}/ce.parquet", [train], schemas.TRAIN)
    files.write_json(
        folder / f"metrics/selection/ce/{arm}.json", {"ce": {"chosen": 160, "tokens": 7000 + seed}}
    )
    name = f"{arm}-{number}"
    write_answers(folder, name, generations(seed, right_in(seed, rate), "columns"))
    after = [
        row | {"step": step}
        for step, right in ((8, 2), (16, 4))
        for row in generations(seed, right, "columns")
    ]
    write_answers(folder, f"{name}-rl", after)
    final = {"ul_probability": 0.25} if arm == "b" else {}
    files.write_json(folder / f"metrics/train/{name}.json", {"final": final})
    files.write_json(folder / f"metrics/rlvr/{name}.json", {"temperature": 1.2})


def results(folder: Path, *experiments: str, worlds: Sequence[int] = WORLDS) -> Results:
    there = [
        Run(name, seed, number, {}, STUDY.experiments[name].stages)
        for name in experiments
        for seed in worlds
        for number in SEEDS
    ]
    return Results(STUDY, {run.name: run for run in there}, lambda run, path: folder / run.name / path)


@pytest.fixture
def both(workspace: Path) -> dict[str, str]:
    """The parts of a study that is done."""
    return page.parts(SECTION, results(workspace, "first", "second"))


def cells(text: str, first: str) -> list[str]:
    """The row of a Markdown table that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(text: str, name: str, title: str) -> dict[str, str]:
    """The cells of the row `name` under the header that begins with `title`, by column."""
    (table,) = [part for part in text.split("\n\n") if part.startswith(f"| {title} ")]
    return dict(zip(cells(table, title), cells(table, name), strict=True))


def test_numbers_are_means_over_worlds_with_intervals_over_these(both: dict[str, str]) -> None:
    text = both["one"]
    assert text.startswith(
        "3 of 3 worlds, 12 problems each, 4 samples a problem, 2 fine-tuning seeds a world; intervals over worlds"
    )
    plain, new = row(text, "plain", "row"), row(text, "new", "row")
    # plain: 2 of 4 on easy problems, 1 of 4 on hard ones; new: 4 and 3 in world 4, 3 and 2 in the others
    assert plain["pass@1, %"].startswith("37.5 [")
    found = worlds.over_worlds([0.875, 0.625, 0.625], [0.0] * 3)
    assert new["pass@1, %"] == f"70.8 [{100 * found.low:.1f}, {100 * min(1, found.high):.1f}]"
    assert new["pass@1 by world"] == "62.5 to 87.5"
    assert new["token entropy, nats"].startswith("0.333")
    assert (new["CE sequences"], new["CE tokens"], new["p of UL tokens"]) == ("160", "7005", "0.25")
    assert plain["p of UL tokens"] == "–"
    assert row(text, "base", "row")["pass@1, %"].startswith("12.5 [")


def test_a_difference_is_the_mean_of_those_in_each_world(both: dict[str, str]) -> None:
    found = worlds.over_worlds([0.5, 0.25, 0.25], [0.0] * 3)
    cells_of_row = row(both["one"], "new − plain", "difference")
    expected = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    assert cells_of_row["Δ pass@1, points"].startswith(f"{expected}, p ")
    assert cells_of_row["Δ pass@1, points"].endswith("n.s."), "three worlds, one of them far from the others"
    assert cells_of_row["spread"] == f"{100 * found.spread:.1f}"
    assert cells_of_row["worlds ahead"] == "3 of 3"


def test_what_differs_nowhere_has_no_interval(both: dict[str, str]) -> None:
    assert row(both["rl"], "new − plain", "difference")["Δ pass@1, points"] == "–"
    assert row(both["rl"], "plain", "row")["pass@1, %"].startswith("37.5 [")
    assert row(both["rl"], "plain", "row")["token entropy, nats"] == "0.200 [0.000, ?]"


def test_seeds_and_problems_widen_the_interval_of_worlds_that_agree(workspace: Path, tmp_path: Path) -> None:
    """The lead is the same in all worlds, by luck: in each its seeds tell very different ones."""
    copy = shutil.copytree(workspace, tmp_path / "copy")
    for folder in copy.glob("first-*"):
        seed, number = map(int, folder.name.split("-")[1:])
        write_answers(folder, f"b-{number}", generations(seed, 2 + 2 * number, "columns"))
    text = page.parts(SECTION, results(copy, "first"), ["rl"])["rl"]
    cell = row(text, "new − plain", "difference")["Δ pass@1, points"]
    low, high = cell.partition("[")[2].partition("]")[0].split(", ")
    assert cell.startswith("+25.0 [")
    assert float(high) - float(low) > 2 * 4.3 * 25 / 3**0.5 - 5


def test_a_table_compares_the_pairs_it_names_and_counts_what_is_to_come(
    workspace: Path, both: dict[str, str]
) -> None:
    text = both["pairs"]
    assert "by Holm's method over 8 comparisons" in text
    assert row(text, "new − old", "difference")["Δ pass@1, points"].startswith("+8.3 [")
    assert "new − plain" not in text, "no such pair"
    part = page.parts(SECTION, results(workspace, "first"))["pairs"]
    assert "by Holm's method over 8 comparisons" in part
    assert "Not run yet: new." in part


def test_a_world_counts_when_all_seeds_of_both_rows_are_done(workspace: Path) -> None:
    found = results(workspace, "first", "second")
    del found.done["second-6-1"]
    assert found.worlds("first/a") == [4, 5, 6]
    assert found.worlds("first/a", "second/b") == [4, 5]
    text = page.parts(SECTION, found, ["one"])["one"]
    assert text.startswith("2 or 3 of 3 worlds")
    assert row(text, "new − plain", "difference")["worlds ahead"] == "2 of 2"
    one_world = page.parts(SECTION, results(workspace, "first", "second", worlds=[4]))
    assert one_world["one"] == "Not run yet: plain; new."
    assert one_world["explained"] == one_world["power"] == one_world["mixed"] == "Not run yet."


def test_rows_that_were_drawn_with_other_settings_are_refused(workspace: Path, tmp_path: Path) -> None:
    for folder in workspace.glob("first-*"):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        for path in copy.glob("data/generations/*.parquet"):
            cooler = {"temperature": 0.6 if path.stem == "b-1-rl" else 1.0}
            tables.write(
                path, tables.read(path, schemas.GENERATIONS), schemas.GENERATIONS, {"sampling": cooler}
            )
    with pytest.raises(
        DataError, match=r"world 4, first/b-rl: not evaluated like base: drawn with temperature 0.6 and 1.0"
    ):
        page.parts(SECTION, results(tmp_path, "first"))


def test_strategies_are_told_beside(both: dict[str, str]) -> None:
    strategies = row(both["one"], "new", "digits / columns / places, %")
    assert (strategies["CE set"], strategies["answers"]) == ("0 / 100 / 0", "0 / 100 / 0")


def test_after_rl_the_last_step_counts_and_is_compared_with_the_baseline_after_rl(
    both: dict[str, str],
) -> None:
    assert row(both["rl"], "new-rl", "row")["pass@1, %"].startswith("87.5 [")
    assert row(both["rl"], "new-rl", "row")["T of RL"] == "1.20"


def test_hypotheses_are_one_family_whatever_table_they_are_of(
    workspace: Path, both: dict[str, str], tmp_path: Path
) -> None:
    text = both["hypotheses"]
    assert row(text, "more are solved", "hypothesis")["mean over worlds"] == "not run yet", (
        "it differs nowhere"
    )
    entropy = row(text, "of higher entropy", "hypothesis")
    assert entropy["difference"] == "new − plain: Δ token entropy, nats"
    found = worlds.over_worlds([0.2, 0.1, 0.1], [0.0] * 3)
    assert f"p {min(1, 3 * found.p_value):.3f}" in entropy["mean over worlds"]
    assert entropy["shown from"] == f"{worlds.smallest_effect(np.std([0.2, 0.1, 0.1], ddof=1), 3):.3f}"


def test_the_pilots_noise_tells_what_a_study_would_show(both: dict[str, str], workspace: Path) -> None:
    (table,) = [part for part in both["power"].split("\n\n") if part.startswith("| difference ")]
    lines = [line for line in table.splitlines() if line.startswith("| new − old ")]
    assert len(lines) == len(page.SPREADS)
    cells_of_line = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[2] for line in cells_of_line] == ["0.0", "3.0", "6.0", "10.0"]
    enough = float(cells_of_line[3][3 + page.SIZES.index(10)])
    assert enough == pytest.approx(100 * worlds.smallest_effect(0.1, 10), abs=0.06)


def test_gates_are_told_as_ranges_with_how_many_worlds_pass(both: dict[str, str]) -> None:
    line = row(both["gates"], "G2 habit", "gate")
    assert (line["lowest"], line["highest"]) == ("74.0% ± 1.0", "76.0% ± 1.0")
    assert line["worlds passed"] == "2 of 3"
    assert "plain" not in both["gates"]
    (solved,) = [line for line in both["gates"].splitlines() if "what RL adds" in line]
    assert "50.0%" in solved
    assert "3 of 3" in solved, "gate G5, of the baseline"


def test_what_might_explain_a_lead_is_told_of_every_world(workspace: Path, both: dict[str, str]) -> None:
    line = row(both["explained"], "5", "world")
    assert line["lead, points"] == "+25.0"
    assert line["lead after RL, points"] == "–", "none of both rows"
    assert line["more columns in the CE set, points"] == "100"
    assert line["ppl of columns − of places"] == "-5.000", "wrong solutions do not count"
    assert line["base by digits, %"] == "75.0"
    assert line["base pass@1, %"] == "12.5"
    found = explanations.worlds_of(results(workspace, "first", "second"), STUDY.explained)
    varied = found._replace(before=np.array([3.0, 2.0, 1.0]))
    assert varied.correlation(1)[0] == pytest.approx(1.0)
    assert np.isnan(varied.correlation(0)[0]), "as many columns in every world"


def test_a_mixed_model_agrees_where_worlds_have_as_many_problems() -> None:
    rng = np.random.default_rng(0)
    apart = [0.05 + rng.normal(0, 0.06) + rng.normal(0, 0.4, 200) for _ in range(12)]
    fitted = mixed.fit(apart)
    ours = worlds.over_worlds(
        [of.mean() for of in apart], [worlds.sampling_variance(of[None]) for of in apart]
    )
    error = float(np.std([of.mean() for of in apart], ddof=1)) / 12**0.5
    assert fitted.mean == pytest.approx(ours.mean)
    assert fitted.error == pytest.approx(error, rel=1e-3)
    assert fitted.spread == pytest.approx(ours.spread, rel=1e-2)


def test_a_mixed_model_stands_beside_every_difference(both: dict[str, str]) -> None:
    line = cells(both["mixed"], "new − plain")
    assert line[1:3] == ["+33.3", "+33.3"]


def test_pictures_are_the_same_bytes_again(workspace: Path, tmp_path: Path) -> None:
    once, again = (
        [
            path.read_bytes()
            for path in figures.draw(tmp_path / name, "study", SECTION, results(workspace, "first", "second"))
        ]
        for name in "ab"
    )
    assert len(once) == 2
    assert once == again
    assert figures.draw(tmp_path, "study", SECTION, results(workspace)) == []


def test_what_has_not_run_is_named_and_what_has_is_told(workspace: Path) -> None:
    parts = page.parts(SECTION, results(workspace, "first"))
    assert parts["one"].strip() == "Not run yet: new."
    assert "new-rl" in parts["rl"]
    assert cells(parts["experiments"], "`second`")[-1] == "0 of 6"
    assert page.parts(SECTION, results(workspace))["gates"] == "Not run yet."


def test_only_what_stands_between_the_marks_is_written_anew() -> None:
    text = "Words.\n\n<!-- s: a -->\nold\n<!-- end -->\n\nMore.\n\n<!-- s: b -->\n<!-- end -->\n"
    other = "<!-- t: a -->\nanother study's\n<!-- end -->\n"
    once = page.page(text + other, "s", {"a": "new | table", "b": "other\n", "c": "unused"})
    assert "old" not in once
    assert once.startswith("Words.\n\n<!-- s: a -->\n\nnew | table\n\n<!-- end -->\n\nMore.")
    assert once.endswith(other)
    assert page.page(once, "s", {"a": "new | table", "b": "other"}) == once
    assert (page.asked(once, "s"), page.asked(once, "t")) == (["a", "b"], ["a"])


def test_a_mark_without_a_part_is_refused() -> None:
    with pytest.raises(DataError, match="asks for 'x', which is no part of the study; known here: a"):
        page.page("<!-- s: x --><!-- end -->", "s", {"a": ""})


@pytest.mark.parametrize("text", ["<!-- s: a -->\n", "<!-- s: a -->\n<!-- s: a --><!-- end -->"])
def test_a_mark_without_an_end_is_refused_before_it_swallows_words(text: str) -> None:
    with pytest.raises(DataError, match="mark of 'a' has no `<!-- end -->`"):
        page.page(text, "s", {"a": ""})
