"""`oxa regrade` in a real DVC repository whose evaluation stages copy tables that were made beforehand."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Repository
from flows import bridge, cli, recommit
from oxa.config.verify import Verify
from oxa.errors import DataError, UserError
from oxa.grading.regrade import regrade
from oxa.records import schemas, tables
from oxa.runtime import files as records
from oxa.stages import evaluate

SECTION = Verify(timeout=10.0, require_think=False, workers=1)
TEXTS = {
    r"\boxed{4}": "correct",
    r"\boxed{5}": "incorrect",
    r"\boxed{2+2}": "correct",
    "": "unparsable",
}


def rows(stale: dict[str, str] = {}, step: int = 0) -> list[dict[str, Any]]:  # noqa: B006  read only
    """Generations of one problem; `stale`: verdicts as an older verifier gave them."""
    return [
        {
            "benchmark": "world",
            "problem_id": "p",
            "tier": "",
            "step": step,
            "sample_index": index,
            "text": text,
            "num_tokens": 3,
            "finish_reason": "stop",
            "verdict": stale.get(text, verdict),
            "predicted": text.removeprefix(r"\boxed{").removesuffix("}") or None,
        }
        for index, (text, verdict) in enumerate(TEXTS.items())
    ]


def problems(path: Path) -> Path:
    row = {"problem_id": "p", "source": "s", "question": "2+2?", "answers": ["4"], "tier": ""}
    # the same question among the training problems, with another answer, decides nothing
    tables.write(
        path, [row | {"split": "world"}, row | {"split": "train", "answers": ["7"]}], schemas.PROBLEMS
    )
    return path


STALE = {r"\boxed{2+2}": "incorrect", r"\boxed{5}": "unparsable"}


def test_new_verdicts_come_from_the_text_and_changes_are_counted(tmp_path: Path):
    tables.write(tmp_path / "a.parquet", rows(STALE), schemas.GENERATIONS)
    regraded = regrade(SECTION, tmp_path / "a.parquet", problems(tmp_path / "problems.parquet"))
    assert regraded.table.to_pylist() == rows()
    assert regraded.changes == Counter({("incorrect", "correct"): 1, ("unparsable", "incorrect"): 1})
    assert str(regraded) == "of 4 generations: 1 incorrect -> correct, 1 unparsable -> incorrect"
    again = regrade(
        SECTION.model_copy(update={"require_think": True}),
        tmp_path / "a.parquet",
        tmp_path / "problems.parquet",
    )
    assert set(again.table["verdict"].to_pylist()) == {"unparsable"}


def test_what_has_not_changed_is_said_to_be_kept(tmp_path: Path):
    tables.write(tmp_path / "a.parquet", rows(), schemas.GENERATIONS)
    regraded = regrade(SECTION, tmp_path / "a.parquet", problems(tmp_path / "problems.parquet"))
    assert not regraded.changed
    assert str(regraded) == "4 generations keep their verdicts"


def test_a_table_from_before_gets_its_groups_of_equal_answers(tmp_path: Path):
    texts = {r"\boxed{1/3}": "incorrect", r"\boxed{\frac13}": "incorrect"}
    table = [
        row | {"text": text, "predicted": text.removeprefix(r"\boxed{").removesuffix("}"), "verdict": verdict}
        for row, (text, verdict) in zip(rows(), texts.items(), strict=False)
    ]
    tables.write(tmp_path / "a.parquet", table, schemas.GENERATIONS, {"sampling": {"seed": 1}})
    regraded = regrade(SECTION, tmp_path / "a.parquet", problems(tmp_path / "problems.parquet"))
    groups = {"world": {"p": [["1/3", r"\frac13"]]}}
    assert regraded.notes == {"sampling": {"seed": 1}, "same_answers": groups}
    assert regraded.changed
    assert str(regraded) == "of 2 generations: answers to 1 problems are grouped anew"
    tables.write(tmp_path / "a.parquet", regraded.table, schemas.GENERATIONS, regraded.notes)
    assert not regrade(SECTION, tmp_path / "a.parquet", tmp_path / "problems.parquet").changed


def test_a_generation_whose_problem_is_gone_is_named(tmp_path: Path):
    tables.write(tmp_path / "a.parquet", [rows()[0] | {"problem_id": "q"}], schemas.GENERATIONS)
    with pytest.raises(DataError, match="problem q of world is not in"):
        regrade(SECTION, tmp_path / "a.parquet", problems(tmp_path / "problems.parquet"))


STAGES = {"evaluate_base": "base", "evaluate@sft-0": "sft-0"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two evaluations as an older verifier left them, known to DVC; tests work in copies."""
    folder = tmp_path_factory.mktemp("template")
    # grading workers are forked from a server that imports oxa: it must start before a folder holds the stand-ins below
    forkserver.set_forkserver_preload(["math_verify", "oxa.grading.worker"])
    forkserver.ensure_running()
    with contextlib.chdir(folder):
        for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
            subprocess.run(command, check=True)
        shutil.copy(Path(__file__).resolve().parents[2] / "params.yaml", folder)
        problems(Path("data/problems.parquet"))
        for name in ("grading/grader", "generation/generate"):
            Path(f"oxa/{name}.py").parent.mkdir(parents=True)
            Path(f"oxa/{name}.py").write_text("# old\n")
        made: dict[str, Any] = {}
        for stage, name in STAGES.items():
            tables.write(Path(f"made/{name}.parquet"), rows(STALE), schemas.GENERATIONS)
            table = tables.read(Path(f"made/{name}.parquet"), schemas.GENERATIONS)
            apart = {"benchmark": "world", "problem_id": "p", "tier": "", "step": 0, "sample_index": 0}
            apart |= {"text": "4", "finish_reason": "stop", "num_tokens": 2, "entropy": 0.5}
            tables.write(Path(f"made/{name}-apart.parquet"), [apart], schemas.ENTROPIES)
            entropies = tables.read(Path(f"made/{name}-apart.parquet"), schemas.ENTROPIES)
            records.write_json(Path(f"made/{name}.json"), evaluate.summarize(table, entropies))
            written = {
                f"made/{name}.parquet": f"data/generations/{name}.parquet",
                f"made/{name}-apart.parquet": f"data/entropies/{name}.parquet",
                f"made/{name}.json": f"metrics/evaluate/{name}.json",
            }
            files = list(written.values())
            copies = [f"mkdir -p {Path(to).parent} && cp {source} {to}" for source, to in written.items()]
            made[stage] = {
                "cmd": " && ".join(copies),
                "params": ["verify", "evaluate"],
                "deps": ["data/problems.parquet", "oxa/grading/grader.py", "oxa/generation/generate.py"],
                "outs": files[:2],
                "metrics": files[2:],
            }
        made["evaluate"] = made.pop("evaluate@sft-0") | {"matrix": {"arm": ["sft"], "seed": [0]}}
        Repository(folder).stages(**made)
        dvc("repro", "-q")
    return folder


