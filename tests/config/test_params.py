import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from oxa.config import params as config
from oxa.config.params import Params, check_no_password, check_params, load_params
from oxa.config.section import Section
from oxa.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_params_file_loads(path: Path):
    assert load_params(path).arms


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "presets" / "small-world-from-scratch.yaml").read_text())


def put(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(raw)
    *parents, last = key.split(".")
    section = changed
    for name in parents:
        section = section[name]
    section[last] = value
    return changed


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train.shared.learning_rat", 0.1, "p.yaml: train.shared.learning_rat: unknown key"),
        ("trian", {}, "p.yaml: trian: unknown key"),
        ("base.stepz", 3, "p.yaml: base.stepz: unknown key"),
        ("selection.ul.oxa_full", {"num": 3, "flor": 1}, "p.yaml: selection.ul.oxa_full.flor: unknown key"),
        ("base.steps", "many", "p.yaml: base.steps: input should be a valid integer, .*, found 'many'"),
        ("train.shared.learning_rate", -1, "p.yaml: train.shared.learning_rate: .*greater than 0, found -1"),
        ("sample.top_p", 1.5, "p.yaml: sample.top_p: .*less than or equal to 1, found 1.5"),
        ("evaluate.num_samples", 0, "p.yaml: evaluate.num_samples: .*greater than or equal to 1, found 0"),
        *(
            (
                "selection.shared.num_ce",
                value,
                rf"p.yaml: selection.shared.num_ce: .*`tokens\(N\)`.*, found {shown}",
            )
            for value, shown in [
                ("tokens(0)", r"'tokens\(0\)'"),
                ("tokens(x)", r"'tokens\(x\)'"),
                (0, "0"),
                (-3, "-3"),
                (1.5, "1.5"),
                (True, "True"),
            ]
        ),
        *(
            ("rlvr.temperature", value, rf"p.yaml: rlvr.temperature: .*`entropy\(x\)`.*, found {shown}")
            for value, shown in [
                ("entropy(0)", r"'entropy\(0\)'"),
                ("entropy()", r"'entropy\(\)'"),
                ("hot", "'hot'"),
                (0, "0"),
                (-1, "-1"),
                (float("nan"), "nan"),
                (True, "True"),
            ]
        ),
        ("base.kind", "borrowed", "p.yaml: base: .*'from_scratch', 'checkpoint'"),
        ("arms", ["sft", "new"], "p.yaml: arm 'new' has no entry in selection.ce"),
        ("selection.ce.sft", "lowest ppl", "p.yaml: selection.ce.sft.rule: .*'lowest'.*, found 'lowest ppl'"),
        (
            "selection.ce.sft",
            {"by": "hes", "rule": "highest"},
            "p.yaml: arm 'sft': selection.ce.sft chooses by hes, .*; add it to score.measures",
        ),
        (
            "selection.ce.sft",
            {"by": "length", "rule": "gaussian", "mean": 90},
            "p.yaml: selection.ce.sft: a gaussian by length needs a mean .* and a std",
        ),
        (
            "selection.ce.sft",
            {"rule": "lowest", "std": 1},
            "p.yaml: selection.ce.sft: mean and std belong to the rule gaussian",
        ),
        (
            "train.after",
            {"sft": "sft_ul"},
            "p.yaml: arm 'sft_ul' of train.after .* is not one of arms; add it there or take the pair out",
        ),
        (
            "train.after",
            {"sft": "oxa_mle", "oxa_mle": "oxa_full", "oxa_full": "oxa_mle"},
            "p.yaml: train: after: sft after oxa_mle after oxa_full after oxa_mle: none of them begins with the base",
        ),
        ("train.after", {"sft": "sft"}, "p.yaml: train: after: sft after sft: none of them begins"),
        ("arms", ["sft", "base"], "p.yaml: arm 'base' would be confused"),
        ("arms", ["sft", "sft"], "p.yaml: arms holds an entry twice"),
        ("arms", ["sft", "v1.0"], r"p.yaml: arms.1: an arm's name is a letter, .* a dot .*, found 'v1.0'"),
        ("arms", ["1e5"], "p.yaml: arms.0: an arm's name is a letter, .* as a number.*, found '1e5'"),
        ("train.arms", {"v1.0": {}}, "p.yaml: train.arms.v1.0: an arm's name is a letter"),
        ("arms", ["oxa_mle"], "report.baseline 'sft' is not one of the arms"),
        ("train.arms.oxa_full.num_ul", 0, "arm 'oxa_full': .* must both be set or both be absent"),
        ("selection.shared.ppl_max", 0.5, "p.yaml: selection.shared: ppl_max must be above ppl_min"),
        ("ingest.teacher", [{"source": "a.jsonl"}], "source 'a.jsonl' needs a `mapping`"),
        ("base.num_heads", 3, "p.yaml: base: hidden_size 128 must be an even multiple of num_heads 3"),
        ("base.num_kv_heads", 3, "p.yaml: base: num_heads 4 must be a multiple of num_kv_heads 3"),
        ("ingest.benchmarks", {}, "p.yaml: ingest.benchmarks"),
        ("ingest.benchmarks", {"train": {"source": "world"}}, "'train' cannot be a benchmark's name"),
        (
            "evaluate.num_samples_by_benchmark",
            {"aime": 3},
            "'aime' .* is not one of ingest.benchmarks: world",
        ),
        ("selection.ul.oxa_full.verdicts", ["timeout"], "score.self_verdicts leaves out: timeout"),
        ("registry.benchmark", "aime", "'aime' of registry.benchmark is not one of ingest.benchmarks: world"),
        ("registry.metric", "pass@9", "'pass@9' of registry.metric needs more samples than the 4 a problem"),
        ("registry.metric", "maj@8", "p.yaml: registry.metric"),
        ("registry.model", "it's", "p.yaml: registry.model"),
        ("flow.accelerators", 0, "p.yaml: flow.accelerators"),
        ("ingest.benchmarks", {"../x": {"source": "world"}}, "p.yaml: ingest.benchmarks"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence_that_names_its_path(raw, key, value, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        check_params(put(raw, key, value), "p.yaml")
    assert "\n" not in str(error.value)


def test_a_missing_section_is_named(raw):
    del raw["sample"]
    with pytest.raises(ConfigError, match=r"p.yaml: sample: missing"):
        check_params(raw, "p.yaml")


def test_files_that_are_no_params_files_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list.yaml: expected sections"):
        load_params(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"broken.yaml: not valid YAML"):
        load_params(tmp_path / "broken.yaml")


def test_sections_cannot_be_changed():
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.train.shared.learning_rate = 1.0


def test_every_field_of_every_section_says_what_it_is():
    sections = [
        value for value in vars(config).values() if isinstance(value, type) and issubclass(value, Section)
    ]
    unexplained = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description and name not in Params.model_fields
    ]
    assert len(sections) > 15
    assert unexplained == []


def test_a_password_that_dvc_would_write_down_is_refused_and_not_repeated() -> None:
    raw = {"generate": {"engine": "vllm", "url": ["http://host", "https://user:secret@host/v1"]}}
    with pytest.raises(
        ConfigError, match=r"^p.yaml: generate.url.1: DVC copies .* NETRC names: `machine HOST"
    ) as refused:
        check_no_password(raw, "p.yaml")
    assert "secret" not in str(refused.value)
    check_no_password({"generate": {"url": ["http://host"]}, "base": {"model": "owner/name@main"}}, "p.yaml")
