"""Sources: files, hub datasets and mappings to records; every fault of a file is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SHARED_DATA
from oxa import hashes
from oxa.config.base import Checkpoint, FromScratch
from oxa.config.fine_tuning import TrainArm
from oxa.config.params import load_params
from oxa.config.prompt import PAPER_SUFFIX
from oxa.config.sources import Mapping, Source, Sources, World
from oxa.data import mappings, readers, sources
from oxa.data.mappings import Record, Reject
from oxa.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
WORLD = World(num_train=6, num_rlvr=3, num_benchmark=4, num_teacher=2)
PLAIN = Mapping(question="q", answer="a", responses="r")
GOOD = '{"q": "1", "a": "2", "r": "3"}\n'


def read(folder: Path, purpose: mappings.Purpose = "teacher", **fields: Any) -> list[Record | Reject]:
    fields = {"source": "data.jsonl", "mapping": PLAIN} | fields
    return list(sources.read(Source(**fields), Sources(folder=str(folder), world=WORLD), purpose))


def write(folder: Path, rows: list[Any], name: str = "data.jsonl") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain(number: int, **other: Any) -> dict[str, Any]:
    return {"q": f"What is {number} + 1?", "a": str(number + 1), "r": ["<think>x</think> y"]} | other


# --- files ---


def test_jsonl_json_and_parquet_give_the_same_records(tmp_path: Path) -> None:
    table = [plain(number, unused=number) for number in range(600)]
    write(tmp_path, table)
    (tmp_path / "list.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    write(tmp_path, table, "lines.json")
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "data.parquet")
    first = read(tmp_path)
    assert len(first) == 600
    assert first[3] == Record(3, "What is 3 + 1?", ["4"], ["<think>x</think> y"], "")
    for other in ("list.json", "lines.json", "data.parquet"):
        assert read(tmp_path, source=other) == first


def test_blank_lines_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\ufeff\n" + json.dumps(plain(1)) + "\n\n \n" + json.dumps(plain(2)))
    assert [item.row for item in read(tmp_path)] == [0, 1]


def test_line_separators_inside_text_do_not_end_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0bd"
    (tmp_path / "data.jsonl").write_text(
        json.dumps(plain(1, r=text), ensure_ascii=False) + "\n", encoding="utf-8"
    )
    [record] = read(tmp_path)
    assert isinstance(record, Record)
    assert record.responses == [text]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD + '{"q": "1", "a"\n' + GOOD, r"data\.jsonl:2: broken JSON"),
        ("no JSON at all\n", r"data\.jsonl:1: broken JSON"),
        ('{"q": "1", "a": ' + "9" * 5000 + ', "r": "3"}\n', r"data\.jsonl:1: broken JSON"),
        ('{"q": ' + "[" * 100_000 + "\n", r"data\.jsonl:1: broken JSON"),
        ('[{"q": "1", "a": "2", "r": "3"},\n{"q" 2}]', r"data\.jsonl:2: broken JSON"),
        (GOOD + "17\n", r"data\.jsonl:2: expected an object with columns, found int"),
        (GOOD + '{"q": "1", "b": "2", "r": "3"}\n', r"data\.jsonl:2: no column 'a'; found \['q', 'b', 'r'\]"),
        ('{"data": [{"q": "1", "a": "2", "r": "3"}]}\n', r"data\.jsonl:1: no column 'q'; .* entries of its 'data'"),
        ('{"x": {"q": "1"}, "a": "2", "r": "3"}\n', r"data\.jsonl:1: no column 'q'; .*; write `x\.q` in the `map"),
    ],
)  # fmt: skip
def test_a_broken_line_or_a_missing_column_is_named_with_its_line(
    tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "data.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=expected) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_drop_their_row_and_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    line = json.dumps(plain(1)).encode()
    path = tmp_path / "data.jsonl"
    path.write_bytes(line + b"\n" + line.replace(b"What", b"Wh\xe4t") + b"\n" + line)
    first, bad, last = read(tmp_path)
    assert isinstance(bad, Reject)
    assert (bad.row, bad.reason) == (1, "bad_unicode")
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    path.write_text(json.dumps(plain(1)), encoding="utf-16")
    with pytest.raises(DataError, match=r"data\.jsonl:1: neither JSON nor UTF-8 text; save the file"):
        read(tmp_path)


def test_a_parquet_file_that_is_none_or_lacks_a_column_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"data\.parquet: not a readable Parquet file"):
        read(tmp_path, source="data.parquet")
    pq.write_table(pa.table({"q": ["1"], "r": ["2"], "other": ["3"]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"no column 'a'; found \['q', 'r', 'other'\]"):
        read(tmp_path, source="data.parquet")


def test_a_check_reads_the_first_row_and_asks_no_hub(tmp_path: Path) -> None:
    folder = Sources(folder=str(tmp_path), world=WORLD)
    kept = Source(source="hf:someone/something", local="data.jsonl", mapping=PLAIN)
    assert not sources.check_first_row(kept, folder, "teacher")
    write(tmp_path, [plain(1), "no JSON", "no JSON"])
    assert sources.check_first_row(kept, folder, "teacher")
    assert sources.check_first_row(Source(source="world"), folder, "rlvr")
    other = Mapping(question="q", answer="gold", responses="r")
    with pytest.raises(DataError, match=r"data\.jsonl:1: no column 'gold'"):
        sources.check_first_row(Source(source="data.jsonl", mapping=other), folder, "teacher")
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        sources.check_first_row(Source(source="gone.jsonl", mapping=PLAIN), folder, "teacher")


def test_a_missing_file_is_named_and_a_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    with pytest.raises(DataError, match=r"sources/data\.jsonl: no such file; put it there"):
        read(folder)
    write(tmp_path, [plain(1)])
    for outside in ("../data.jsonl", str(tmp_path / "data.jsonl")):
        with pytest.raises(ConfigError, match=r"lies outside sources\.folder .*; move it there"):
            read(folder, source=outside)
    with pytest.raises(ConfigError, match=r"expected a \.jsonl, \.json or \.parquet file"):
        write(folder, [plain(1)], "data.csv")
        read(folder, source="data.csv")


def test_a_file_may_be_named_from_the_folder_from_here_or_be_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("sources")
    folder.mkdir()
    write(folder, [plain(1)])
    names = ("data.jsonl", "sources/data.jsonl", str(tmp_path / "sources" / "data.jsonl"))
    found = [read(folder, source=one) for one in names] + [read(folder / "data.jsonl")]
    assert len(found[0]) == 1
    assert all(one == found[0] for one in found)


# --- rows that are unusable, and text ---


def test_unusable_rows_are_rejects_with_a_reason(tmp_path: Path) -> None:
    write(
        tmp_path,
        [plain(1, q=" \n"), plain(2, q=None), plain(3, a=None), plain(4, a=[" "]), plain(5, r=["\ud800"])],
    )
    found = read(tmp_path)
    assert [(item.row, item.reason) for item in found if isinstance(item, Reject)] == [
        (0, "empty_problem"),
        (1, "empty_problem"),
        (2, "no_answer"),
        (3, "no_answer"),
        (4, "bad_unicode"),
    ]


def test_text_is_kept_verbatim(tmp_path: Path) -> None:
    text = " <think>\r\n\ttabs\n\n</think>  \\boxed{1}\n "
    write(tmp_path, [plain(1, q=" q\n", r=[text, "", "no marks", "<|begin_of_thought|>"])])
    [record] = read(tmp_path)
    assert isinstance(record, Record)
    assert (record.question, record.responses) == (" q\n", [text, "", "no marks", "<|begin_of_thought|>"])


def test_other_reasoning_marks_become_think_where_the_mapping_says_so(tmp_path: Path) -> None:
    write(tmp_path, [plain(1, r="<|begin_of_thought|>a<|end_of_thought|> b")])
    marks = ("<|begin_of_thought|>", "<|end_of_thought|>")
    [record] = read(tmp_path, mapping=PLAIN.model_copy(update={"think": marks}))
    assert isinstance(record, Record)
    assert record.responses == ["<think>a</think> b"]


def test_numbers_and_lists_of_accepted_answers_are_gold(tmp_path: Path) -> None:
    write(tmp_path, [plain(1, a=70), plain(2, a=["9.6\n", "9.60", "9.6"])])
    assert [item.answers for item in read(tmp_path) if isinstance(item, Record)] == [["70"], ["9.6", "9.60"]]


def test_a_source_without_gold_answers_takes_what_its_teacher_boxed(tmp_path: Path) -> None:
    mapping = Mapping(question="q", responses="r")
    nested = "<think>\\boxed{1}</think> \\boxed{2} halved twice: \\boxed{\\frac{1}{2}} \\boxed{3"
    write(tmp_path, [plain(1, r=["none", nested]), plain(2, r=["<think>\\boxed{5}</think> none"])])
    record, reject = read(tmp_path, mapping=mapping)
    assert isinstance(record, Record)
    assert (record.answers, record.gold_from_response) == (["\\frac{1}{2}"], True)
    assert isinstance(reject, Reject)
    assert reject.reason == "no_answer"
    for purpose, expected in (("benchmark", "a benchmark needs gold"), ("rlvr", "RL needs gold answers")):
        with pytest.raises(ConfigError, match=expected):
            read(tmp_path, purpose, mapping=mapping)


def test_a_gold_answer_that_a_response_gives_is_what_its_grading_would_find(tmp_path: Path) -> None:
    responses = [
        "<think>a</think> \\boxed{2}, \\boxed{3}",
        "<think>a</think> \\boxed{5}. Remember the format \\boxed{answer}.",
        "<think>a</think> It is $\\boxed5$.",
        "<think>a</think> It is not \\boxed{4}.",
        "<think>a</think> The answer is 5.",
    ]
    write(tmp_path, [plain(row, r=text) for row, text in enumerate(responses)])
    items = read(tmp_path, mapping=Mapping(question="q", responses="r"))
    assert [item.answers for item in items if isinstance(item, Record)] == [["2, 3"], ["5"], ["5"]]
    assert [item.reason for item in items if isinstance(item, Reject)] == ["no_answer"] * 2


def test_a_teacher_needs_responses(tmp_path: Path) -> None:
    write(tmp_path, [{"problem": "1", "answer": "2"}])
    with pytest.raises(ConfigError, match="a teacher needs responses"):
        read(tmp_path, mapping="math")


def test_problems_for_rl_need_no_responses_and_theirs_are_not_read(tmp_path: Path) -> None:
    # the columns of agentica-org/DeepScaleR-Preview-Dataset
    write(tmp_path, [{"problem": "1+1?", "answer": "2", "solution": "by adding"}])
    for mapping in ("math", Mapping(question="problem", answer="answer")):
        assert read(tmp_path, "rlvr", mapping=mapping) == [Record(0, "1+1?", ["2"], [], "")]
    write(tmp_path, [plain(1), plain(2, r=["\ud800"])])
    assert [item.responses for item in read(tmp_path, "rlvr") if isinstance(item, Record)] == [[], []]


def test_for_rl_a_row_whose_gold_only_its_response_gives_is_dropped(tmp_path: Path) -> None:
    rows = [
        {"query": "1+1?", "answer": "2", "DeepSeek-R1_Response_List": ["\\boxed{3}"]},
        {"input": "1+2?", "output": "\\boxed{3}", "category": "math"},
    ]
    write(tmp_path, rows)
    record, reject = read(tmp_path, "rlvr", mapping="acereason")
    assert record == Record(0, "1+1?", ["2"], [], "")
    assert isinstance(reject, Reject)
    assert (reject.row, reject.reason) == (1, "no_answer")


# --- built-in mappings ---


def test_gsm8k_rationales_become_reasoning_without_calculator_notes(tmp_path: Path) -> None:
    answer = "He sold 48/2 = <<48/2=24>>24 clips.\nThat is $<<24*50=1200>>1,200.\n#### 1,200"
    write(tmp_path, [{"question": "How many?", "answer": answer}, {"question": "Why?", "answer": "no gold"}])
    record, reject = read(tmp_path, mapping="gsm8k")
    assert isinstance(record, Record)
    assert record.answers == ["1200"]
    assert record.responses == ["<think>\nHe sold 48/2 = 24 clips.\nThat is $1,200.\n</think>\n\\boxed{1200}"]
    assert record.tier == "1-2 steps"
    assert isinstance(reject, Reject)
    assert reject.reason == "no_answer"


@pytest.mark.parametrize(
    ("num", "tier"), [(0, "1-2 steps"), (3, "3-4 steps"), (4, "3-4 steps"), (5, "5+ steps")]
)
def test_gsm8k_problems_are_told_apart_by_their_steps(tmp_path: Path, num: int, tier: str) -> None:
    write(tmp_path, [{"question": "How many?", "answer": "1+1=<<1+1=2>>2. " * num + "#### 2"}])
    [record] = read(tmp_path, "benchmark", mapping="gsm8k")
    assert isinstance(record, Record)
    assert record.tier == tier


def test_another_mapping_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = mappings.Layout(question=("task",), answer=("solution",), responses=("attempts",))
    monkeypatch.setitem(mappings.MAPPINGS, "mine", layout)
    write(tmp_path, [{"task": "1 + 1?", "solution": "2", "attempts": ["\\boxed{2}"]}])
    [record] = read(tmp_path, mapping="mine")
    assert isinstance(record, Record)
    assert (record.question, record.answers, record.responses) == ("1 + 1?", ["2"], ["\\boxed{2}"])
    with pytest.raises(
        ConfigError, match=r"mapping: input should be 'acereason', .* or 'mine', found 'other'"
    ):
        mappings.check(Source(source="data.jsonl", mapping="other"), "teacher")


def test_acereason_rows_of_both_publishers_are_read(tmp_path: Path) -> None:
    rows = [
        {"query": "1+1?", "answer": "2", "DeepSeek-R1_Response_List": ["<think>a</think> \\boxed{2}", "b"]},
        {"input": "1+2?", "output": "<think>a</think> \\boxed{3}", "category": "math", "source": "x"},
        {"input": "Sort.", "output": "<think>a</think> code", "category": "code", "source": "x"},
    ]
    write(tmp_path, rows)
    matched, plain_row, code = read(tmp_path, mapping="acereason")
    assert matched == Record(0, "1+1?", ["2"], ["<think>a</think> \\boxed{2}", "b"], "")
    assert plain_row == Record(1, "1+2?", ["3"], ["<think>a</think> \\boxed{3}"], "", gold_from_response=True)
    assert isinstance(code, Reject)
    assert code.reason == "not_math"


def test_openr1_generations_are_kept_whatever_their_flags(tmp_path: Path) -> None:
    row = {"problem": "p", "answer": "1", "generations": ["a", "b"], "correctness_math_verify": [True, False]}
    write(tmp_path, [row])
    assert read(tmp_path, mapping="openr1") == [Record(0, "p", ["1"], ["a", "b"], "")]


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the project's shared data")
def test_the_shared_benchmarks_are_read_whole() -> None:
    for file, mapping, number in (
        ("aime24.json", "math", 30),
        ("aime25.json", "math", 30),
        ("minerva.json", "math", 272),
        ("gsm8k_test.jsonl", "gsm8k", 1319),
    ):
        found = read(SHARED_DATA, "benchmark", source=file, mapping=mapping)
        assert len(found) == number
        assert all(isinstance(item, Record) and item.answers and not item.responses for item in found)


# --- parts and limits ---


@given(numbers=st.lists(st.integers(0, 60), max_size=80), count=st.integers(1, 4), limit=st.integers(1, 30))
def test_parts_are_disjoint_and_complete_and_limits_do_not_depend_on_order(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], count: int, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    write(folder, [plain(number) for number in numbers])
    parts = [read(folder, part=f"{index}/{count}") for index in range(count)]
    assert sorted(item.row for part in parts for item in part) == list(range(len(numbers)))
    questions = [{item.question for item in part if isinstance(item, Record)} for part in parts]
    assert sum(map(len, questions)) == len(set(numbers))

    chosen = {item.question for item in read(folder, limit=limit) if isinstance(item, Record)}
    everything = {plain(number)["q"] for number in numbers}
    assert chosen == set(sorted(everything, key=hashes.problem_id)[:limit])
    write(folder, [plain(number) for number in reversed(numbers)])
    assert {item.question for item in read(folder, limit=limit) if isinstance(item, Record)} == chosen


def test_a_limit_keeps_all_rows_of_its_problems_in_their_order_and_every_reject(tmp_path: Path) -> None:
    write(tmp_path, [plain(number % 5) for number in range(20)] + [plain(0, q="")])
    found = read(tmp_path, limit=2)
    assert len(found) == 9
    assert [item.row for item in found] == sorted(item.row for item in found)
    assert isinstance(found[-1], Reject)


# --- the hub, the world, documents, names ---


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset in the hub's layout: a card that names two configurations, a Parquet file a split."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owner" / "name"
    card = ["---", "configs:"]
    for subset in ("main", "socratic"):
        (folder / subset).mkdir(parents=True)
        card += [f"- config_name: {subset}", "  data_files:"]
        for split in ("train", "test"):
            table = pa.table({"q": [f"{subset} {split}?"], "a": [1], "r": [["x"]], "wide": ["w"]})
            pq.write_table(table, folder / subset / f"{split}.parquet")
            card += [f"  - split: {split}", f"    path: {subset}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


def test_a_dataset_in_the_hubs_layout_is_read_by_configuration_and_split(hub_folder: Path) -> None:
    def project(names: list[str], where: str) -> list[str]:
        assert names == ["q", "a", "r", "wide"]
        return ["q", "a"]

    found = list(
        readers.hub(str(hub_folder), "socratic", "test", None, project, shown="hf:o/n", advice="do this")
    )
    assert found == [(0, "hf:o/n: row 0", {"q": "socratic test?", "a": 1})]
    for subset, split in (("absent", "test"), ("main", "absent")):
        with pytest.raises(
            DataError, match=r"^hf:o/n: the hub dataset could not be loaded \(.*absent.*\); do this$"
        ):
            list(readers.hub(str(hub_folder), subset, split, None, project, shown="hf:o/n", advice="do this"))


@pytest.mark.parametrize(
    ("identifier", "parts"),
    [
        ("hf:owner/name", ("owner/name", None, "train")),
        ("hf:owner/name:test", ("owner/name", None, "test")),
        ("hf:owner/name:socratic", ("owner/name", "socratic", "train")),
        ("hf:owner/name:socratic:test", ("owner/name", "socratic", "test")),
        ("hf:owner/name::verified", ("owner/name", None, "verified")),
    ],
)
def test_a_hub_id_names_repository_configuration_and_split(
    identifier: str, parts: tuple[str, str | None, str]
) -> None:
    assert readers.parts_of(identifier) == parts


def test_a_folder_of_a_hub_ids_name_is_not_taken_for_the_dataset(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="owner/name is a folder here"):
        read(tmp_path, source="hf:owner/name:socratic:test")


def test_without_network_a_hub_dataset_is_one_sentence_and_a_local_file_takes_its_place(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        DataError, match=r"could not be loaded .*; or, under .*, put 'data\.jsonl' there"
    ) as caught:
        read(tmp_path, source="hf:nobody/nothing:main:train", local="data.jsonl")
    assert "\n" not in str(caught.value)
    write(tmp_path, [plain(1)])
    assert len(read(tmp_path, source="hf:nobody/nothing:main:train", local="data.jsonl")) == 1
    with pytest.raises(ConfigError, match="expected hf:owner/name"):
        read(tmp_path, source="hf:nothing")


def test_the_small_world_is_read_like_any_other_source(tmp_path: Path) -> None:
    teacher, benchmark = read(tmp_path, source="world"), read(tmp_path, "benchmark", source="world")
    rlvr = read(tmp_path, "rlvr", source="world")
    assert (len(teacher), len(rlvr), len(benchmark)) == (6, 3, 4)
    assert all(isinstance(item, Record) and len(item.responses) == 2 and item.tier for item in teacher)
    assert all(isinstance(item, Record) and not item.responses and item.tier for item in rlvr + benchmark)
    assert len(read(tmp_path, source="world", limit=2)) == 2


def test_documents_are_a_chat_a_response_and_endless_for_the_world(tmp_path: Path) -> None:
    source = Source(source="data.jsonl", mapping=PLAIN)
    write(tmp_path, [plain(1, r=["a", " ", "b"]), plain(2, q=""), plain(3, r=[])])
    found = list(sources.documents(source, Sources(folder=str(tmp_path), world=WORLD)))
    said = [(one.row, one.reason) if isinstance(one, Reject) else one for one in found]
    asked = "What is 1 + 1?"
    assert said == [
        (asked, "a"),
        (0, "empty_response"),
        (asked, "b"),
        (1, "empty_problem"),
        (2, "no_response"),
    ]
    endless = sources.documents(Source(source="world"), Sources(folder=str(tmp_path), world=WORLD))
    assert len([next(endless) for _ in range(50)]) == 50


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": "world"}, "world"),
        ({"source": "hf:openai/gsm8k:main:train", "part": "1/2"}, "openai/gsm8k:main:train[1/2]"),
        ({"source": "more/data.jsonl"}, "more/data.jsonl"),
        ({"source": "/somebody/secret/data.jsonl"}, "data.jsonl"),
        ({"source": "../secret/data.jsonl"}, "data.jsonl"),
    ],
)
def test_names_hold_no_machine_paths(fields: dict[str, Any], expected: str) -> None:
    assert sources.name(Source(mapping="math", **fields)) == expected


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the project's shared data")
def test_the_gsm8k_preset_reads_local_copies_and_teaches_other_problems_than_it_pretrains_on() -> None:
    params = load_params(ROOT / "presets" / "gsm8k.yaml")
    assert isinstance(params.base, FromScratch)

    def questions(source: Source, purpose: mappings.Purpose) -> set[str]:
        found = sources.read(source, Sources(folder=str(SHARED_DATA), world=WORLD), purpose)
        return {hashes.problem_id(item.question) for item in found if isinstance(item, Record)}

    [corpus], [teacher] = params.base.corpus, params.ingest.teacher
    pretrained, taught = questions(corpus, "teacher"), questions(teacher, "teacher")
    whole = questions(teacher.model_copy(update={"limit": None}), "teacher")
    assert len(pretrained) + len(whole) == 7473
    assert taught < whole
    assert len(taught) == teacher.limit
    assert not pretrained & taught
    [rlvr] = params.ingest.rlvr
    reinforced = questions(rlvr, "rlvr") - taught
    assert reinforced == whole - taught
    sizes = {key: len(questions(source, "benchmark")) for key, source in params.ingest.benchmarks.items()}
    assert sizes == {"gsm8k": 200, "aime24": 30}


@pytest.mark.parametrize("preset", ["paper-1.5b", "paper-7b"])
def test_the_paper_presets_hold_the_papers_settings(preset: str) -> None:
    params = load_params(ROOT / "presets" / f"{preset}.yaml")
    large = preset == "paper-7b"
    assert isinstance(params.base, Checkpoint)
    assert params.base.model == f"Qwen/Qwen2.5-Math-{'7B' if large else '1.5B'}"
    edits = (params.base.rope_theta, params.base.max_position_embeddings, params.base.drop_system_prompt)
    assert edits == (1e6, 40_000, True)
    assert params.prompt.suffix == PAPER_SUFFIX
    assert not params.score.condition_on_prompt
    shared, train = params.selection.shared, params.train.shared
    assert (shared.num_ce, shared.mean, shared.std) == (50_000, 3.0 if large else 2.5, 0.25)
    assert (shared.ppl_min, shared.ppl_max, shared.bin_width) == (1.0, 5.0, 0.05)
    unlikely = params.selection.ul["oxa_full"]
    assert unlikely is not None
    assert (unlikely.num, unlikely.min_ppl) == (50_000, 1.2)
    assert (train.learning_rate, train.epochs, train.warmup_ratio) == (5e-5 if large else 2.5e-4, 6, 0.03)
    assert (train.adam_beta1, train.adam_beta2, train.weight_decay) == (0.9, 0.95, 0.1)
    assert (train.num_ce, train.max_length, train.dtype) == (128, 32_768, "bfloat16")
    assert params.train.arms["oxa_full"] == TrainArm(num_ul=128, ul_weight=1e-4)
    rl = params.rlvr
    assert [source.source for source in params.ingest.rlvr] == [
        "hf:agentica-org/DeepScaleR-Preview-Dataset:train"
    ]
    assert (rl.num_problems, rl.num_prompts, rl.num_generations, rl.temperature) == (10_000, 64, 8, 0.85)
    assert (rl.learning_rate, rl.kl_weight, rl.max_prompt_tokens, rl.loss) == (2e-6, 1e-3, 1536, "dapo")
    assert (rl.weight_decay, rl.rollout_correction, rl.max_tokens) == (
        0.01,
        "token_truncate",
        16_384,
    )
    draws = params.evaluate
    assert (draws.num_samples, draws.num_samples_by_benchmark) == (128, {"minerva": 64})
    assert (draws.temperature, draws.top_p, draws.max_tokens) == (0.6, 0.95, 32_768)
    assert set(params.ingest.benchmarks) == {"aime24", "aime25", "hmmt25", "cmimc25", "brumo25", "minerva"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    table=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    ascii_=st.booleans(),
    size=st.integers(1, 40),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_json_list_is_read_the_same_however_its_text_is_cut(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: list[Any],
    indent: int | None,
    ascii_: bool,
    size: int,
) -> None:
    monkeypatch.setattr(readers, "CHUNK", size)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(table, indent=indent, ensure_ascii=ascii_), encoding="utf-8")
    found = list(
        readers.read(Source(source="list.json", mapping="math"), tmp_path, lambda names, where: names)
    )
    assert [value for _, _, value in found] == table
    assert [row for row, _, _ in found] == list(range(len(table)))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"q": "1"},\n{"q": "2"}', 2),
        ('[{"q": "1"}\n{"q": "2"}]', 2),
        ('[{"q": "1"},\n]', 2),
        ('[{"q": "1"},\n\n{"q": "2}]', 3),
        ('[{"q": "1"}]\n{"q": "2"}', 2),
        ('\n\n[', 3),
        ('[{"q": "1"},\n{"q": tru}, ' + '{"q": "2"}, ' * 20 + "]", 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_a_broken_json_list_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, size: int
) -> None:
    monkeypatch.setattr(readers, "CHUNK", size)
    (tmp_path / "list.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"list\.json:{line}: broken JSON"):
        list(readers.read(Source(source="list.json", mapping="math"), tmp_path, lambda names, where: names))


def test_rows_are_counted_beforehand_where_that_is_cheap(tmp_path: Path) -> None:
    table = [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "2"}]
    write(tmp_path, table, "lines.jsonl")
    (tmp_path / "list.json").write_text(json.dumps(table), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "data.parquet")
    (tmp_path / "broken.parquet").write_text("no table")

    def count(name: str, **fields: Any) -> int | None:
        return sources.count(Source(source=name, mapping="math", **fields), tmp_path)

    assert count("lines.jsonl") == count("data.parquet") == 2
    assert count("hf:o/n", local="lines.jsonl") == 2
    unknown = ["list.json", "broken.parquet", "nowhere.jsonl", "hf:o/n", "world"]
    assert [count(name) for name in unknown] == [None] * 5
    assert count("lines.jsonl", limit=1) is None
