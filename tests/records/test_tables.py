from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oxa import hashes
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.runtime import files


def test_rows_come_back_as_written_and_only_the_asked_columns(tmp_path: Path):
    rows = [{"response_id": "a", "verdict": "correct", "predicted": None}]
    tables.write(tmp_path / "v.parquet", rows, schemas.VERDICTS)
    assert tables.read(tmp_path / "v.parquet", schemas.VERDICTS).to_pylist() == rows
    assert tables.read(tmp_path / "v.parquet", schemas.VERDICTS, ["verdict"]).column_names == ["verdict"]


def test_notes_stay_with_a_table_and_are_no_part_of_its_schema(tmp_path: Path):
    rows = [{"response_id": "a", "verdict": "correct", "predicted": None}]
    notes = {"sampling": {"seed": 7, "made_by": ["ümlaut"]}, "other": [1.5]}
    tables.write(tmp_path / "at-once.parquet", rows, schemas.VERDICTS, notes)
    with tables.Writer(tmp_path / "by-row.parquet", schemas.VERDICTS) as writer:
        writer.note("sampling", notes["sampling"])
        writer.add(**rows[0])
        writer.note("other", notes["other"])
    for name in ("at-once", "by-row"):
        assert tables.notes(tmp_path / f"{name}.parquet") == notes
        table = tables.read(tmp_path / f"{name}.parquet", schemas.VERDICTS)
        assert (table.to_pylist(), table.schema.metadata) == (rows, None)
    tables.write(tmp_path / "none.parquet", rows, schemas.VERDICTS)
    assert tables.notes(tmp_path / "none.parquet") == {}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path):
    path = tmp_path / "v.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["v.json"]


def test_missing_broken_and_foreign_files_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none.parquet: no such file"):
        tables.read(tmp_path / "none.parquet", schemas.VERDICTS)
    with pytest.raises(DataError, match=r"none.parquet: no such file"):
        tables.num_rows(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"text.parquet: not a readable Parquet file"):
        tables.read(tmp_path / "text.parquet", schemas.VERDICTS)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: no column 'response_id'; found \['x'\]"):
        tables.read(tmp_path / "x.parquet", schemas.VERDICTS)
    assert tables.num_rows(tmp_path / "x.parquet") == 1
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x.json: not valid JSON"):
        files.read_json(tmp_path / "x.json")


def test_a_table_whose_text_or_notes_are_damaged_is_named(tmp_path: Path) -> None:
    path, bad = tmp_path / "v.parquet", pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table([bad] * 3, schema=schemas.VERDICTS), path)
    with pytest.raises(DataError, match=r"v\.parquet: not a readable Parquet file \(.*UTF8.*`dvc repro`"):
        tables.read(path, schemas.VERDICTS)
    with pytest.raises(DataError, match=r"v\.parquet: not a readable Parquet file"):
        list(tables.stream(path, schemas.VERDICTS, ["verdict"], 10))
    tables.write(path, [], schemas.VERDICTS, {"sampling": "whole"})
    path.write_bytes(path.read_bytes().replace(b'"whole"', b'"whol\xff"'))
    with pytest.raises(DataError, match=r"v\.parquet: not a readable Parquet file"):
        tables.notes(path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  2+2?\n", "what is 2+2?"),
        ("x = 1. Find\u00a0y.", "x = 1. find y."),
        ("\ufb01nd x", "find x"),
        ("What is \uff12\uff0b\uff12\uff1f", "What is 2+2?"),
        ("Poincare\u0301's", "Poincar\u00e9's"),
    ],
)
def test_a_problem_keeps_its_id_over_spellings_that_mean_the_same(one: str, other: str) -> None:
    assert hashes.problem_id(one) == hashes.problem_id(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("find x", "find y"),
        ("What is 2\u00b3 + 1?", "What is 23 + 1?"),
        ("What is 2\u00bd + 1?", "What is 21/2 + 1?"),
        ("What is x\u2082?", "What is x2?"),
        ("Find X if x = 1.", "Find x if X = 1."),
        ("AB = 2. Find it.", "ab = 2. Find it."),
        ("What is \\Delta?", "What is \\delta?"),
        ("\\Gamma(3) is?", "\\gamma(3) is?"),
        ("\u2115 or \u211d?", "N or R?"),
    ],
)
def test_problems_of_other_meaning_have_other_ids(one: str, other: str) -> None:
    assert hashes.problem_id(one) != hashes.problem_id(other)


def test_response_ids_tell_their_parts_apart():
    assert hashes.response_id("ab", "c", "", "") != hashes.response_id("a", "bc", "", "")
