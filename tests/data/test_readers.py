"""Files as the public has them: packed, in shards, of other layouts, damaged, and far larger than they look."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import SHARED_DATA
from oxa.config.sources import Source, Sources
from oxa.data import columnar, readers, sources
from oxa.data.mappings import Record, Reject
from oxa.errors import ConfigError, DataError

COLUMNS = {"question": "q", "answer": "a", "responses": "r"}
ROWS = [{"q": f"What is {number} + 1?", "a": str(number + 1), "r": ["é"]} for number in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(folder: Path, source: str = "data.jsonl", mapping: Any = COLUMNS) -> list[Record | Reject]:
    described = Source.model_validate({"source": source, "mapping": mapping})
    return list(sources.read(described, Sources(folder=str(folder)), "teacher"))


def questions(folder: Path, source: str) -> list[str]:
    items = read(folder, source)
    assert [item.row for item in items] == list(range(len(items)))
    return [item.question for item in items if isinstance(item, Record)]


EVERY = [row["q"] for row in ROWS]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix.lower() == ".zst":
        with pa.CompressedOutputStream(path, "zstd") as file:
            file.write(text.encode())
    else:
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.zst", "D.JSONL", "d.JSON.GZ", "d.ndjson", "d.JSON"])
def test_packed_files_and_suffixes_in_capitals_are_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, json.dumps(ROWS) if "JSON" in name and "L" not in name else LINES)
    assert questions(tmp_path, name) == EVERY


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    lines = LINES.splitlines()
    write(tmp_path / "set" / "part-1.jsonl", "\n".join(lines[2:4]))
    write(tmp_path / "set" / "part-0.jsonl.gz", "\n".join(lines[:2]))
    pq.write_table(pa.Table.from_pylist(ROWS[4:]), tmp_path / "set" / "part-2.PARQUET")
    write(tmp_path / "set" / "README.md", "no data")
    write(tmp_path / "set" / ".hidden.jsonl", "no data")
    for name in ("set", "set/*part-*", "**/part-*"):
        assert questions(tmp_path, name) == EVERY
    counted = sources.count(Source(source="set/part-[12]*", mapping="math"), tmp_path)
    assert counted == 2  # line ends; the last lines have none
    assert sources.count(Source(source="set", mapping="math"), tmp_path) is None
    local = Source.model_validate({"source": "hf:o/n", "local": "set/*part-*", "mapping": COLUMNS})
    assert len(list(sources.read(local, Sources(folder=str(tmp_path)), "teacher"))) == 5


def test_a_pattern_may_be_named_from_here_in_a_folder_whose_name_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("so[u]rces") / "d-0.jsonl", LINES)
    for name in ("d-*.jsonl", "so[[]u]rces/d-*.jsonl", "so[u]rces/d-0.jsonl"):
        assert questions(Path("so[u]rces"), name) == EVERY


def test_a_folder_or_a_pattern_without_data_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "set" / "deeper" / "d.jsonl", LINES)
    with pytest.raises(
        DataError, match=r"no \.jsonl, \.json or \.parquet file lies in this folder.*'set/\*\*/train"
    ):
        read(tmp_path, "set")
    assert questions(tmp_path, "set/**/*.jsonl") == EVERY
    with pytest.raises(DataError, match=r"set/\*\.jsonl: no file matches; put it there"):
        read(tmp_path, "set/*.jsonl")
    with pytest.raises(ConfigError, match="lies outside"):
        read(tmp_path / "set", "../*.jsonl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps({"data": ROWS}, indent=2), r"d\.json: an object over .* under 'data' .* \(`jq -c '\.data\[\]'`\)"),
        (json.dumps({"n": 1, "data": ROWS}, indent=2), r"d\.json: an object over .*; write each row on one line"),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS), r"an object over several lines.*\(`jq -c \.`\)"),
        (json.dumps({"data": ROWS}), r"d\.json:1: no column 'q'; .*; the rows are the entries of its 'data'"),
        ('{"q": "1", "a": \n' + LINES, r"d\.json:1: broken JSON"),
        ('{"q": "1", "a": ', r"d\.json:1: broken JSON"),
        (readers.LFS_POINTER.decode() + "v1\noid sha256:1\nsize 1\n", r"d\.json: a Git LFS pointer, .*`git lfs pull`"),
    ],
)  # fmt: skip
def test_other_layouts_are_one_sentence_with_the_remedy(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path / "d.json", text)
    with pytest.raises(DataError, match=expected) as caught:
        read(tmp_path, "d.json")
    assert "\n" not in str(caught.value)


def test_a_pointer_in_place_of_a_parquet_or_packed_file_is_named(tmp_path: Path) -> None:
    for name in ("d.parquet", "d.jsonl.gz"):
        (tmp_path / name).write_bytes(readers.LFS_POINTER + b"v1\n")
        with pytest.raises(DataError, match="a Git LFS pointer"):
            read(tmp_path, name)


def test_a_packed_file_that_is_cut_is_one_sentence(tmp_path: Path) -> None:
    for name in ("d.jsonl.gz", "d.jsonl.zst"):
        write(tmp_path / name, LINES)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
        with pytest.raises(DataError, match=r"cannot be read \(.*\); fetch it anew"):
            read(tmp_path, name)
    (tmp_path / "d.jsonl.gz").write_text(LINES)
    with pytest.raises(DataError, match=r"cannot be read"):
        read(tmp_path, "d.jsonl.gz")


# --- one bad value among good ones ---


@pytest.mark.parametrize(
    "bad",
    [
        pa.array([b"\xff"]).view(pa.string()),
        pa.array([2**62], pa.timestamp("us")),
        pa.array([2**31 - 1], pa.date32()),
        pa.array([True]),
        pa.array([[b"\xff"]]),
    ],
    ids=["bytes", "timestamp", "date", "boolean", "list of bytes"],
)
@pytest.mark.parametrize("column", ["q", "a", "r"])
def test_a_bad_value_in_a_table_drops_its_row_alone(tmp_path: Path, column: str, bad: Any) -> None:
    table = {name: pa.array([row[name] for row in ROWS[:1]]) for name in ("q", "a", "r")}
    pq.write_table(pa.table(table | {column: bad}), tmp_path / "0.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "1.parquet")
    first, *others = read(tmp_path, "*.parquet")
    assert isinstance(first, Reject)
    assert first.reason == "bad_value"
    assert [item.question for item in others if isinstance(item, Record)] == EVERY


def test_beside_a_bad_value_the_other_rows_of_a_batch_are_read(tmp_path: Path) -> None:
    answers = pa.array([row["a"].encode() for row in ROWS[:4]] + [b"\xff"]).view(pa.string())
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table.set_column(1, "a", answers), tmp_path / "d.parquet")
    *good, bad = read(tmp_path, "d.parquet")
    assert [item.question for item in good if isinstance(item, Record)] == EVERY[:4]
    assert bad == Reject(4, "bad_value", "answer: bytes that are not UTF-8 text", EVERY[4])


def test_damaged_parquet_files_are_read_or_one_sentence(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = tmp_path / "d.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS * 20), path, row_group_size=40)
    whole, sentences = path.read_bytes(), set[str]()
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 2, 9])):  # the names, sizes and types lie at the end
            damaged[-1 - draw.randrange(draw.choice([len(whole), 900]))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            items = read(tmp_path, "d.parquet")
        except DataError as error:
            sentences.add(str(error))
        else:
            assert all(
                isinstance(item, Record) or item.reason in ("bad_value", "no_answer") for item in items
            )
    assert all(sentence.startswith(str(path)) and "\n" not in sentence for sentence in sentences)


# --- small files that would be large ---


@pytest.mark.parametrize("kind", ["values", "dictionary", "categories", "rows"])
def test_a_small_parquet_file_that_becomes_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(columnar, "MIN_BUDGET", 2**20)
    num_rows = 2**15 if kind == "rows" else 2**8
    value = "x" if kind == "rows" else "x" * 2**15
    questions = pa.array([value] * num_rows)
    if kind == "categories":
        questions = questions.dictionary_encode()
    table = pa.table({"q": questions, "a": ["1"] * num_rows, "r": [["x"]] * num_rows})
    path = tmp_path / "d.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=kind != "values")
    assert path.stat().st_size < 5000
    seen = 0
    with pytest.raises(
        DataError, match=r"d\.parquet: its \d+ bytes would become more than 1048576, .*fetch it anew"
    ):
        for _ in sources.read(
            Source.model_validate({"source": "d.parquet", "mapping": COLUMNS}),
            Sources(folder=str(tmp_path)),
            "teacher",
        ):
            seen += 1
    assert seen * len(value) <= 2**20


def test_packed_lines_and_rows_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "MIN_BUDGET", 2**20)
    write(tmp_path / "d.jsonl.zst", (json.dumps(ROWS[0]) + " " * 1000 + "\n") * 4000)
    with pytest.raises(DataError, match=r"d\.jsonl\.zst: its \d+ bytes would become more than 1048576"):
        read(tmp_path, "d.jsonl.zst")
    monkeypatch.setattr(readers, "MAX_CHARS", 100)
    monkeypatch.setattr(readers, "CHUNK", 10)
    write(tmp_path / "data.jsonl", LINES + " " * 100 + "\n")
    with pytest.raises(DataError, match=r"data\.jsonl:6: a line of 100 characters or more"):
        read(tmp_path)
    write(tmp_path / "list.json", json.dumps([*ROWS, "x" * 200]))
    with pytest.raises(DataError, match=r"list\.json:1: broken JSON \(an entry of 100 characters or more\)"):
        read(tmp_path, "list.json")


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the project's shared cases")
def test_an_object_with_the_rows_in_it_is_not_called_broken() -> None:
    with pytest.raises(DataError, match=r"an object over several lines, .* under 'data'"):
        read(SHARED_DATA.parent / "cases" / "inputs", "object_with_data.json")
