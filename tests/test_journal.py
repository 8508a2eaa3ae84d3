from pathlib import Path

from oxa.journal import Journal, read


def test_lines_hold_step_name_and_value(tmp_path: Path):
    log = Journal(tmp_path / "metrics.jsonl")
    log(1, loss=2.0, grad_norm=1.5)
    log(2, loss=1)
    rows = read(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["name"], r["value"]) for r in rows] == [
        (1, "loss", 2.0),
        (1, "grad_norm", 1.5),
        (2, "loss", 1.0),
    ]
    assert all(r["time"] > 0 for r in rows)


def test_a_resumed_run_replaces_what_a_killed_one_logged_past_its_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    killed = Journal(path)
    for step in range(1, 8):
        killed(step, loss=step)
    with path.open("a") as file:
        file.write('{"step": 8, "na')
    resumed = Journal(path)
    for step in range(5, 10):
        resumed(step, loss=10 * step)
    assert [(r["step"], r["value"]) for r in read(path)] == [
        *((s, s) for s in range(1, 5)),
        *((s, 10 * s) for s in range(5, 10)),
    ]


def test_no_file_is_an_empty_journal(tmp_path: Path):
    assert read(tmp_path / "none.jsonl") == []
