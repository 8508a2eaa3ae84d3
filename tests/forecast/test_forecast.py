import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pipelines import make_repository, run, stages_run
from transformers import AutoModelForCausalLM

from oxa.config.params import check_params
from oxa.errors import ConfigError, DataError
from oxa.forecast import forecast, text, workload
from oxa.model import limits
from oxa.records import schemas, tables

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
CPU = {"name": "a CPU", "kind": "cpu", "memory": 16, "bandwidth": 0.03, "bfloat16": 0.2, "float32": 0.1}
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


def planned(raw: dict[str, Any], data: Path | None = None) -> forecast.Plan:
    return forecast.make(check_params(raw, "p.yaml"), Path("p.yaml"), data)


def graph_of(raw: dict[str, Any]) -> set[str]:
    """Stages of dvc.yaml that these parameters have."""
    graph = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    absent = {"gates": raw.get("gates"), "begin": raw["train"].get("after")}
    return graph - {name for name, entries in absent.items() if not entries}


def stages(made: forecast.Plan) -> dict[str, forecast.Step]:
    return {step.name: step for step in made.steps}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_params_file_is_planned_without_network_and_fits(path: Path):
    made = planned(raw_of(path))
    printed = text.text(made)
    assert "Everything fits." in printed
    assert [line for line in printed.splitlines() if len(line) > 120] == []
    shown = json.loads(json.dumps(text.document(made)))
    assert shown["fits"] is True
    for step in shown["stages"]:
        for name in ("flops", "hours"):
            assert step[name] is None or 0 < step[name] < 1e30, step
    assert {step["name"].partition("@")[0] for step in shown["stages"]} == graph_of(raw_of(path))


@pytest.mark.parametrize(("name", "parameters"), [("paper-1.5b", 1_543_714_304), ("paper-7b", 7_615_616_512)])
def test_the_papers_students_have_their_published_numbers_of_parameters(name: str, parameters: int):
    made = planned(raw_of(ROOT / "presets" / f"{name}.yaml"))
    assert made.shape.parameters == parameters


def test_the_papers_numbers_of_rows_and_steps_come_out():
    steps = stages(planned(raw_of(ROOT / "presets" / "paper-1.5b.yaml")))
    assert steps["train@sft"].steps == round(6 * 50_000 / 128)
    assert steps["train@sft"].rows == 50_000
    assert steps["train@oxa_full"].rows == 100_000
    assert steps["evaluate"].rows == (30 + 30 + 30 + 40 + 30) * (128 + 1) + 272 * (64 + 1)
    assert steps["evaluate_rlvr"].rows == 4 * steps["evaluate"].rows
    assert steps["rlvr"].rows == 312 * 64 * 8
    assert steps["sample"].rows == 4 * 247_000


def test_a_student_that_fits_on_no_device_is_named_with_what_helps():
    raw = raw_of(ROOT / "presets" / "paper-7b.yaml", plan={"fsdp": False})
    made = planned(raw)
    steps = stages(made)
    assert not steps["train@sft"].fits
    assert not steps["rlvr"].fits
    assert steps["score@teacher"].fits
    assert steps["sample"].fits
    printed = text.text(made)
    assert "DOES NOT FIT  train@*: " in printed
    assert "spread them by FSDP (plan.fsdp, plan.devices)" in printed
    assert "presets/accelerate/fsdp.yaml" in printed
    assert "Everything fits." not in printed
    assert text.document(made)["fits"] is False


LORA: dict[str, Any] = {"adapter": {"rank": 16}}
ONE_GPU = {"device": CPU | {"memory": 23.6, "kind": "cuda"}, "devices": 1}


def test_a_15b_student_is_trained_by_lora_on_24_gb_where_all_weights_do_not_fit():
    sections = {"plan": ONE_GPU, "rlvr": {"engine": "torch", "batch_size": 8}}
    whole = planned(raw_of(ROOT / "presets" / "paper-1.5b.yaml", **sections))
    assert not stages(whole)["train@sft"].fits
    assert "weights and their state decide: set train.shared.adapter, spread them" in text.text(whole)
    lora = sections | {"rlvr": sections["rlvr"] | LORA, "train__shared": LORA | {"max_length": 16_384}}
    made = planned(raw_of(ROOT / "presets" / "paper-1.5b.yaml", **lora))
    steps = stages(made)
    assert steps["train@oxa_full"].fits
    assert steps["rlvr"].fits
    assert made.numbers["parameters of train.shared"].value == 18_464_768
    assert "linears" not in text.document(made)["student"]


