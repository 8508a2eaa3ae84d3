"""`oxa export` on a real registry (SQLite) and a real DVC repository, and its way to a hub that speaks HTTP."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import TOKEN, Hub, hub
from huggingface_hub import ModelCard
from workspaces import make_workspace, write

from flows import bridge, export, promote
from oxa.comparison.arms import summarize
from oxa.comparison.outcomes import outcomes
from oxa.config.params import Params, load_params
from oxa.errors import DataError
from oxa.report.wording import with_answer
from oxa.runtime import files, guard
from oxa.tracking import registry

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("sft", "oxa_full")
COMMIT = "c0ffee" * 6 + "c0ff"
PASSWORD = "correct-horse"  # of the MLflow server, in a variable of the environment


def make_params() -> dict[str, Any]:
    """Those of the small world with two arms, a base and a source of the hub's and one that lies elsewhere here."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    raw |= {"arms": list(ARMS), "seeds": [0], "prompt": {"suffix": "\nBox the answer."}}
    raw["selection"]["ce"] = {arm: raw["selection"]["ce"][arm] for arm in ARMS}
    raw["train"]["arms"] = {arm: raw["train"]["arms"][arm] for arm in ARMS}
    raw["base"] = {"kind": "checkpoint", "model": "Qwen/Qwen2.5-Math-1.5B"}
    raw["ingest"]["teacher"] = [
        {"source": "hf:openai/gsm8k:main:train", "mapping": "gsm8k", "revision": "abc123"},
        {"source": f"{Path.home()}/teacher.jsonl", "mapping": "messages"},
    ]
    raw["ingest"]["benchmarks"] = {"world": {"source": "hf:owner/exam:test", "mapping": "math"}}
    raw["report"] = {"baseline": "sft", "resamples": 200}
    raw["registry"]["model"] = "tiny"
    return raw


def make_graph() -> dict[str, Any]:
    """dvc.yaml of what make_workspace writes."""
    each = {"arm": list(ARMS), "seed": [0]}
    key = "${item.arm}-${item.seed}"
    train = ["train.shared", "train.arms.${item.arm}"]
    selection = ["selection.shared", "selection.ce.${item.arm}"]
    world, apart, problems = "data/generations", "data/entropies", "data/problems.parquet"
    return {
        "base": stage(["sources"], ["models/base"], ["base", "prompt", "sources"]),
        "ingest": stage(["sources"], [problems], ["ingest", "sources"]),
        "selection": stage([problems], ["data/train/${item.arm}.parquet"], selection)
        | {"matrix": {"arm": list(ARMS)}},
        "train": stage(["models/base", "data/train/${item.arm}.parquet"], [f"models/{key}"], train)
        | {"matrix": each},
        "evaluate_base": stage(
            ["models/base", problems], [f"{world}/base.parquet", f"{apart}/base.parquet"], ["evaluate"]
        ),
        "evaluate": stage(
            [f"models/{key}", problems], [f"{world}/{key}.parquet", f"{apart}/{key}.parquet"], ["evaluate"]
        )
        | {"matrix": each},
        "report": stage([world], ["reports", "metrics/summary.json"], ["report"]),
    }


def stage(deps: list[str], outs: list[str], params: list[str]) -> dict[str, Any]:
    return {"cmd": "oxa", "deps": deps, "outs": outs, "params": params}


def dvc(*words: str) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", *words, "-q"], check=True, env=environment)


