import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from processes import wait_until_gone

import oxa
from oxa.errors import ConfigError, DataError, UserError
from oxa.runtime import guard, modules


def run_stage(
    tmp_path: Path,
    text: str = "out",
    *,
    config: object = None,
    module: str = "oxa.prompts",
    during=lambda run: None,
    changed: Callable[[], list[str]] = list,
) -> guard.Run:
    with guard.stage(
        "stage@a",
        module=module,
        inputs={"data": tmp_path / "input"},
        outputs={"output": tmp_path / "deep" / "out.txt", "folder": tmp_path / "made"},
        config=config,
        changed=changed,
        work=tmp_path / ".work",
    ) as run:
        during(run)
        run.outputs["output"].write_text(text)
        run.outputs["folder"].mkdir()
        (run.outputs["folder"] / "a").write_text(text)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "rows").write_text("1")
    return tmp_path


def test_outputs_take_their_names_and_the_scratch_goes_when_the_stage_succeeds(folder: Path):
    run_stage(folder)
    run_stage(folder, "second")
    assert (folder / "deep" / "out.txt").read_text() == "second"
    assert (folder / "made" / "a").read_text() == "second"
    assert not list((folder / ".work" / "stage@a").iterdir())


def test_a_failed_stage_leaves_no_output_and_keeps_its_scratch_for_the_same_inputs_only(folder: Path):
    seen = []

    def fail(run: guard.Run) -> None:
        seen.append(run.scratch)
        (run.scratch / "checkpoint").write_text("half way")
        raise KeyError("boom")

    for _ in range(2):
        with pytest.raises(KeyError):
            run_stage(folder, during=fail)
    assert seen[0] == seen[1]
    assert (seen[0] / "checkpoint").exists()
    assert not (folder / "deep" / "out.txt").exists()
    for change in (lambda: (folder / "input" / "rows").write_text("2"), lambda: None):
        change()
        with pytest.raises(KeyError):
            run_stage(folder, config={"steps": len(seen)}, during=fail)
    assert len(set(seen)) == 3
    run_stage(folder)
    assert not list((folder / ".work" / "stage@a").iterdir()), "scratch of stale inputs goes, too"


def test_an_input_edited_meanwhile_fails_the_stage_and_keeps_nothing(folder: Path):
    with pytest.raises(DataError, match="changed while stage stage@a was reading it"):
        run_stage(folder, during=lambda run: (folder / "input" / "rows").write_text("3"))
    assert not (folder / "deep" / "out.txt").exists()


def test_an_input_added_meanwhile_fails_the_stage(folder: Path):
    with pytest.raises(DataError, match="changed while"):
        run_stage(folder, during=lambda run: (folder / "input" / "more").write_text("3"))


def test_an_output_that_lies_in_an_input_is_no_change_of_it(folder: Path):
    for text in ("first", "second"):
        with guard.stage(
            "stage@a",
            module="oxa.prompts",
            inputs={"data": folder / "input"},
            outputs={"output": folder / "input" / "summary"},
            config=None,
            work=folder / ".work",
        ) as run:
            run.outputs["output"].write_text(text)
        assert (folder / "input" / "summary").read_text() == text


def test_what_else_the_stage_was_started_with_fails_it_where_it_changed(folder: Path):
    scratch: list[Path] = []
    with pytest.raises(DataError, match=r"^params.yaml: train: changed while stage stage@a was reading it"):
        run_stage(
            folder, during=lambda run: scratch.append(run.scratch), changed=lambda: ["params.yaml: train"]
        )
    assert not (folder / "deep" / "out.txt").exists()
    assert not list((folder / "deep").iterdir())
    assert scratch[0].exists(), "work of these very inputs, which the next run goes on with"


