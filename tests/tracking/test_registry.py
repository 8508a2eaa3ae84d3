"""The registry on a real SQLite MLflow: what a version says, where it leads, and when it is not to be had."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workspaces import Lock, locked_step, make_workspace, write

from flows.bridge import Locked
from oxa.config.operations import Registry
from oxa.errors import DataError, UserError
from oxa.runtime import guard
from oxa.tracking import connection, lineage, registration, registry

SETTINGS = Registry(model="tiny")


def checkpoint(lock: Lock, name: str) -> registration.Checkpoint:
    arm, _, seed = name.partition("-")
    return registration.Checkpoint(
        f"train@{name}", arm, int(seed), f"models/{name}", lock[f"train@{name}"].outs[f"models/{name}"]
    )


def enter(
    lock: Lock, name: str, *, description: str = "", dirty: bool = False
) -> tuple[registry.Version, bool]:
    return registration.register(
        SETTINGS, checkpoint(lock, name), lock, commit="c0ffee", dirty=dirty, experiment="oxa"
    )


def test_a_version_refers_to_the_checkpoint_and_to_all_it_was_made_from(workspace: Path):
    lock = make_workspace({"sft-0": 0.5, "oxa-0": 0.5})
    version, new = enter(lock, "sft-0")
    assert new
    assert version.number == 1
    tags = version.tags
    assert (tags["dvc.path"], tags["dvc.md5"]) == ("models/sft-0", guard.dvc_md5(Path("models/sft-0")))
    assert (tags["oxa.stage"], tags["oxa.arm"], tags["oxa.seed"]) == ("train@sft-0", "sft", "0")
    assert (tags["git.commit"], tags["git.dirty"]) == ("c0ffee", "false")
    for path in ("sources", "models/base", "data/problems.parquet", "data/train/sft.parquet"):
        assert tags[f"dvc.{path}"] == guard.dvc_md5(Path(path))
    assert "dvc.data/train/oxa.parquet" not in tags, "another arm's data"
    assert "dvc.data/generations/sft-0.parquet" not in tags, "downstream"
    assert set(json.loads(tags["oxa.lineage"])["code"]) == {"oxa/stages/base.py", "oxa/stages/train.py"}
    assert version.run_id is None, "nothing was tracked"
    assert not (workspace / "mlruns").exists(), "nothing is copied"


def test_the_same_content_of_a_stage_is_registered_once(workspace: Path):
    lock = make_workspace({"sft-0": 0.5, "sft-1": 0.5})
    shutil.copytree("models/sft-0", "models/sft-1", dirs_exist_ok=True)
    lock["train@sft-1"] = locked_step(list(lock["train@sft-1"].deps), list(lock["train@sft-1"].outs))
    assert enter(lock, "sft-0")[1]
    again, new = enter(lock, "sft-0")
    assert (again.number, new) == (1, False)
    other, new = enter(lock, "sft-1")
    assert (other.number, new) == (2, True), "another stage's, though the content is the same"
    write("models/sft-0/model.safetensors", "trained anew")
    lock["train@sft-0"] = locked_step(list(lock["train@sft-0"].deps), list(lock["train@sft-0"].outs))
    assert enter(lock, "sft-0")[0].number == 3


def test_a_version_points_to_the_run_that_wrote_its_content(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    client = connection.client()
    experiment = client.create_experiment("oxa")
    md5 = lock["train@sft-0"].outs["models/sft-0"]
    tags = {"oxa.stage": "train@sft-0", "dvc.out.models/sft-0": md5}
    others = ({"dvc.out.models/sft-0": "0" * 32}, {"oxa.stage": "train@sft-1"})  # newer ones, too
    runs = [
        client.create_run(experiment, start, tags | changed, "train@sft-0").info.run_id
        for start, changed in enumerate([others[0], {}, *others], start=1)
    ]
    client.set_terminated(runs[1])
    assert enter(lock, "sft-0")[0].run_id == runs[1]
    assert f"{runs[1]}  train@sft-0  FINISHED" in lineage.of(SETTINGS, "1")
    client.delete_run(runs[1])
    assert runs[1] in lineage.of(SETTINGS, "1"), "a deleted run is still named"


def test_a_run_that_is_recorded_later_is_found_all_the_same(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    enter(lock, "sft-0")
    assert "training run  none recorded" in lineage.of(SETTINGS, "1")
    client = connection.client()
    experiment = client.create_experiment("oxa")
    tags = {"oxa.stage": "train@sft-0", "dvc.out.models/sft-0": lock["train@sft-0"].outs["models/sft-0"]}
    run = client.create_run(experiment, run_name="train@sft-0", tags=tags).info.run_id
    assert f"training run  {run}  train@sft-0" in lineage.of(SETTINGS, "1")


def test_lineage_leads_back_to_the_sources_and_says_what_has_changed(workspace: Path):
    lock = make_workspace({"sft-0": 0.5, "oxa-0": 0.5})
    enter(lock, "sft-0", dirty=True)
    registry.promote(SETTINGS, "1", why="a test")
    before = lineage.of(SETTINGS, "champion")
    assert "tiny version 1 (sft, seed 0), champion" in before
    assert "git commit    c0ffee, with uncommitted changes" in before
    assert "by hand" in before
    assert "a test" in before
    order = [line for line in before.splitlines() if line in lock]
    assert order[0] == "train@sft-0"
    assert set(order) == {"train@sft-0", "selection@sft", "ingest", "base"}
    assert order.index("selection@sft") < order.index("ingest"), "what it was made from comes after"
    assert "changed" not in before
    assert "gone" not in before
    write("data/train/sft.parquet", "edited")
    write("oxa/stages/train.py", "# edited")
    shutil.rmtree("sources")
    lines = lineage.of(SETTINGS, "1").splitlines()

    def states(path: str) -> set[str]:
        return {line.split("  ")[-1] for line in lines if f"  {path} " in line}

    assert states("data/train/sft.parquet") == {"changed"}
    assert states("sources") == {"gone"}
    assert states("models/base") == {"same as now"}
    assert "code  2 modules: oxa/stages/train.py changed" in lines


def test_data_leads_to_the_versions_that_were_made_from_it(workspace: Path):
    lock = make_workspace({"sft-0": 0.5, "sft-1": 0.5, "oxa-0": 0.5})
    for name in ("sft-0", "sft-1", "oxa-0"):
        enter(lock, name)

    def numbers(what: str) -> list[int]:
        return [int(line.split()[1]) for line in lineage.versions_from(SETTINGS, what).splitlines()]

    assert numbers("data/train/sft.parquet") == [1, 2]
    assert numbers("./data/train/oxa.parquet") == [3]
    assert numbers(str(workspace / "data/problems.parquet")) == [1, 2, 3]
    assert numbers("sources/tiny.jsonl") == [1, 2, 3], "DVC knows the folder as one thing"
    assert numbers(guard.dvc_md5(Path("data/train/oxa.parquet"))[:8]) == [3]
    assert numbers(guard.dvc_md5(Path("models/sft-1"))) == [2]
    assert lineage.versions_from(SETTINGS, "data/rejects.parquet").startswith("no version of tiny")
    write("data/train/sft.parquet", "edited")
    assert "changed" in lineage.versions_from(SETTINGS, "data/train/sft.parquet")


def test_a_version_whose_file_was_edited_is_refused_with_the_reason(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    enter(lock, "sft-0")
    assert registry.path_of(SETTINGS, "1") == Path("models/sft-0")
    expected = guard.dvc_md5(Path("models/sft-0"))
    write("models/sft-0/config.json", '{"edited": 1}')
    write("models/sft-0/notes.txt", "")
    Path("models/sft-0/model.safetensors").unlink()
    with pytest.raises(DataError) as refused:
        registry.path_of(SETTINGS, "1")
    message = str(refused.value)
    assert "models/sft-0" in message
    assert "config.json changed, model.safetensors gone, notes.txt added" in message
    assert expected in message
    assert guard.dvc_md5(Path("models/sft-0")) in message
    assert "git checkout c0ffee && dvc checkout --force models/sft-0" in message
    assert "\n" not in message


def test_a_version_whose_files_are_gone_is_refused_with_the_reason(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    enter(lock, "sft-0")
    registry.promote(SETTINGS, "1")
    shutil.rmtree("models/sft-0")
    with pytest.raises(DataError, match=r"models/sft-0: version 1 \(sft, seed 0\) is gone .*dvc checkout"):
        registry.path_of(SETTINGS, "champion")


def test_what_a_refusal_says_to_do_brings_the_version_back(workspace: Path):
    make_workspace({"sft-0": 0.5})
    run = {"check": True, "env": os.environ | {"DVC_NO_ANALYTICS": "1"}, "stdout": subprocess.DEVNULL}
    dvc = [sys.executable, "-m", "dvc"]
    stage = {"cmd": "oxa train", "deps": ["data/train/sft.parquet"], "outs": ["models/sft-0"]}
    write("dvc.yaml", json.dumps({"stages": {"train": stage}}))
    for command in (["git", "init", "-q"], [*dvc, "init", "-q"], [*dvc, "commit", "--force", "-q"]):
        subprocess.run(command, **run)
    enter({"train@sft-0": locked_step(stage["deps"], stage["outs"])}, "sft-0")
    for damage in (
        lambda: write("models/sft-0/config.json", '{"edited": 1}'),
        lambda: shutil.rmtree("models/sft-0"),
    ):
        damage()
        with pytest.raises(DataError) as refused:
            registry.path_of(SETTINGS, "1")
        advised = re.search("`(.*?)`", str(refused.value))
        assert advised
        assert advised[1].startswith("dvc checkout ")
        subprocess.run([*dvc, *advised[1].split()[1:]], **run)
        assert registry.path_of(SETTINGS, "1") == Path("models/sft-0")


def test_the_champion_moves_by_hand_and_says_so(workspace: Path):
    lock = make_workspace({"sft-0": 0.5, "oxa-0": 0.5})
    with pytest.raises(DataError, match="nothing is registered as tiny yet"):
        registry.promote(SETTINGS, "1")
    enter(lock, "sft-0")
    enter(lock, "oxa-0")
    assert registry.promote(SETTINGS, "2").number == 2
    moved = registry.promote(SETTINGS, "1")
    assert moved.aliases == ("champion",)
    assert moved.tags["promoted.by"] == "hand"
    assert moved.tags["promoted.at"].endswith("+00:00")
    assert "version 2 (oxa, seed 0)" in moved.tags["promoted.why"]
    assert registry.find(SETTINGS, "champion").number == 1
    assert registry.promote(SETTINGS, "champion").tags == moved.tags, "it was the champion"
    with pytest.raises(DataError, match=r"no version '7' of tiny; there are 1-2 and champion \(version 1\)"):
        registry.promote(SETTINGS, "7")


def test_a_checkpoint_of_a_stale_stage_has_no_chain(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    write("data/train/sft.parquet", "selected anew")
    lock["selection@sft"] = locked_step(["data/problems.parquet"], ["data/train/sft.parquet"])
    with pytest.raises(DataError, match=r"train@sft-0 was made from another data/train/sft\.parquet"):
        enter(lock, "sft-0")
    assert registry.versions(SETTINGS) == []


def test_a_stage_that_has_left_the_graph_does_not_break_a_chain(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    old = Locked({"sources": "0" * 32}, {"data/train/sft.parquet": "1" * 32})
    assert list(registration.chain({"before": old, **lock}, "train@sft-0")) == list(
        registration.chain(lock, "train@sft-0")
    )


def test_paths_that_mlflow_takes_for_no_key_are_still_in_the_chain(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    write("my data (1)/a+b.jsonl", "{}")
    lock["ingest"] = locked_step(["my data (1)", "sources"], ["data/problems.parquet"])
    lock["base"] = replace(lock["base"], deps={**lock["base"].deps, "../elsewhere/": "2" * 32})
    enter(lock, "sft-0")
    assert "my data (1)" in lineage.of(SETTINGS, "1")
    assert "1 (sft" in lineage.versions_from(SETTINGS, "my data (1)/a+b.jsonl")


def test_a_long_description_is_cut_between_lines_to_what_postgresql_holds(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    version, _ = enter(lock, "sft-0")
    wide = "| " + " | ".join(f"{value:<40}" for value in range(5)) + " |\n"
    registry.describe(SETTINGS, version, "# Table\n" + wide * 40)
    assert registry.versions(SETTINGS)[0].description.count("| 4 |") == 40
    registry.describe(SETTINGS, version, "# Table\n" + wide * 400)
    description = registry.versions(SETTINGS)[0].description
    assert 4900 < len(description) <= 5000
    assert set(description.splitlines()[1:-1]) == {"| 0 | 1 | 2 | 3 | 4 |"}
    assert "table.md" in description.splitlines()[-1]


def test_versions_that_somebody_made_otherwise_are_left_alone(workspace: Path):
    lock = make_workspace({"sft-0": 0.5})
    client = connection.client()
    client.create_registered_model("tiny")
    client.create_model_version("tiny", "s3://bucket/other")
    client.set_registered_model_alias("tiny", "champion", "1")
    assert enter(lock, "sft-0")[0].number == 2
    assert [one.number for one in registry.versions(SETTINGS)] == [2]
    with pytest.raises(DataError, match="no version '1' of tiny; there are 2"):
        registry.path_of(SETTINGS, "1")


def test_an_mlflow_out_of_reach_is_one_sentence(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    lock = make_workspace({"sft-0": 0.5})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"^MLflow at http://127\.0\.0\.1:1 .*refused"):
        enter(lock, "sft-0")


def test_what_mlflow_refuses_is_one_sentence(workspace: Path):
    client = connection.client()
    client.delete_experiment(client.create_experiment("oxa"))
    with pytest.raises(UserError, match=r"^MLflow at sqlite:.* refused: .*'active' state") as refused:
        registry.record("oxa", {}, {}, {})
    assert "\n" not in str(refused.value)


def test_a_run_that_cannot_be_recorded_whole_has_failed(workspace: Path):
    with pytest.raises(UserError, match="refused"):
        registry.record("oxa", {"table.md": "a table"}, {}, {"no@name": 1.0})
    (run,) = connection.find_runs("oxa", {"oxa.kind": "register"})
    assert run.info.status == "FAILED"


class Failing(http.server.BaseHTTPRequestHandler):
    """An MLflow that lets one in, and then has no time."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, *arguments: object) -> None:
        pass


