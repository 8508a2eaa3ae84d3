import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pipelines import make_repository, run, stages_run
from transformers import AutoModelForCausalLM

from oxa.config.params import check_params
from oxa.errors import ConfigError
from oxa.forecast import forecast, text, workload
from oxa.records import schemas, tables

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
CPU = {"name": "a CPU", "memory": 16, "bandwidth": 0.03, "bfloat16": 0.2, "float32": 0.1}
SMALL = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 500,
}


def raw_of(path: Path, **sections: Any) -> dict[str, Any]:
    """A params file with changes, `{"train.shared": {...}}` or a whole section."""
    raw: dict[str, Any] = yaml.safe_load(path.read_text())
    for key, value in sections.items():
        *parents, last = key.split("__")
        section = raw
        for name in parents:
            section = section[name]
        section[last] = section.get(last, {}) | value if isinstance(value, dict) else value
    return raw


def planned(raw: dict[str, Any], folder: Path) -> forecast.Plan:
    return forecast.make(
        check_params(raw, "p.yaml"),
        raw,
        Path("p.yaml"),
        data=folder / "data",
        model=folder / "models" / "base",
        lock=folder / "dvc.lock",
    )


def stages(made: forecast.Plan) -> dict[str, forecast.Step]:
    return {step.name: step for step in made.steps}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_params_file_is_planned_without_network_and_fits(path: Path, tmp_path: Path):
    made = planned(raw_of(path), tmp_path)
    printed = text.text(made)
    assert "Everything fits." in printed
    assert [line for line in printed.splitlines() if len(line) > 120] == []
    told = json.loads(json.dumps(text.document(made)))
    assert told["fits"] is True
    for step in told["stages"]:
        for name in ("flops", "hours"):
            assert step[name] is None or 0 < step[name] < 1e30, step
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {step["name"].partition("@")[0] for step in told["stages"]} == set(graph)


@pytest.mark.parametrize(("name", "parameters"), [("paper-1.5b", 1_543_714_304), ("paper-7b", 7_615_616_512)])
def test_the_papers_students_have_their_published_numbers_of_parameters(
    name: str, parameters: int, tmp_path: Path
):
    made = planned(raw_of(ROOT / "presets" / f"{name}.yaml"), tmp_path)
    assert made.shape.parameters == parameters


def test_the_papers_numbers_of_rows_and_steps_come_out(tmp_path: Path):
    found = stages(planned(raw_of(ROOT / "presets" / "paper-1.5b.yaml"), tmp_path))
    assert found["train@sft"].steps == round(6 * 50_000 / 128)
    assert found["train@sft"].rows == 50_000
    assert found["train@oxa_full"].rows == 100_000
    assert found["evaluate"].rows == (30 + 30 + 30 + 40 + 30) * 128 + 272 * 64
    assert found["evaluate_rlvr"].rows == 4 * found["evaluate"].rows
    assert found["rlvr"].rows == 312 * 64 * 8
    assert found["sample"].rows == 4 * 247_000


def test_a_student_that_fits_on_no_device_is_named_with_what_helps(tmp_path: Path):
    raw = raw_of(ROOT / "presets" / "paper-7b.yaml", plan={"fsdp": False})
    made = planned(raw, tmp_path)
    found = stages(made)
    assert not found["train@sft"].fits
    assert not found["rlvr"].fits
    assert found["score@teacher"].fits
    assert found["sample"].fits
    assert [remedy for remedy in found["train@sft"].remedies if remedy.startswith("FSDP over ")]
    printed = text.text(made)
    assert "DOES NOT FIT  train@*: " in printed
    assert "presets/accelerate/fsdp.yaml" in printed
    assert "Everything fits." not in printed
    assert text.document(made)["fits"] is False


def test_what_a_remedy_says_does_fit(tmp_path: Path):
    changes: dict[str, Any] = {
        "plan": {"device": CPU | {"memory": 2.5}, "devices": 1, "shape": SMALL | {"num_layers": 12}},
        "base": {"kind": "checkpoint", "model": "nobody/nothing", "max_position_embeddings": 8192},
        "train__shared": {"gradient_checkpointing": False, "max_length": 4096, "micro_batch_size": 16},
    }
    raw = raw_of(ROOT / "presets" / "paper-1.5b.yaml", **changes)
    short = stages(planned(raw, tmp_path))["train@sft"]
    assert not short.fits
    assert short.memory is not None
    name, _, told = short.remedies[0].partition(": ")
    assert name == "train.shared.gradient_checkpointing"
    raw["train"]["shared"]["gradient_checkpointing"] = True
    mended = stages(planned(raw, tmp_path))["train@sft"]
    assert mended.fits
    assert mended.memory is not None
    assert mended.memory.total < short.memory.total
    assert told == f"true: {mended.memory.total / 2**30:,.1f} GiB"


def test_vllm_that_cannot_hold_one_response_is_named(tmp_path: Path):
    raw = raw_of(ROOT / "presets" / "paper-7b.yaml")
    raw["generate"]["vllm"] |= {"memory_share": 0.22}
    found = stages(planned(raw, tmp_path))["sample"]
    assert not found.fits
    assert any(remedy.startswith("generate.vllm.tensor_parallel: 2") for remedy in found.remedies)
    raw["generate"] |= {"url": ["http://127.0.0.1:1", "http://127.0.0.1:2"]}
    elsewhere = stages(planned(raw, tmp_path))["sample"]
    assert elsewhere.fits
    assert elsewhere.memory is None
    assert elsewhere.devices == 2