@pytest.fixture
def evaluated(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    folder = Path(shutil.copytree(template, tmp_path / "project"))
    monkeypatch.chdir(folder)
    return Repository(folder)


def dvc(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *command], text=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CHANGES = "of 4 generations: 1 incorrect -> correct, 1 unparsable -> incorrect"
CUT_OFF = f"{CHANGES} (written by a run that was cut off)"


def run(*checkpoints: str, dry_run: bool = False) -> list[str]:
    return list(recommit.run(SECTION, evaluate.summarize, checkpoints, dry_run=dry_run))


def verdicts(name: str) -> list[str]:
    return tables.read(Path(f"data/generations/{name}.parquet"), schemas.GENERATIONS)["verdict"].to_pylist()


def contents() -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in [*Path("data").rglob("*.*"), *Path("metrics").rglob("*.*"), Path("dvc.lock")]
    }


def test_a_changed_verifier_is_applied_and_dvc_takes_the_stages_for_done(evaluated: Repository):
    Path("oxa/grading/grader.py").write_text("# new\n")
    before = bridge.locked()
    sentences = run()
    assert sentences == [
        *(f"{name}: {CHANGES}" for name in ("sft-0", "base")),
        "DVC has taken 2 of 2 evaluations; `dvc repro --single-item report` makes the report again",
    ]
    assert verdicts("base") == verdicts("sft-0") == list(TEXTS.values())
    pooled = records.read_json(Path("metrics/evaluate/base.json"))["pooled"]
    assert (pooled["pass_at_1"], pooled["token_entropy"]) == (0.5, 0.25)
    assert dvc("status", "--json").strip() == "{}"
    assert bridge.locked()["evaluate@sft-0"].outs.keys() == before["evaluate@sft-0"].outs.keys()
    assert bridge.locked()["evaluate@sft-0"].outs != before["evaluate@sft-0"].outs
    Path("data/generations/base.parquet").unlink()
    dvc("checkout", "-q")
    assert verdicts("base") == list(TEXTS.values()), "DVC's cache holds the new table"
    unchanged = contents()
    assert run() == [f"{name}: 4 generations keep their verdicts" for name in ("sft-0", "base")]
    assert contents() == unchanged