def test_rl_with_an_adapter_and_kto_with_one_hold_no_second_model():
    own = {"oxa_full": {"num_ul": 128, "objective": "kto"}}
    whole = raw_of(ROOT / "presets" / "paper-1.5b.yaml", plan=ONE_GPU, train__arms=own)
    adapted = raw_of(
        ROOT / "presets" / "paper-1.5b.yaml", plan=ONE_GPU, train__arms=own, train__shared=LORA, rlvr=LORA
    )
    parameters = planned(whole).shape.parameters
    steps, lighter = stages(planned(whole)), stages(planned(adapted))
    kto, sft = steps["train@oxa_full"].memory, steps["train@sft"].memory
    assert kto
    assert sft
    assert kto.weights - sft.weights == 4 * parameters
    assert lighter["train@oxa_full"].memory == lighter["train@sft"].memory
    rl, without = steps["rlvr"].memory, lighter["rlvr"].memory
    assert rl
    assert without
    assert rl.weights > 8 * parameters
    assert without.weights < 5 * parameters


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"optimizer": "adamw_8bit"}, "optimizer: adamw_8bit runs on CUDA alone"),
        ({"adapter": {"quantize": "nf4"}}, "adapter.quantize: nf4 runs on CUDA alone"),
    ],
)
def test_what_runs_on_cuda_alone_cannot_run_on_a_cpu(settings: dict[str, Any], why: str):
    raw = raw_of(ROOT / "params.yaml", plan={"device": CPU}, train__shared=settings)
    assert stages(planned(raw))["train@sft"].cannot == why


def test_a_device_of_kind_cpu_generates_in_float32():
    steps = [
        stages(planned(raw_of(ROOT / "params.yaml", plan={"device": CPU | {"kind": kind}})))["sample"].memory
        for kind in ("cpu", "cuda")
    ]
    assert steps[0]
    assert steps[1]
    assert steps[0].weights == 2 * steps[1].weights


def test_a_warm_up_is_a_stage_and_keeps_its_problems_from_the_samples():
    plain = stages(planned(raw_of(ROOT / "params.yaml", plan={"device": CPU})))
    settings: dict[str, Any] = {"num": 100, "num_ce": 10, "epochs": 3.0, "max_length": 512}
    raw = raw_of(ROOT / "params.yaml", plan={"device": CPU}, sample={"warm_up": settings})
    made = planned(raw)
    steps = stages(made)
    assert steps["warm_up"].steps == 30
    assert steps["warm_up"].flops
    assert steps["warm_up"].memory
    assert "warm_up: 64 answers before and behind it" in text.text(made)
    num_samples = raw["sample"]["num_samples"]
    assert steps["sample"].rows == (plain["sample"].rows or 0) - 100 * num_samples
    raw["sample"]["warm_up"]["apart"] = False
    assert stages(planned(raw))["sample"].rows == plain["sample"].rows


def test_pass_rates_cost_what_their_answers_cost_and_nothing_while_off():
    assert "makes nothing: pass_rate.splits is empty" in text.text(planned(raw_of(ROOT / "params.yaml")))
    settings: dict[str, Any] = {"splits": ["rlvr"], "num_samples": 8, "max_tokens": 80}
    raw = raw_of(ROOT / "params.yaml", plan={"device": CPU}, pass_rate=settings)
    steps = stages(planned(raw))
    assert steps["pass_rate"].rows == 8 * raw["sources"]["world"]["num_rlvr"]
    assert steps["pass_rate"].hours
    raw["pass_rate"]["splits"] = ["train"]
    num_train = raw["sources"]["world"]["num_train"]
    assert stages(planned(raw))["pass_rate"].rows == 8 * num_train
    raw["rlvr"]["sampling"] = "dynamic"
    assert "dynamic sampling draws 1 to 4 times these rollouts" in text.text(planned(raw))


