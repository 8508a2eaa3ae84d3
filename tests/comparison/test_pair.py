"""`oxa compare` on generations whose truth is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from generations import write

from flows import cli
from oxa.comparison import estimators, pair
from oxa.comparison.arms import differences
from oxa.comparison.measures import pass_at
from oxa.comparison.outcomes import outcomes
from oxa.config.report import Report
from oxa.errors import DataError
from oxa.report import markdown

ROOT = Path(__file__).resolve().parents[2]
SECTION = Report(baseline="sft", resamples=300)


ENTROPIES = ("response_entropy", "token_entropy")


def lying(folder: Path) -> dict[str, Path]:
    return {"folder": folder, "entropies": folder / "entropies"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generations")
    write(made / "base.parquet", 0.3, seed=9)
    for seed in (0, 3):
        write(made / f"sft-{seed}.parquet", 0.5, seed=seed)
        write(made / f"oxa_mle-{seed}.parquet", 0.7, seed=10 + seed)
        write(made / f"sft-{seed}-rl.parquet", 0.7, seed=20 + seed, steps=(10, 20))
    return made


def test_values_and_differences_are_those_of_the_generations(folder: Path):
    compared = pair.run(SECTION, "oxa_mle-0", "sft-0", **lying(folder))
    part = compared["groups"]["world"]
    assert (part["num_problems"], part["num_samples"], part["num_seeds"]) == (80, 8, 1)
    expected = ["pass_at_1", "pass_at_8", "pass_hat_8", "maj_at_8", *ENTROPIES, "distinct_answers"]
    assert list(part["metrics"]) == [*expected, "mean_tokens", "truncated"]
    a, b = (outcomes(folder / f"{name}.parquet") for name in ("oxa_mle-0", "sft-0"))
    for metric, row in part["metrics"].items():
        assert row["difference"] == pytest.approx(row["a"] - row["b"]), metric
        assert row["low"] <= row["difference"] <= row["high"]
    row = part["metrics"]["pass_at_1"]
    assert (row["a"], row["b"]) == pytest.approx((a.num_correct.mean() / 8, b.num_correct.mean() / 8))
    assert row["shown"]
    assert not part["metrics"]["mean_tokens"]["shown"]
    rows = list(part["metrics"].values())
    assert [row["p_holm"] for row in rows] == pytest.approx(
        list(estimators.holm([row["p_value"] for row in rows]))
    )


def test_an_arm_stands_for_all_its_seeds(folder: Path):
    part = pair.run(SECTION, "oxa_mle", "base", **lying(folder))["groups"]["world"]
    assert (part["num_seeds"], part["num_seeds_baseline"]) == (2, 1)
    rates = [outcomes(folder / f"oxa_mle-{seed}.parquet").num_correct.mean() / 8 for seed in (0, 3)]
    assert part["metrics"]["pass_at_1"]["a"] == pytest.approx(sum(rates) / 2)


def test_an_arm_before_and_after_rl_is_paired_by_seed(folder: Path):
    assert pair.run(SECTION, "sft-rl", "sft", **lying(folder))["same_seeds"]
    assert pair.run(SECTION, "sft-0-rl", "sft-0", **lying(folder))["same_seeds"]
    assert pair.run(SECTION, "sft-rl@10", "sft-rl@20", **lying(folder))["same_seeds"]
    assert not pair.run(SECTION, "sft-3", "sft-0", **lying(folder))["same_seeds"]
    assert not pair.run(SECTION, "oxa_mle", "sft", **lying(folder))["same_seeds"]


def test_a_step_of_rl_can_be_asked_for(folder: Path):
    row = pair.run(SECTION, "sft-0-rl@10", "sft-0-rl", **lying(folder))["groups"]["world"]["metrics"][
        "pass_at_1"
    ]
    path = folder / "sft-0-rl.parquet"
    steps = [outcomes(path, step).num_correct.mean() / 8 for step in (10, 20)]
    assert (row["a"], row["b"]) == pytest.approx(steps)
    with pytest.raises(DataError, match="nothing of step 11; found 10, 20"):
        pair.run(SECTION, "sft-0-rl@11", "sft-0", **lying(folder))


def test_step_0_of_rl_is_the_checkpoint_before_it(folder: Path):
    for name in ("sft", "sft-0"):
        before = pair.run(SECTION, f"{name}-rl", name, **lying(folder))
        compared = pair.run(SECTION, f"{name}-rl", f"{name}-rl@0", **lying(folder))
        assert compared == before | {"b": f"{name}-rl@0"}
        assert compared["same_seeds"]
    with pytest.raises(DataError, match="nobody-rl@0: no such checkpoint, arm or table"):
        pair.run(SECTION, "nobody-rl@0", "sft", **lying(folder))


def test_shares_differ_by_1_at_most_and_so_do_the_ends_of_the_interval(tmp_path: Path):
    paths = [
        write(tmp_path / f"{name}.parquet", rate, benchmarks={"world": 3})
        for name, rate in (("most", 0.95), ("few", 0.05))
    ]
    most, few = (outcomes(path) for path in paths)
    wide = differences(SECTION, [most], [few], only=[pass_at(1)])
    assert wide["pass_at_1"]["high"] == 1, "three problems say little"
    metrics = pair.run(SECTION, "most", "few", **lying(tmp_path))["groups"]["world"]["metrics"]
    assert (
        metrics["pass_at_1"]["low"] < metrics["pass_at_1"]["difference"] < metrics["pass_at_1"]["high"] == 1
    )
    back = pair.run(SECTION, "few", "most", **lying(tmp_path))["groups"]["world"]["metrics"]
    assert back["pass_at_1"]["low"] == -1
    assert metrics["mean_tokens"]["high"] > 1


def test_a_table_anywhere_can_be_compared(folder: Path, tmp_path: Path):
    elsewhere = shutil.copy(folder / "sft-0.parquet", tmp_path / "other.parquet")
    metrics = pair.run(SECTION, str(elsewhere), "sft-0", **lying(folder))["groups"]["world"]["metrics"]
    row = metrics["pass_at_1"]
    assert (row["difference"], row["p_value"], row["shown"]) == (0, 1, False)
    assert -0.06 < row["low"] < 0 < row["high"] < 0.06, "80 problems on which the same was answered"
    assert not set(ENTROPIES) & set(metrics), "what lies elsewhere has answers alone"


def test_what_cannot_be_compared_is_refused_in_a_sentence(folder: Path, tmp_path: Path):
    fewer = write(tmp_path / "fewer.parquet", 0.5, benchmarks={"world": 79})
    with pytest.raises(
        DataError, match="cannot be compared: evaluated on 79 and 80 problems, 79 of them the same"
    ):
        pair.run(SECTION, str(fewer), "sft", **lying(folder))
    with pytest.raises(
        DataError, match=r"nobody: no such checkpoint, arm or table; .* holds base, oxa_mle-0, "
    ):
        pair.run(SECTION, "nobody", "sft", **lying(folder))
    with pytest.raises(DataError, match="pass@9 needs 9 samples of every problem of world, found 8"):
        pair.run(SECTION, "sft", "base", **lying(folder), k=9)
    with pytest.raises(DataError, match="no benchmark 'aime'; found world"):
        pair.run(SECTION, "sft", "base", **lying(folder), benchmark="aime")


DRAWN = {"engine": "torch", "temperature": 1.0, "top_p": 1.0, "max_tokens": 80, "seed": 0}


def test_settings_that_differ_are_said_before_any_number(folder: Path, tmp_path: Path):
    made_by = [{"torch": "2.13.0"}]
    ours = write(tmp_path / "a-0.parquet", 0.5, sampling=DRAWN | {"made_by": made_by})
    cooler = DRAWN | {"temperature": 0.6, "max_tokens": 40, "made_by": [*made_by, {"torch": "2.14.0"}]}
    write(tmp_path / "b-0.parquet", 0.5, sampling=cooler)
    write(tmp_path / "b-0-rl.parquet", 0.5, sampling=cooler, steps=(10, 20))
    for other in ("b-0", "b-0-rl@10", "b"):
        compared = pair.run(SECTION, "a-0", other, **lying(tmp_path))
        assert compared["unlike"] == [
            "max_tokens 80 and 40",
            "temperature 1.0 and 0.6",
            "torch 2.13.0 and 2.13.0 or 2.14.0",
        ]
        text = markdown.pair(compared)
        assert text.index("Beware: the two were not drawn alike") < text.index("## world")
        assert "temperature 1.0 and 0.6" in text
    assert pair.run(SECTION, "a", str(ours), **lying(tmp_path))["unlike"] == []
    unknown = pair.run(SECTION, "a", str(folder / "base.parquet"), **lying(tmp_path))
    assert unknown["unlike"] == ["settings that are kept for one of them alone"]


def test_the_command_prints_a_table_or_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    command = ["compare", "oxa_mle", "sft", "--folder", str(folder), "--k", "2"]
    command += ["--entropies", str(folder / "entropies")]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "## world: 80 problems, 8 samples a problem, seeds 2 and 2" in text
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "| no difference shown |" in lines["tokens"]
    assert cli.main([*command, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    row = compared["groups"]["world"]["metrics"]["pass_at_2"]
    assert (
        f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        in lines["pass@2, %"]
    )
    assert cli.main([*command[:2], "nobody", *command[3:]]) == 2
    assert capsys.readouterr().err.startswith("oxa: nobody: no such checkpoint")