def report() -> None:
    """Writes what the report would, RL included, of the answers that lie here."""
    table = {
        name: outcomes(Path(f"data/generations/{name}.parquet")) for name in ("base", "sft-0", "oxa_full-0")
    }
    results = {"base": [table["base"]]} | {
        f"{arm}{ending}": [table[f"{arm}-0"]] for ending in ("", "-rl") for arm in ARMS
    }
    summary = with_answer(summarize(load_params(Path("params.yaml")).report, results))
    files.write_json(Path("metrics/summary.json"), {**summary, "guess_rate": {}})
    write("reports/index.html", "")


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, database: Path, checkpoint: Path) -> Iterator[Path]:
    """A project whose run has ended: DVC keeps its files, two versions are registered, the second the champion."""
    folder = tmp_path_factory.mktemp("export") / "alices-secret-project"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copy(database, "mlflow.db")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        make_workspace({"base": 0.2, "sft-0": 0.3, "oxa_full-0": 0.9})
        for model in ("sft-0", "oxa_full-0"):
            shutil.copytree(checkpoint, f"models/{model}", dirs_exist_ok=True)
            config = json.loads(Path(f"models/{model}/config.json").read_text())
            write(f"models/{model}/config.json", json.dumps(config | {"_name_or_path": str(folder / "base")}))
            write(f"models/{model}/adapter/README.md", f"base_model: {folder}/base")
            write(f"models/{model}/note.txt", model)
        write("params.yaml", yaml.safe_dump(make_params()))
        report()
        write("dvc.yaml", yaml.safe_dump({"stages": make_graph()}))
        subprocess.run(["git", "init", "-q"], check=True)
        dvc("init")
        dvc("commit", "--force")
        outcome = promote.settle(load_params(Path("params.yaml")), bridge.locked(), COMMIT, True)
        assert outcome.champion == 2, outcome.sentences
        yield folder


