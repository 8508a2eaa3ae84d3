import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml
from pipelines import tiny_params
from processes import PATIENCE

from flows import cli
from oxa.config.params import load_params
from oxa.runtime import guard
from oxa.runtime.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


def fails_with_one_sentence(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command that must fail as a user's mistake; returns its sentence."""
    assert cli.main(argv) == 2
    printed = capsys.readouterr().err
    sentences = [line for line in printed.splitlines() if line.startswith("oxa: ")]
    assert len(sentences) == 1, printed
    assert "Traceback" not in printed
    return sentences[0]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder with the small world's parameters, and the working directory there."""
    default = (ROOT / "presets" / "small-world-from-scratch.yaml").read_text()
    quiet = default.replace("enabled: true", "enabled: false")  # MLflow has its own tests
    (tmp_path / "params.yaml").write_text(quiet)
    (tmp_path / "sources").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


INGEST = [
    "ingest",
    *(
        w
        for name in ("problems", "responses", "rejects", "contamination", "metrics")
        for w in (f"--{name}", f"out/{name}")
    ),
]


@pytest.mark.parametrize(
    "command",
    [
        *STAGES,
        *("run", "ui", "doctor", "plan", "use", "summary", "track"),
        *("register", "promote", "lineage", "model", "export", "world"),
    ],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 150


def test_without_params_it_says_where_to_go(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "params.yaml: no such file" in fails_with_one_sentence(capsys, *INGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_input_is_named_with_its_option(project, capsys):
    sentence = fails_with_one_sentence(
        capsys,
        "verify",
        "--origin",
        "self",
        "--problems",
        "p",
        "--responses",
        "r",
        "--output",
        "o",
        "--metrics",
        "m",
    )
    assert "p: no such file or folder (--problems)" in sentence
    assert not (project / "o").exists()


def test_an_arm_nobody_described_is_named(project, capsys):
    paths = [w for option in STAGES["selection_ce"].inputs for w in (f"--{option.replace('_', '-')}", "x")]
    sentence = fails_with_one_sentence(
        capsys, "selection_ce", "--arm", "new", *paths, "--output", "o", "--metrics", "m"
    )
    assert "selection.ce.new: missing; known here: sft, sft_lp, oxa_mle, oxa_full" in sentence


def test_a_path_that_cannot_be_written_is_named_and_nothing_is_left(project, capsys):
    (project / "out").write_text("a file where the folder should be")
    assert "out: cannot be written" in fails_with_one_sentence(capsys, *INGEST)
    assert (project / "out").read_text() == "a file where the folder should be"


def test_a_stage_writes_all_its_outputs_or_none(project, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["sources"]["world"] |= {"num_train": 20, "num_benchmark": 8}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert cli.main(INGEST) == 0
    assert {path.name for path in (project / "out").iterdir()} == {
        "problems",
        "responses",
        "rejects",
        "contamination",
        "metrics",
    }
    assert json.loads((project / "out" / "metrics").read_text())["totals"]["problems"] > 0
    shutil.rmtree(project / "out")
    params["ingest"]["teacher"].append({"source": "none.jsonl", "mapping": "gsm8k"})
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert "none.jsonl" in fails_with_one_sentence(capsys, *INGEST)
    assert list((project / "out").iterdir()) == []


def test_a_stage_whose_outputs_find_no_room_is_not_told_as_finished(project, monkeypatch):
    """The limit lets the stage write its own small files, and not what shows that the disk has room."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody listens
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["sources"]["world"] |= {"num_train": 20, "num_benchmark": 8}
    params["tracking"]["enabled"] = True
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (guard.PROBE // 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            cli.main(INGEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((project / "out").iterdir()) == []
    (events,) = (project / ".tracking").glob("*/events.jsonl")
    logged = [json.loads(line) for line in events.read_text().splitlines()]
    assert (logged[-1]["event"], logged[-1]["status"]) == ("end", "FAILED")
    assert "result" not in {event["event"] for event in logged}


def test_a_list_of_sources_can_be_set_on_the_way(project, capsys):
    (project / "preset.yaml").write_text((ROOT / "params.yaml").read_text())
    teacher = '[{source: "hf:openai/gsm8k:main:train", mapping: gsm8k, part: 1/2}]'
    assert cli.main(["use", "preset.yaml", "--set", f"ingest.teacher={teacher}"]) == 0
    written = yaml.safe_load((project / "params.yaml").read_text())  # as DVC reads it
    assert written["ingest"]["teacher"][0]["source"] == "hf:openai/gsm8k:main:train"


def test_output_that_nobody_reads_to_its_end_is_no_fault(project):
    done = subprocess.run(["bash", "-c", "oxa summary --help | true"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_a_preset_becomes_the_params_file_with_values_set_on_the_way(project, capsys):
    (project / "preset.yaml").write_text("# why\n" + (ROOT / "params.yaml").read_text())
    (project / "params.yaml").unlink()
    assert (
        cli.main(["use", "preset.yaml", "--set", "sources.folder=../data", "--set", "sample.temperature=0.5"])
        == 0
    )
    params = load_params(project / "params.yaml")
    assert params.sources.folder == "../data"
    assert params.sample.temperature == 0.5
    assert (project / "params.yaml").read_text().startswith("# why\n"), "comments stay"


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("sources.folder", "expected KEY=VALUE"),
        ("sample.temprature=1", "sample.temprature: unknown key"),
        ("sample.temperature=hot", "sample.temperature: input should be a valid number"),
        ("ingest.teacher=[{source: hf:a/b:c, mapping: gsm8k}]", "not valid YAML, a quoted text may help"),
        ("seeds.first=1", "does not lead through sections"),
    ],
)
def test_a_wrong_setting_leaves_the_params_file_as_it_was(project, capsys, assignment, sentence):
    (project / "preset.yaml").write_text((ROOT / "params.yaml").read_text())
    (project / "params.yaml").write_text("old")
    assert sentence in fails_with_one_sentence(capsys, "use", "preset.yaml", "--set", assignment)
    assert (project / "params.yaml").read_text() == "old"


def test_the_doctor_accepts_a_fine_student_and_names_what_is_wrong_with_another(
    project, checkpoint, tmp_path, capsys
):
    assert cli.main(["doctor"]) == 0
    assert "not made yet" in capsys.readouterr().out
    assert cli.main(["doctor", "--model", str(checkpoint)]) == 0
    assert f"{checkpoint}: fine" in capsys.readouterr().out
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    (broken / "generation_config.json").unlink()
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(settings | {"eos_token_id": None}))
    assert "not usable as a student" in fails_with_one_sentence(capsys, "doctor", "--model", str(broken))


def test_the_doctor_looks_at_what_the_params_name_where_models_base_is_another_ones_copy(
    project: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Path(shutil.copytree(checkpoint, tmp_path / "student"))
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["base"] = {"kind": "checkpoint", "model": str(student)}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(checkpoint, project / "models/base")
    assert cli.main(["doctor"]) == 0
    assert f"student   {student}: fine" in capsys.readouterr().out
    recorded = {"cmd": "oxa base", "params": {"params.yaml": {"base": params["base"]}}}
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"base": recorded}}))
    assert cli.main(["doctor"]) == 0
    assert "student   models/base: fine" in capsys.readouterr().out


def test_the_doctor_names_every_source_that_ingestion_would_stop_at(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = yaml.safe_load((project / "params.yaml").read_text())
    mapping = {"question": "q", "answer": "a", "responses": "r"}
    raw["ingest"]["teacher"] = [{"source": name, "mapping": mapping} for name in ("gone.jsonl", "here.jsonl")]
    raw["ingest"]["benchmarks"]["exam"] = {"source": "hf:someone/something", "mapping": "math"}
    (project / "params.yaml").write_text(yaml.safe_dump(raw))
    (project / "sources/here.jsonl").write_text('{"q": "1?", "answer": "1", "r": "1"}\n')
    assert cli.main(["doctor"]) == 2
    shown = capsys.readouterr()
    assert "sources   ingest.teacher.0: sources/gone.jsonl: no such file; put it there" in shown.out
    assert (
        "sources   ingest.teacher.1: sources/here.jsonl:1: no column 'a'; found ['q', 'answer', 'r']"
        in shown.out
    )
    assert (
        "sources   the first rows of 3 of 6 are fine; read from the hub, later: hf:someone/something"
        in shown.out
    )
    assert "reasons above" in shown.err
    (project / "sources/gone.jsonl").write_text('{"q": "1?", "a": "1", "r": "1"}\n')
    raw["ingest"]["teacher"][1]["mapping"] = mapping | {"answer": "answer"}
    (project / "params.yaml").write_text(yaml.safe_dump(raw))
    assert cli.main(["doctor"]) == 0
    assert "no column" not in capsys.readouterr().out


def test_the_doctor_refuses_a_dated_template_until_another_is_named(project, checkpoint, tmp_path, capsys):
    dated = Path(shutil.copytree(checkpoint, tmp_path / "dated"))
    template = "{{ strftime_now('%d %b %Y') }}" + (dated / "chat_template.jinja").read_text()
    (dated / "chat_template.jinja").write_text(template)
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["base"] = {"kind": "checkpoint", "model": str(dated)}
    raw["sample"]["model"] = str(checkpoint)
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert "not usable as a student" in fails_with_one_sentence(capsys, "doctor")
    raw["base"]["chat_template"] = "plain"
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"student   {dated}: fine" in shown
    assert f"sampler   {checkpoint}: fine" in shown
    raw["sample"]["model"] = str(dated)
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert "cannot sample (sample.model)" in fails_with_one_sentence(capsys, "doctor")
    raw["sample"]["model"] = str(checkpoint)
    raw["pass_rate"] = {"splits": ["rlvr"], "model": str(dated)}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert "cannot sample (pass_rate.model)" in fails_with_one_sentence(capsys, "doctor")


def test_the_doctor_says_beforehand_that_a_warm_up_will_be_needed(project, checkpoint, capsys):
    assert cli.main(["doctor", "--model", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert f"sampler   {checkpoint}: 0 of 4 test answers hold <think>" in shown
    assert "set sample.warm_up" in shown
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["sample"]["warm_up"] = {}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert cli.main(["doctor", "--model", str(checkpoint)]) == 0
    assert "sampler" not in capsys.readouterr().out


def test_a_plan_is_printed_for_people_and_for_machines_and_writes_nothing(project, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    device = {"name": "tiny", "memory": 0.01, "bandwidth": 1, "bfloat16": 1, "float32": 1}
    (project / "params.yaml").write_text(yaml.safe_dump(params | {"plan": {"device": device}}))
    before = sorted(project.rglob("*"))
    assert cli.main(["plan"]) == 0, "a forecast, not a check"
    assert "DOES NOT FIT  train@*: " in capsys.readouterr().out
    assert cli.main(["plan", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is False
    assert {"base", "train@oxa_full", "report"} <= {stage["name"] for stage in document["stages"]}
    assert sorted(project.rglob("*")) == before


def test_a_plan_of_a_file_that_is_not_there_is_one_sentence(project, capsys):
    assert "none.yaml: no such file" in fails_with_one_sentence(capsys, "plan", "--params", "none.yaml")


@pytest.mark.whole
def test_the_worlds_gates_are_measured_on_a_student_of_the_world_alone(project, capsys, checkpoint):
    raw = tiny_params()
    raw["gates"]["world"] = {"num_problems": 3, "num_samples": 2, "max_tokens": 4}
    raw["train"]["shared"]["epochs"], raw["rlvr"]["steps"], raw["rlvr"]["save_every"] = 1.0, 1, 1
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    sentence = fails_with_one_sentence(capsys, "world", "check")
    assert sentence == "oxa: models/base: no such folder; `oxa run base` makes the student"
    assert cli.main(["world", "check", "--model", str(checkpoint)]) == 1
    shown = capsys.readouterr().out
    assert "| G1 competence " in shown
    assert "places, forced: right" in shown
    assert "3 held-out problems, temperature 1" in shown
    assert "Beware: the base fails G1 (competence)" in shown
    assert "sft: pass@2" in shown
    assert "Beware: gate G5 (room) of the small world fails" in shown, "so little teaches it nothing"
    raw["base"]["corpus"] = [{"source": "a.jsonl", "mapping": "gsm8k"}]
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert "pretrained on the source `world` (base.corpus)" in fails_with_one_sentence(
        capsys, "world", "check"
    )
    del raw["gates"]
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert "no section gates.world" in fails_with_one_sentence(capsys, "world", "check")


@pytest.mark.parametrize("command", [["doctor"], INGEST], ids=["doctor", "a stage"])
def test_a_mapping_that_is_not_known_is_told_with_its_key_before_any_work(project, capsys, command):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["ingest"]["benchmarks"]["exam"] = {"source": "exam.jsonl", "mapping": "mathh"}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    sentence = fails_with_one_sentence(capsys, *command)
    assert sentence.startswith(
        "oxa: params.yaml: ingest.benchmarks.exam: source 'exam.jsonl': mapping: input should be"
    )
    assert "found 'mathh'" in sentence


def test_what_was_out_of_reach_has_an_exit_code_of_its_own_and_offline_mode_has_not(
    project, capsys, monkeypatch
):
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    from oxa.errors import DataError, is_out_of_reach

    def wrapped(inner: Exception) -> Exception:
        try:
            try:
                raise inner
            except Exception:
                raise DataError("hf:owner/name: the hub dataset could not be loaded") from None
        except DataError as error:
            return error

    assert is_out_of_reach(wrapped(httpx.ConnectError("refused")))
    assert is_out_of_reach(wrapped(ConnectionResetError()))
    assert is_out_of_reach(TimeoutError())
    assert not is_out_of_reach(wrapped(OfflineModeIsEnabled("off")))
    assert not is_out_of_reach(wrapped(FileNotFoundError()))


def test_a_hub_that_does_not_answer_exits_with_75(project, monkeypatch):
    """A real attempt: the address is one where nobody listens."""
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(
        text.replace(
            "  teacher:\n    - source: world", "  teacher:\n    - {source: 'hf:a/b', mapping: openr1}"
        )
    )
    nobody = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(project / "hub")}
    done = subprocess.run(["oxa", *INGEST], env=os.environ | nobody, capture_output=True, text=True)
    assert done.returncode == os.EX_TEMPFAIL, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("oxa: ")]
    assert "Traceback" not in done.stderr


TRAIN = ["train", "--arm", "sft", "--seed", "0"]
TRAIN += [
    w for name in ("model", "data", "output", "trained", "metrics", "journal") for w in (f"--{name}", name)
]

SLEEPER = """
import os, time
from pathlib import Path
from oxa.runtime import guard
with guard.stage("s", module="oxa.prompts", inputs={}, outputs={"o": Path("o")}, config=None):
    os.write(1, f"{os.getpid()} {os.environ.get('OXA_LAUNCH')}\\n".encode())  # whole lines only
    time.sleep(600)
"""


@pytest.mark.parametrize("launcher", ["'", "  ", "no-such-launcher --num 2"])
def test_a_launcher_that_cannot_be_started_is_named(project, capsys, monkeypatch, launcher):
    monkeypatch.setenv("OXA_LAUNCH", launcher)
    sentence = fails_with_one_sentence(capsys, *TRAIN)
    assert sentence.startswith(f"oxa: OXA_LAUNCH: {launcher!r} cannot be started")


def test_the_processes_of_a_launched_stage_end_with_a_launcher_that_is_killed(project):
    (project / "sleeper.py").write_text(SLEEPER)  # what follows it on the line are its arguments
    launcher = "torchrun --standalone --nproc-per-node 2 sleeper.py"
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    with subprocess.Popen(
        ["oxa", *TRAIN], env=environment | {"OXA_LAUNCH": launcher}, stdout=subprocess.PIPE, text=True
    ) as launched:
        assert launched.stdout is not None
        lines = [launched.stdout.readline().split() for _ in range(2)]
        workers = psutil.Process(launched.pid).children()
        launched.kill()
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
        outlived = [worker.pid for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]
        for worker in alive:
            worker.kill()
    assert outlived == []
    assert sorted(lines) == sorted([str(worker.pid), "None"] for worker in workers), "none launches again"