@pytest.fixture
def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that the guard takes for the one that runs."""
    package = Path(shutil.copytree(modules.PACKAGE, folder / "code" / "oxa"))
    monkeypatch.setattr(modules, "PACKAGE", package)
    return package


@pytest.mark.parametrize(
    ("added", "kept"), [("\nADDED = 1\n", False), ("# in other words\n", True), ("broken syntax", False)]
)
def test_a_module_edited_meanwhile_fails_the_stage(folder: Path, package: Path, added: str, kept: bool):
    scratch: list[Path] = []

    def edit(run: guard.Run) -> None:
        scratch.append(run.scratch)
        with (package / "prompts.py").open("a") as file:
            file.write(added)

    with pytest.raises(
        DataError, match=r"oxa/prompts.py: changed while stage stage@a was reading it; nothing was"
    ):
        run_stage(folder, during=edit)
    assert not (folder / "deep" / "out.txt").exists()
    assert scratch[0].exists() == kept, "work of which nobody knows the code is not gone on with"


def test_a_module_edited_after_it_was_imported_and_before_the_stage_began_is_refused(
    folder: Path, package: Path, monkeypatch: pytest.MonkeyPatch
):
    path = package / "prompts.py"
    monkeypatch.setitem(oxa.SOURCES, path, (path.stat().st_size, path.stat().st_mtime_ns))
    run_stage(folder)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(
        DataError, match=r"oxa/prompts.py: changed while the stage was starting; run it again"
    ):
        run_stage(folder, during=lambda run: pytest.fail("the stage ran"))


def test_another_folders_code_than_dvc_would_record_is_refused(
    folder: Path, package: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DVC_STAGE", "stage@a")
    shutil.copytree(package, folder / "project" / "oxa")
    monkeypatch.chdir(folder / "project")
    code = guard.code_of("oxa.prompts")
    guard.check("it ran", code, list, set())
    Path("oxa/prompts.py").write_text("ADDED = 1\n")  # which DVC hashes
    with pytest.raises(DataError, match=r"^oxa/prompts.py: changed while it ran"):
        guard.check("it ran", code, list, set())
    with pytest.raises(
        ConfigError, match=r"^oxa/prompts.py: not the code that runs, .* \(`pip install -e .`\)"
    ):
        guard.code_of("oxa.prompts")


def test_an_input_touched_but_not_changed_is_fine(folder: Path):
    run_stage(folder, during=lambda run: os.utime(folder / "input" / "rows", (1, 1)))
    assert (folder / "deep" / "out.txt").exists()


def test_a_missing_input_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"input: no such file or folder \(--data\)"):
        run_stage(tmp_path)


def test_an_output_that_cannot_be_written_is_named_before_any_work(folder: Path):
    (folder / "deep").write_text("a file where a folder must be")
    with pytest.raises(DataError, match="deep: cannot be written"):
        run_stage(folder, during=lambda run: pytest.fail("the stage ran"))


def test_the_second_of_two_copies_says_who_runs(folder: Path):
    with pytest.raises(UserError, match=f"already runs on the same inputs .process {os.getpid()}"):
        run_stage(folder, during=lambda run: run_stage(folder))


def test_a_half_done_training_is_found_again_after_a_change_of_words_and_not_of_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    package = Path(shutil.copytree(modules.PACKAGE, folder / "code" / "oxa"))
    monkeypatch.setattr(modules, "PACKAGE", package)
    trainer = package / "training" / "sft.py"

    def train() -> Path:
        """Stops half way; returns where its checkpoints lie."""
        with (
            pytest.raises(KeyError),
            guard.stage(
                "train@sft-0",
                module="oxa.stages.train",
                inputs={"data": folder / "input"},
                outputs={"output": folder / "model"},
                config={},
                work=folder / ".work",
            ) as run,
        ):
            raise KeyError
        return run.scratch

    def edit(old: str, new: str) -> None:
        text = trainer.read_text()
        assert old in text
        trainer.write_text(text.replace(old, new, 1))

    begun = train()
    (begun / "checkpoint-8").write_text("half way")
    edit('"""', '"""Said in other words. ')
    edit("from __future__ import annotations\n", "from __future__ import annotations  # a comment\n\n")
    assert train() == begun
    assert (begun / "checkpoint-8").exists()
    edit("class OXATrainer", "ADDED = 1\n\n\nclass OXATrainer")
    assert train() != begun


def test_files_of_one_name_in_two_folders_are_two(folder: Path, monkeypatch: pytest.MonkeyPatch):
    package = Path(shutil.copytree(modules.PACKAGE, folder / "code" / "oxa"))
    monkeypatch.setattr(modules, "PACKAGE", package)
    before = run_stage(folder, module="oxa.stages.gates").key
    first, second = package / "config" / "gates.py", package / "stages" / "gates.py"
    texts = first.read_text(), second.read_text()
    first.write_text(texts[0] + "\nADDED = 1\n")
    changed = run_stage(folder, module="oxa.stages.gates").key
    first.write_text(texts[0])
    second.write_text(texts[1] + "\nADDED = 1\n")
    assert len({before, changed, run_stage(folder, module="oxa.stages.gates").key}) == 3


def test_imports_inside_functions_and_of_imports_count():
    names = modules.imported_modules("oxa.stages.score")
    expected = {"stages/score", "records/tables", "errors", "training/batches", "model/log_probs"}
    assert {f"oxa/{name}.py" for name in expected} <= set(names)
    assert "oxa/cli.py" not in names
    assert not any(name.endswith("__init__.py") for name in names)


def test_imports_for_type_checkers_alone_do_not_count():
    assert (
        "if TYPE_CHECKING:\n    from oxa.config.generate"
        in (modules.PACKAGE / "generation/sampler.py").read_text()
    )
    assert "oxa/config/generate.py" not in modules.imported_modules("oxa.generation.sampler")
    assert "oxa/config/generate.py" in modules.imported_modules("oxa.generation.vllm")


def test_a_stage_dies_with_the_dvc_that_started_it(folder: Path):
    code = (
        "import time; from pathlib import Path; from oxa.runtime import guard\n"
        "with guard.stage('s', module='oxa.prompts', inputs={}, outputs={'o': Path('o')}, config=None):\n"
        "    print('up', flush=True); time.sleep(600)"
    )
    parent_code = (
        "import subprocess, sys, time;"
        f"child = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE, text=True);"
        "assert child.stdout.readline() == 'up\\n'; print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"DVC_STAGE": "stage@a"},
        cwd=folder,
    )
    assert parent.stdout is not None
    stage = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until_gone([stage])


def test_md5s_are_the_ones_that_dvc_has(repository):
    folder = repository.folder / "made"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "b.txt").write_text("b")
    (folder / "deep" / "a é.txt").write_text("a")
    (folder / "deep" / "er" / "c").write_bytes(bytes(range(256)) * 5000)
    (folder / "deep-2").write_text("sorts before deep/ as text, after it as a path")
    for name in (".git", ".hg", "deep/.git"):
        (folder / name).mkdir()
        (folder / name / "HEAD").write_text("a repository's own, which DVC leaves out")
    (repository.folder / "file.txt").write_text("one\r\ntwo\n")
    subprocess.run(["dvc", "add", "-q", "made", "file.txt"], check=True)
    for name in ("made", "file.txt"):
        recorded = yaml.safe_load((repository.folder / f"{name}.dvc").read_text())["outs"][0]["md5"]
        assert guard.dvc_md5(Path(name)) == recorded


def test_a_run_knows_the_md5_of_its_inputs_and_outputs_under_their_final_names(folder: Path):
    hashed: dict[str, str] = {}

    def during(run: guard.Run) -> None:
        run.outputs["output"].write_text("out")
        run.outputs["folder"].mkdir()
        (run.outputs["folder"] / "a").write_text("out")
        hashed.update(run.hash_outputs())
        guard._remove(run.outputs["folder"])

    run = run_stage(folder, during=during)
    assert run.inputs == {str(folder / "input"): guard.dvc_md5(folder / "input")}
    assert hashed == {
        str(path): guard.dvc_md5(path) for path in (folder / "deep" / "out.txt", folder / "made")
    }