@pytest.fixture
def project(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    folder = Path(shutil.copytree(registered, tmp_path / registered.name))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return folder


def params() -> Params:
    return load_params(Path("params.yaml"))


def exported(version: str, folder: str = "out", **options: Any) -> list[str]:
    return list(export.run(params(), version, Path(folder), **options))


def card(folder: str = "out") -> str:
    return Path(folder, "README.md").read_text("utf-8")


def test_a_version_becomes_a_folder_that_transformers_loads(project: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (sentence,) = exported("champion", "shelf/out")
    assert (
        sentence
        == "wrote version 2 (oxa_full, seed 0) to shelf/out; name a licence in README.md before you publish it"
    )
    source, out = Path("models/oxa_full-0"), Path("shelf/out")
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(out)("1+1")["input_ids"]
    for name in ("model.safetensors", "tokenizer.json", "note.txt"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert before.pop("_name_or_path")
    assert before == after, "the path alone is taken out"
    assert [path.name for path in Path("shelf").iterdir()] == ["out"]
    assert not (out / "adapter").exists(), "a README of a library's own, with a path in it"


def test_the_card_has_the_hubs_front_matter_and_leaves_the_licence_to_the_user(project: Path) -> None:
    exported("2")
    metadata = ModelCard.load("out/README.md").data  # as the hub's own library reads it
    assert metadata.license is None
    assert "\n# license: " in card().split("---")[1]
    assert metadata.base_model == "Qwen/Qwen2.5-Math-1.5B"
    assert metadata.datasets == ["openai/gsm8k"]
    assert (metadata.library_name, metadata.pipeline_tag) == ("transformers", "text-generation")
    assert metadata.model_name == "oxa_full-0"
    by_type = {result.metric_type: result for result in metadata.eval_results}
    table = outcomes(Path("data/generations/oxa_full-0.parquet"))
    assert by_type["pass@1"].metric_value == pytest.approx(100 * (table.num_correct / 4).mean(), abs=0.01)
    assert by_type["pass@4"].metric_value == pytest.approx(100 * (table.num_correct > 0).mean(), abs=0.01)
    assert by_type["pass@1"].dataset_type == "owner/exam"


def test_the_card_tells_the_results_the_settings_the_data_and_how_it_was_made(project: Path) -> None:
    exported("2")
    text = card()
    own = next(line for line in text.splitlines() if line.startswith("| world "))
    assert re.search(r"\| 60 +\| 4 +\| 88\.8 \[8\d\.\d, 9\d\.\d\] +\| 100\.0 \[9[345]\.\d, 100\.0\] \|", own)
    assert "### Comparison of the arms" in text
    assert "\n#### world: 60 problems" in text
    for arm in ("base", "sft", "oxa_full", "sft-rl", "oxa_full-rl"):
        assert re.search(rf"(?m)^\| {arm} +\|.*\[", text), arm
    assert "Problems solved at the first try, against sft: before RL oxa_full" in " ".join(text.split())
    settings = yaml.safe_load(re.search(r"(?s)```yaml\n(.*?)```", text)[1])
    raw = make_params()
    assert settings["train"] == {
        "shared": raw["train"]["shared"],
        "arms": {"oxa_full": raw["train"]["arms"]["oxa_full"]},
    }
    assert settings["selection"]["ce"] == {"oxa_full": "gaussian"}
    assert json.loads(re.search(r"```json\n(.*)\n```", text)[1]) == "\nBox the answer."
    for path in ("sources", "models/base", "data/problems.parquet", "data/train/oxa_full.parquet"):
        assert re.search(rf"`{path}` +\| `{guard.dvc_md5(Path(path))}`", text), path
    assert "data/train/sft.parquet" not in text, "another arm's"
    assert "`openai/gsm8k:main:train at abc123` and `teacher.jsonl`" in text
    for path in ("dvc.lock", "params.yaml", "models/oxa_full-0"):
        assert guard.dvc_md5(Path(path)) in text
    assert f"`{COMMIT}`, with uncommitted changes" in text
    assert f"git checkout {COMMIT}\noxa run train@oxa_full-0\n" in text


def test_nothing_of_this_machine_and_its_people_goes_with_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    raw = make_params()
    raw["base"]["model"] = str(project.parent / "my-base")
    raw["sources"]["folder"] = str(project.parent / "inbox")
    write(f"{raw['sources']['folder']}/tiny.jsonl", "{}")
    graph = make_graph()
    graph["ingest"]["deps"] = [raw["sources"]["folder"]]
    write("params.yaml", yaml.safe_dump(raw))
    write("dvc.yaml", yaml.safe_dump({"stages": graph}))
    write("models/oxa_full-0/note.txt", "another")
    dvc("commit", "--force")
    outcome = promote.settle(params(), bridge.locked(), COMMIT, False)
    exported(str(outcome.versions["train@oxa_full-0"]))
    assert "my-base" in card()
    assert "`inbox`" in card()
    secrets = {str(project.parent), str(Path.home()), socket.gethostname(), project.name, TOKEN, PASSWORD}
    secrets |= {"sqlite:", "mlflow.db", "mlruns", "MLFLOW_", "HF_TOKEN", "@127.0.0.1"}
    if len(user := getpass.getuser()) > 3 and user != "root":
        secrets.add(user)
    for path in Path("out").rglob("*"):
        if path.is_file() and path.name != "tokenizer.json":  # a vocabulary may hold any word
            content = path.read_bytes()
            assert [secret for secret in secrets if secret.encode() in content] == [], path
    assert "base_model:" not in card(), "a folder of one's own is no id of the hub's"


def test_what_has_left_the_workspace_comes_from_dvcs_cache(project: Path) -> None:
    exported("1", "before")
    write("models/sft-0/note.txt", "edited")
    exported("1", "edited")
    shutil.rmtree("models/sft-0")
    exported("1", "gone")
    content, *others = (guard.Fingerprint.of(Path(name)).content() for name in ("before", "edited", "gone"))
    assert others == [content, content]


def test_a_version_that_a_newer_run_has_replaced_keeps_its_own_table(project: Path) -> None:
    exported("1", "before")
    write("models/sft-0/note.txt", "trained anew")
    dvc("commit", "--force")
    exported("1")
    assert Path("out/note.txt").read_text() == "sft-0"
    assert "| sft-rl " in card("before")
    assert "| sft-rl " not in card(), "the report is of another checkpoint now"
    assert re.search(r"(?m)^\| sft +\|.*\[", card()), "the registry keeps one"
    before, after = (re.search(r"(?s)```yaml.*```", card(folder))[0] for folder in ("before", "out"))
    assert before == after


def test_a_version_whose_files_are_nowhere_is_refused_with_what_to_do(project: Path) -> None:
    shutil.rmtree("models/sft-0")
    shutil.rmtree(".dvc/cache")
    with pytest.raises(DataError) as refused:
        exported("1")
    message = str(refused.value)
    assert message.startswith(
        "models/sft-0: version 1 (sft, seed 0) is nowhere: the workspace has none, and DVC's cache"
    )
    assert f"`git checkout {COMMIT} && dvc pull models/sft-0`" in message
    assert "\n" not in message
    assert not Path("out").exists()


def test_a_damaged_cache_is_not_passed_on(project: Path) -> None:
    shutil.rmtree("models/sft-0")
    md5 = json.loads(registry.find(params().registry, "1").tags["oxa.lineage"])["files"]["model.safetensors"]
    damaged = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=f"its md5 is no longer {md5}"):
        exported("1")
    assert sorted(path.name for path in project.glob("*out*")) == []


def test_a_second_export_finds_the_first_and_leaves_the_users_card_alone(project: Path) -> None:
    exported("1")
    licensed = card().replace("\n# license: ", "\nlicense: mit  # ")
    write("out/README.md", licensed)
    write("out/LICENSE", "MIT")
    assert exported("1") == [
        "out holds version 1 (sft, seed 0) already",
        "out/README.md is left as it stands there; remove it to have it written anew",
    ]
    assert card() == licensed
    Path("out/README.md").unlink()
    assert exported("1")[1].startswith("wrote out/README.md; ")
    assert "\n# license: " in card()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda: write("out/notes.txt", "mine"), "notes.txt is no part of it"),
        (lambda: write("out/config.json", "{}"), "config.json is another"),
        (lambda: Path("out/tokenizer.json").unlink(), "tokenizer.json is missing"),
    ],
)
def test_a_folder_with_something_else_is_refused_and_left_alone(
    project: Path, damage: Any, what: str
) -> None:
    exported("1")
    damage()
    before = guard.Fingerprint.of(Path("out")).content()
    with pytest.raises(DataError, match=rf"^out: not empty, and not this version \({re.escape(what)}\)"):
        exported("1")
    assert guard.Fingerprint.of(Path("out")).content() == before