def test_a_step_that_the_devices_cannot_share_is_named(tmp_path: Path):
    raw = raw_of(ROOT / "presets" / "paper-1.5b.yaml", plan={"devices": 7})
    made = planned(raw, tmp_path)
    assert "cannot be shared by 7 processes evenly" in stages(made)["train@sft"].cannot
    printed = text.text(made)
    assert "CANNOT RUN    train@sft: a step of 128 sequences" in printed
    assert "Everything fits." not in printed
    assert text.document(made)["fits"] is False


def test_the_shape_is_read_from_a_local_checkpoint(checkpoint: Path, tmp_path: Path):
    base = {"kind": "checkpoint", "model": str(checkpoint), "max_position_embeddings": 2048}
    raw = raw_of(ROOT / "params.yaml") | {"base": base, "plan": {"device": CPU}}
    made = planned(raw, tmp_path)
    assert made.shape.parameters == AutoModelForCausalLM.from_pretrained(checkpoint).num_parameters()
    assert made.shape.context == 2048


def test_a_student_of_unknown_shape_is_asked_for_in_one_sentence(tmp_path: Path):
    raw = raw_of(ROOT / "params.yaml") | {"base": {"kind": "checkpoint", "model": "nobody/nothing"}}
    with pytest.raises(
        ConfigError, match=r"plan.shape: missing, and the config.json of .*'nobody/nothing'"
    ) as error:
        planned(raw, tmp_path)
    assert "\n" not in str(error.value)


def make_tables(folder: Path, raw: dict[str, Any]) -> None:
    """Tables as ingest, sample, score and selection leave them, and the lock file that DVC would have written."""
    problem = {"source": "s", "question": "q", "answers": ["1"], "tier": ""}
    splits = ["train"] * 7 + ["world"] * 5
    rows = [problem | {"problem_id": str(i), "split": split} for i, split in enumerate(splits)]
    tables.write(
        folder / "data/problems.parquet", pa.Table.from_pylist(rows, schemas.PROBLEMS), schemas.PROBLEMS
    )
    score = {"scorer": "base", "mean_nll": 1.0, "ppl": 2.7, "truncated": False, "mean_entropy": 1.0}
    scores = [score | {"response_id": str(i), "num_tokens": n} for i, n in enumerate([10, 20, 60])]
    tables.write(
        folder / "data/scores/teacher.parquet", pa.Table.from_pylist(scores, schemas.SCORES), schemas.SCORES
    )
    sections = {
        "base": ["base", "prompt", "world", "sources"],
        "ingest": ["ingest", "sources", "world", "verify"],
        "verify@teacher": ["verify"],
        "score@teacher": ["score", "prompt"],
    }
    locked = {
        name: {"cmd": "oxa", "params": {"params.yaml": {key: raw[key] for key in keys}}}
        for name, keys in sections.items()
    }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": locked}))


def test_tables_made_with_these_parameters_are_counted_and_others_are_not(tmp_path: Path):
    raw = raw_of(ROOT / "params.yaml", plan={"device": CPU})
    make_tables(tmp_path, raw)
    made = planned(raw, tmp_path)
    assert made.numbers["training problems"] == workload.Number(7, "measured", "data/problems.parquet")
    assert made.numbers["tokens of a teacher response"].value == 30
    found = stages(made)
    assert found["score@teacher"].origin == "measured"
    assert found["score@teacher"].rows == 3
    assert found["evaluate"].rows == 5 * raw["evaluate"]["num_samples"]
    assert found["sample"].rows == 7 * raw["sample"]["num_samples"]
    changed = raw_of(ROOT / "params.yaml", plan={"device": CPU}, world={"num_train": 900})
    other = planned(changed, tmp_path)
    assert other.numbers["training problems"] == workload.Number(900, "from params", "world.num_train")
    assert stages(other)["score@teacher"].origin == "assumed"


def test_squares_of_counted_lengths_are_exact_and_of_assumed_ones_never_beyond_the_longest(tmp_path: Path):
    raw = raw_of(ROOT / "params.yaml", plan={"device": CPU})
    make_tables(tmp_path, raw)
    made = workload.Made(raw, tmp_path / "data", tmp_path / "dvc.lock")
    rows = workload.Volumes(check_params(raw, "p"), made, 512).scored("teacher")
    assert (rows.tokens, rows.squares, rows.longest) == (90, 10**2 + 20**2 + 60**2, 60)
    assert rows.with_prompt(5).squares == 15**2 + 25**2 + 65**2
    assert workload.estimated(10, 80, 80, "assumed").squares == 10 * 80**2


def test_this_machine_is_taken_where_no_device_is_named(tmp_path: Path):
    made = planned(raw_of(ROOT / "params.yaml"), tmp_path)
    assert made.machine.origin == "measured"
    assert made.machine.memory > 2**30
    assert 1e8 < made.machine.peak["float32"] < 1e16


@pytest.mark.parametrize("name", ["paper-1.5b", "paper-7b"])
def test_a_papers_preset_lays_out_the_whole_pipeline_without_network(name: str, tmp_path: Path):
    folder = make_repository(tmp_path / "repository")
    run(folder, "oxa", "use", str(ROOT / "presets" / f"{name}.yaml"))
    stale = set(json.loads(run(folder, "dvc", "status", "--json")))
    params = yaml.safe_load((folder / "params.yaml").read_text())
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {stage.partition("@")[0] for stage in stale} == set(graph)
    assert {f"train@{arm}-0" for arm in params["arms"]} <= stale
    dry = stages_run(run(folder, "dvc", "repro", "--dry", "--force"))
    assert dry == stale
