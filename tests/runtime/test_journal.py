from pathlib import Path

from oxa.runtime.journal import Journal, read


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


def test_speeds_are_told_to_the_other_log_only_so_that_the_file_can_be_made_again_byte_for_byte(
    tmp_path: Path,
):
    calls: list[tuple[int, dict[str, float]]] = []
    log = Journal(tmp_path / "metrics.jsonl", also=lambda step, **values: calls.append((step, values)))
    log(3, loss=2.0, tokens_per_second=1234.5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "name": "loss", "value": 2.0}\n'
    assert calls == [(3, {"loss": 2.0, "tokens_per_second": 1234.5})]


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