def test_other_stages_that_the_old_verifier_made_are_named(evaluated: Repository):
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    graded = {"cmd": "true", "deps": ["oxa/grading/grader.py"]}
    origins = {"matrix": {"origin": ["teacher", "self"]}}
    drawn = {"cmd": "true", "deps": ["oxa/generation/generate.py"]}
    evaluated.stages(**stages, ingest=graded, verify=graded | origins, rlvr=drawn, sample=graded)
    dvc("repro", "-q")
    Path("oxa/grading/grader.py").write_text("# new\n")
    Path("oxa/generation/generate.py").touch()
    sentences = run()
    assert sentences[-1] == (
        "ingest, verify still stand on the old verifier (which problems are sound, training sets); a full `dvc repro` "
        "makes them again, with all that follows from them"
    )
    assert sentences[-2].startswith("DVC has taken 2 of 2 evaluations")


def test_the_stages_that_may_stand_on_an_old_verifier_are_those_of_the_graph():
    stages = yaml.safe_load((Path(__file__).resolve().parents[2] / "dvc.yaml").read_text())["stages"]
    using = {name for name, stage in stages.items() if "verify" in stage.get("do", stage).get("params", [])}
    assert {name for name in using if not name.startswith("evaluate")} == set(recommit.GRADERS)


def test_a_dry_run_says_it_all_and_writes_nothing(evaluated: Repository):
    Path("oxa/grading/grader.py").write_text("# new\n")
    before = contents()
    assert run("base", dry_run=True) == [f"base: {CHANGES}"]
    assert contents() == before
    assert not Path(".work").exists()


def test_a_stage_with_another_changed_input_is_left_alone(evaluated: Repository):
    Path("oxa/grading/grader.py").write_text("# new\n")
    Path("oxa/generation/generate.py").write_text("# new\n")
    evaluated.set("evaluate.temperature", 0.123)
    before = contents()
    changed = "evaluate, oxa/generation/generate.py changed, too"
    why = f"left alone, since {changed}; `dvc repro evaluate@sft-0` evaluates it again"
    assert run("sft-0") == [f"sft-0: {why}"]
    assert contents() == before


def test_changed_parameters_of_the_verifier_are_its_own_matter(evaluated: Repository):
    evaluated.set("verify.timeout", 3.0)
    assert "1 incorrect -> correct" in run("base")[0]
    assert set(yaml.safe_load(dvc("status", "--json"))) == {"evaluate@sft-0"}, "only what was named"


def test_parameters_edited_while_it_grades_are_not_recorded_as_those_that_graded(evaluated: Repository):
    Path("oxa/grading/grader.py").write_text("# new\n")
    before = contents()
    with pytest.raises(DataError, match=r"^params.yaml: verify: changed while base was graded; run it again"):
        list(recommit.run(SECTION, evaluate.summarize, ["base"], changed=lambda: ["params.yaml: verify"]))
    assert contents() == before


def test_a_changed_file_of_the_checker_is_the_verifiers_matter(evaluated: Repository):
    dvc_yaml = Path("dvc.yaml")
    dvc_yaml.write_text(dvc_yaml.read_text().replace("grading/grader.py", "answers/equality.py"))
    Path("oxa/answers").mkdir()
    Path("oxa/answers/equality.py").write_text("# new\n")
    assert "1 incorrect -> correct" in run("base")[0]


def test_generations_that_somebody_else_has_changed_are_left_alone(evaluated: Repository):
    tables.write(Path("data/generations/base.parquet"), rows()[:2], schemas.GENERATIONS)
    Path("oxa/grading/grader.py").write_text("# new\n")
    assert "left alone, since data/generations/base.parquet changed, too" in run("base")[0]
    assert len(verdicts("base")) == 2


def numbers_of(generations: Any) -> dict[str, Any]:
    return evaluate.summarize(
        generations, tables.read(Path("data/entropies/base.parquet"), schemas.ENTROPIES)
    )