def test_places_that_are_none_for_an_export_are_refused(project: Path) -> None:
    write("file", "")
    Path("empty").mkdir()
    with pytest.raises(DataError, match=r"^file: a file lies here"):
        exported("1", "file")
    with pytest.raises(DataError, match=r"^models/sft-0/out: lies in models/sft-0, which DVC keeps"):
        exported("1", "models/sft-0/out")
    with pytest.raises(DataError, match=r"^no version '9' of tiny; there are 1-2 and "):
        exported("9")
    exported("1", "empty")
    assert Path("empty/model.safetensors").exists()


KILLED = (
    "import resource, signal, sys; from pathlib import Path; from flows import export\n"
    "from oxa.config.params import load_params\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, [int(sys.argv[1])] * 2)\n"
    "list(export.run(load_params(Path('params.yaml')), '1', Path('out')))\n"
)


def test_a_killed_export_leaves_nothing_half_and_the_next_one_cleans_up(project: Path) -> None:
    shutil.rmtree(".dvc")  # DVC writes long files, too
    size = Path("models/sft-0/model.safetensors").stat().st_size // 2
    command = [sys.executable, "-c", KILLED, str(size)]  # the kernel kills it when it writes a longer file
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGXFSZ
    assert Path(".out.part/model.safetensors").stat().st_size <= size
    assert not Path("out").exists()
    exported("1")
    assert Path("out/model.safetensors").stat().st_size > size
    assert not Path(".out.part").exists()


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


def environment(server: Hub | str, token: str | None = TOKEN) -> dict[str, str]:
    """huggingface_hub reads it when it is imported: a process of its own for each."""
    url = server if isinstance(server, str) else server.url
    settings = {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(Path("hf").resolve()),
    }
    kept = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    return kept | settings | {"PYTHONPATH": str(ROOT)} | ({"HF_TOKEN": token} if token else {})