def test_batches_that_do_not_fit_are_named_with_the_settings_that_decide():
    changes: dict[str, Any] = {
        "plan": {"device": CPU | {"memory": 2.5}, "devices": 1, "shape": SMALL | {"num_layers": 12}},
        "base": {"kind": "checkpoint", "model": "nobody/nothing", "max_position_embeddings": 8192},
        "train__shared": {"gradient_checkpointing": False, "max_length": 4096, "micro_batch_size": 16},
    }
    raw = raw_of(ROOT / "presets" / "paper-1.5b.yaml", **changes)
    plan = planned(raw)
    short = stages(plan)["train@sft"]
    assert not short.fits
    assert short.memory is not None
    assert "set train.shared.gradient_checkpointing: true" in text.text(plan)
    raw["train"]["shared"]["gradient_checkpointing"] = True
    mended = stages(planned(raw))["train@sft"]
    assert mended.fits
    assert mended.memory is not None
    assert mended.memory.total < short.memory.total


def test_vllm_that_cannot_hold_one_response_is_named():
    raw = raw_of(ROOT / "presets" / "paper-7b.yaml")
    raw["generate"]["vllm"] |= {"memory_share": 0.22}
    plan = planned(raw)
    assert not stages(plan)["sample"].fits
    assert "raise generate.vllm.tensor_parallel or generate.vllm.memory_share" in text.text(plan)
    raw["generate"] |= {"url": ["http://127.0.0.1:1", "http://127.0.0.1:2"]}
    elsewhere = stages(planned(raw))["sample"]
    assert elsewhere.fits
    assert elsewhere.memory is None
    assert elsewhere.devices == 2


def test_a_step_that_the_devices_cannot_share_is_named():
    raw = raw_of(ROOT / "presets" / "paper-1.5b.yaml", plan={"devices": 7})
    made = planned(raw)
    assert "cannot be shared by 7 processes evenly" in stages(made)["train@sft"].cannot
    printed = text.text(made)
    assert "CANNOT RUN    train@sft: a step of 128 sequences" in printed
    assert "Everything fits." not in printed
    assert text.document(made)["fits"] is False


def test_the_shape_is_read_from_a_local_checkpoint(checkpoint: Path):
    base = {"kind": "checkpoint", "model": str(checkpoint), "max_position_embeddings": 2048}
    raw = raw_of(ROOT / "params.yaml") | {"base": base, "plan": {"device": CPU}, "gates": {}}
    made = planned(raw)
    assert made.shape.parameters == AutoModelForCausalLM.from_pretrained(checkpoint).num_parameters()
    assert made.shape.context == 2048