def test_killed_before_dvc_was_told_the_next_run_goes_on(evaluated: Repository):
    Path("oxa/grading/grader.py").write_text("# new\n")
    table, metrics = Path("data/generations/base.parquet"), Path("metrics/evaluate/base.json")
    regraded = regrade(SECTION, table, Path("data/problems.parquet"))
    numbers = numbers_of(regraded.table)
    recommit._write(regraded, numbers, table, metrics, Path(".work/regrade/base.json"), [])
    assert verdicts("base") == list(TEXTS.values())
    assert "evaluate_base" in dvc("status", "--json")
    assert run("base", dry_run=True) == [f"base: {CUT_OFF}"]
    assert run("base")[0] == f"base: {CUT_OFF}"
    assert "evaluate_base" not in dvc("status", "--json")
    assert not Path(".work/regrade/base.json").exists()
    assert run("base") == ["base: 4 generations keep their verdicts"]


@pytest.mark.parametrize("num_placed", [0, 1])
def test_killed_while_it_wrote_the_changes_are_said_once(evaluated: Repository, num_placed: int):
    Path("oxa/grading/grader.py").write_text("# new\n")
    table, metrics = Path("data/generations/base.parquet"), Path("metrics/evaluate/base.json")
    old = [path.read_bytes() for path in (table, metrics)]
    regraded = regrade(SECTION, table, Path("data/problems.parquet"))
    numbers = numbers_of(regraded.table)
    recommit._write(regraded, numbers, table, metrics, Path(".work/regrade/base.json"), [])
    for path, content in list(zip((table, metrics), old, strict=True))[num_placed:]:
        path.write_bytes(content)  # as if it had not been replaced yet
    assert run("base")[0] == f"base: {CUT_OFF if num_placed else CHANGES}"
    assert verdicts("base") == list(TEXTS.values())
    assert records.read_json(metrics) == numbers
    assert "evaluate_base" not in dvc("status", "--json")


def test_a_verifier_that_changes_again_after_a_kill_adds_its_changes(evaluated: Repository):
    Path("oxa/grading/grader.py").write_text("# new\n")
    table, metrics = Path("data/generations/base.parquet"), Path("metrics/evaluate/base.json")
    note = Path(".work/regrade/base.json")
    regraded = regrade(SECTION, table, Path("data/problems.parquet"))
    recommit._write(regraded, numbers_of(regraded.table), table, metrics, note, [])
    evaluated.set("verify.require_think", True)
    strict = SECTION.model_copy(update={"require_think": True})
    again = "of 4 generations: 2 correct -> unparsable, 1 incorrect -> unparsable"
    sentence = next(recommit.run(strict, evaluate.summarize, ["base"]))
    assert sentence == f"base: {CUT_OFF}; {again}"
    assert note.exists(), "cut off right after it was said"
    both = f"base: {CUT_OFF}; {again} (written by a run that was cut off)"
    assert next(recommit.run(strict, evaluate.summarize, ["base"])) == both


def test_why_dvc_could_not_commit_is_shown(evaluated: Repository):
    with pytest.raises(DataError, match=r"dvc commit nobody: (.*\n)*ERROR: .*'nobody'") as caught:
        bridge.commit("nobody")
    assert len(str(caught.value).splitlines()) <= bridge.LAST_LINES


def test_a_module_that_also_draws_is_named_when_it_has_changed(evaluated: Repository):
    dvc_yaml = Path("dvc.yaml")
    dvc_yaml.write_text(dvc_yaml.read_text().replace("oxa/grading/grader.py", "oxa/prompts.py"))
    Path("oxa/prompts.py").write_text("# new\n")
    assert run("base")[0].endswith("(oxa/prompts.py changed, taken to ask and draw as before)")


def test_the_command_reads_the_verifiers_parameters_from_params_yaml(
    evaluated: Repository, capsys: pytest.CaptureFixture[str]
):
    evaluated.set("verify.require_think", True)
    assert cli.main(["regrade", "base", "--dry-run"]) == 0
    expected = "base: of 4 generations: 1 correct -> unparsable, 1 incorrect -> unparsable, "
    assert capsys.readouterr().out.startswith(expected)
    assert cli.main(["regrade", "nobody"]) == 2
    assert capsys.readouterr().err.startswith("oxa: nobody: dvc.lock knows no generations of it")


def test_an_unknown_checkpoint_is_refused_with_those_that_are_known(evaluated: Repository):
    with pytest.raises(UserError, match=r"sft-9: dvc\.lock knows no generations of it; known: sft-0, base"):
        run("sft-9")