def test_answers_that_an_mlflow_in_trouble_does_not_give_are_not_taken_for_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    version = registry.Version(1, {"oxa.results": "0a/results/sft-0.json#0b"}, (), None, "")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(UserError, match=r"^MLflow at .* refused: "):
                registry.results(version)
        finally:
            server.shutdown()


@given(st.data())
def test_a_chain_holds_all_that_a_stage_was_made_from_and_nothing_else(data: st.DataObject):
    num = data.draw(st.integers(1, 9))
    reads = [data.draw(st.sets(st.integers(0, place - 1))) if place else set() for place in range(num)]
    lock = {
        f"s{place}": Locked(
            {"sources": "m", **{f"out/{other}": f"m{other}" for other in reads[place]}},
            {f"out/{place}": f"m{place}"},
        )
        for place in data.draw(st.permutations(range(num)))
    }
    target = data.draw(st.integers(0, num - 1))
    ancestors, todo = set(), [target]
    while todo:
        if (place := todo.pop()) not in ancestors:
            ancestors.add(place)
            todo += reads[place]
    order = [int(name[1:]) for name in registration.chain(lock, f"s{target}")]
    assert order[0] == target
    assert set(order) == ancestors
    assert len(order) == len(ancestors)
    assert all(order.index(place) < order.index(other) for place in order for other in reads[place])


@given(st.sets(st.integers(1, 40), min_size=1).map(sorted))
def test_ranges_name_every_number_once(numbers: list[int]):
    named = []
    for part in registry.ranges(numbers).split(", "):
        first, _, last = part.partition("-")
        named += list(range(int(first), int(last or first) + 1))
    assert named == numbers