def oxa(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_a_pushed_version_is_on_the_hub_as_it_lies_in_the_folder(project: Path, server: Hub) -> None:
    words = ("export", "champion", "out", "--push", "alice/tiny")
    done = oxa(environment(server), *words)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[-1]
        == f"pushed to {server.url}/alice/tiny; a repository that is new is private"
    )
    assert server.created[0]["visibility"] == "private"
    folder = {path.relative_to("out").as_posix(): path.read_bytes() for path in Path("out").rglob("*")}
    assert server.repositories["alice/tiny"] == folder
    assert len(server.objects) == 1, "the weights went the way of large files"
    assert server.titles == ["version 2 (oxa_full, seed 0)"]
    licensed = card().replace("\n# license: ", "\nlicense: mit  # ")
    write("out/README.md", licensed)
    again = oxa(environment(server), *words)  # the repository is there now
    assert again.returncode == 0, again.stderr
    assert server.repositories["alice/tiny"]["README.md"].decode() == licensed
    assert TOKEN not in done.stdout + done.stderr + again.stdout + again.stderr


PUSH = (
    "import sys; from pathlib import Path; from flows import hub; from oxa import errors\n"
    "try: hub.check(sys.argv[1]); hub.push(Path('out'), sys.argv[1], 'a title')\n"
    "except errors.UserError as error: errors.tell(str(error)); sys.exit(75 if errors.is_out_of_reach(error) else 2)\n"
)


def pushed(environment: dict[str, str], name: str = "alice/tiny") -> tuple[int, str]:
    """Exit code and what is said."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PUSH, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stderr.strip()


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something to push, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write("out/README.md", "---\n---\n")
    write("out/model.safetensors", "weights")
    return tmp_path


@pytest.mark.parametrize(
    ("refuses", "sentence"),
    [
        (
            {"/create": 401},
            r"the hub does not know the token; set HF_TOKEN to one that it knows \(status 401",
        ),
        (
            {"/create": 403},
            r"the token may not write there; take one that may, or another OWNER \(status 403",
        ),
        ({"/commit/": 403}, r"the token may not write there"),
        ({"put": 403}, r"the token may not write there"),
        (
            {"/validate-yaml": 400},
            r"the hub takes no such upload \(Invalid metadata in README.md. - not so\)",
        ),
        ({"/batch": 422}, r"the hub refused \(status 422, 'not so'\)"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_one_sentence(
    out: Path, server: Hub, refuses: dict[str, int], sentence: str
) -> None:
    server.refuses = refuses
    code, said = pushed(environment(server))
    assert re.match(rf"oxa: --push alice/tiny: {sentence}.*; out is whole, push it again$", said), said
    assert code == 2
    assert TOKEN not in said


def test_without_a_token_a_network_or_a_name_nothing_is_pushed(out: Path, server: Hub) -> None:
    code, said = pushed(environment(server, token=None))
    assert (code, server.created) == (2, [])
    assert said == "oxa: --push alice/tiny: there is no token; set HF_TOKEN, or log in by `hf auth login`"
    code, said = pushed(environment("http://127.0.0.1:1"))
    assert re.match(
        r"oxa: --push alice/tiny: the hub cannot be reached \(.*\); out is whole, push it again$", said
    ), said
    assert code == 75, "a later try may succeed"
    code, said = pushed(environment(server) | {"HF_HUB_OFFLINE": "1"})
    assert (code, "HF_HUB_OFFLINE keeps from the hub; unset it" in said) == (2, True), said
    assert pushed(environment(server), "tiny") == (2, "oxa: --push tiny: expected OWNER/NAME")
    code, said = pushed(environment(server), "a/b/c")
    assert (code, said.startswith("oxa: --push a/b/c: Repo id must")) == (2, True), said
    assert server.created == []