def test_a_student_of_unknown_shape_is_asked_for_in_one_sentence():
    base = {"kind": "checkpoint", "model": "nobody/nothing"}
    raw = raw_of(ROOT / "params.yaml") | {"base": base, "gates": {}}
    with pytest.raises(
        ConfigError, match=r"plan.shape: missing, and the config.json of .*'nobody/nothing'"
    ) as error:
        planned(raw)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_asks_for_a_billion_layers_is_refused_in_bounded_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limits, "SECONDS", 1.0)
    settings = json.loads((checkpoint / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    base = {"kind": "checkpoint", "model": str(tmp_path)}
    with pytest.raises(DataError, match=r"no usable model: config\.json: reading it takes more than "):
        planned(raw_of(ROOT / "params.yaml") | {"base": base, "gates": {}})


def make_tables(data: Path) -> None:
    """Tables as ingest and score leave them."""
    problem = {"source": "s", "question": "q", "answers": ["1"], "tier": ""}
    splits = ["train"] * 7 + ["world"] * 5
    rows = [problem | {"problem_id": str(i), "split": split} for i, split in enumerate(splits)]
    tables.write(data / "problems.parquet", pa.Table.from_pylist(rows, schemas.PROBLEMS), schemas.PROBLEMS)
    score = {"scorer": "base", "mean_nll": 1.0, "ppl": 2.7, "truncated": False, "mean_entropy": 1.0}
    score |= {"train_tokens": 70}
    scores = [score | {"response_id": str(i), "num_tokens": n} for i, n in enumerate([10, 20, 60])]
    tables.write(
        data / "scores/teacher.parquet", pa.Table.from_pylist(scores, schemas.SCORES), schemas.SCORES
    )


def test_tables_of_a_folder_that_is_named_are_counted_and_no_others(tmp_path: Path):
    raw = raw_of(ROOT / "params.yaml", plan={"device": CPU})
    make_tables(tmp_path / "data")
    made = planned(raw, tmp_path / "data")
    why = f"{tmp_path}/data/problems.parquet, as it lies there"
    assert made.numbers["training problems"] == workload.Number(7, "measured", why)
    assert made.numbers["tokens of a teacher response"].value == 30
    steps = stages(made)
    assert steps["score@teacher"].origin == "measured"
    assert steps["score@teacher"].rows == 3
    assert steps["evaluate"].rows == 5 * (raw["evaluate"]["num_samples"] + 1)
    assert steps["sample"].rows == 7 * raw["sample"]["num_samples"]
    changed = raw_of(ROOT / "params.yaml", plan={"device": CPU}, sources={"world": {"num_train": 900}})
    other = planned(changed)
    assert other.numbers["training problems"] == workload.Number(
        900, "from params", "sources.world.num_train"
    )
    assert stages(other)["score@teacher"].origin == "assumed"


def test_rows_of_files_that_lie_here_and_limits_bound_the_problems(tmp_path: Path):
    mapping = {"question": "q", "answer": "a", "responses": "r"}
    (tmp_path / "lines.jsonl").write_text('{"q": "1?", "a": "1", "r": "1"}\n' * 7)
    pq.write_table(pa.table({"q": ["1?"] * 9, "a": ["1"] * 9, "r": ["1"] * 9}), tmp_path / "table.parquet")
    lines, table = (
        {"source": "lines.jsonl", "mapping": mapping},
        {"source": "table.parquet", "mapping": mapping},
    )
    unknown = {"source": "later.jsonl", "mapping": mapping}

    def numbers(teacher: list[Any], exam: dict[str, Any]) -> tuple[workload.Number, workload.Number]:
        raw = raw_of(ROOT / "presets" / "small-world-from-scratch.yaml", sources__folder=str(tmp_path))
        raw["ingest"]["teacher"] = teacher
        raw["ingest"]["benchmarks"]["exam"] = exam
        made = workload.workload(check_params(raw, "p.yaml"), 64, None)
        return made.numbers["training problems"], made.benchmarks["exam"]

    problems, exam = numbers([lines, table | {"part": "0/2"}], lines | {"limit": 5})
    assert problems[:2] == (7 + 5, "from params"), "half of nine, rounded up"
    assert str(tmp_path) in problems.why
    assert exam[:2] == (5, "from params")
    problems, exam = numbers([lines, unknown], unknown)
    assert problems[:2] == (workload.PROBLEMS, "assumed"), "one of two files tells nothing of the other"
    assert exam[:2] == (workload.BENCHMARK_PROBLEMS, "assumed")


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--data: .*none: no such folder"):
        planned(raw_of(ROOT / "params.yaml", plan={"device": CPU}), tmp_path / "none")


def test_squares_of_counted_lengths_are_exact_and_of_assumed_ones_never_beyond_the_longest(tmp_path: Path):
    make_tables(tmp_path)
    params = check_params(raw_of(ROOT / "params.yaml", plan={"device": CPU}), "p")
    rows = workload.workload(params, 512, tmp_path).responses["teacher"]
    assert (rows.tokens, rows.squares, rows.longest) == (90, 10**2 + 20**2 + 60**2, 60)
    assert rows.with_prompt(5).squares == 15**2 + 25**2 + 65**2
    assert workload.estimated(10, 80, 80, "assumed").squares == 10 * 80**2


def test_this_machine_is_taken_where_no_device_is_named():
    made = planned(raw_of(ROOT / "params.yaml"))
    assert made.machine.origin == "measured"
    assert made.machine.memory > 2**30
    assert 1e8 < made.machine.peak["float32"] < 1e16


@pytest.mark.parametrize("name", ["paper-1.5b", "paper-7b"])
def test_a_papers_preset_lays_out_the_whole_pipeline_without_network(name: str, tmp_path: Path):
    folder = make_repository(tmp_path / "repository")
    run(folder, "oxa", "use", str(ROOT / "presets" / f"{name}.yaml"))
    stale = set(json.loads(run(folder, "dvc", "status", "--json")))
    params = yaml.safe_load((folder / "params.yaml").read_text())
    assert {stage.partition("@")[0] for stage in stale} == graph_of(params)
    assert {f"train@{arm}-0" for arm in params["arms"]} <= stale
    dry = stages_run(run(folder, "dvc", "repro", "--dry", "--force"))
    assert dry == stale
