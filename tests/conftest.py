"""Tiny real objects that the tests share."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import settings

if TYPE_CHECKING:
    from browser import Browser

pytest_plugins = ["processor_time"]

settings.register_profile("shared machine", deadline=None)  # other work must not fail an example
settings.load_profile("shared machine")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell starts its background jobs with Ctrl-C ignored

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_checkpoint(
    folder: Path, *, seed: int = 0, hidden_size: int = 32, template: str = CHAT_TEMPLATE
) -> Path:
    """Writes a random 2-layer Llama with a byte-level tokenizer (every text can be written in it)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=special[2:],
        chat_template=template,
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        attention_bias=True,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # sharper than the default initialisation, so that log-probabilities differ visibly
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_no_garbage() -> None:
    """Spares the collector what is there when a module begins: torch and others are a million objects, and one visit of
    all costs half a second, of which hypothesis has many."""
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder; read only."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def talker(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 25 end tokens, so that responses stop after about 10 tokens, each at its own time."""
    folder = tmp_path_factory.mktemp("talker")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [settings["eos_token_id"], *range(200, 224)]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def neighbour(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with every weight moved a little, as a fine-tuning leaves it."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("neighbour")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    weights, noise = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    moved = {name: w + 0.1 * torch.randn(w.shape, generator=noise) for name, w in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Kept:
    """A log that keeps what it is given, and stops the training after a step where asked to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self._stop_after = stop_after

    def __call__(self, step: int, **values: float) -> None:
        self.rows.append({"step": step, **values})
        if step == self._stop_after:
            raise KeyboardInterrupt

    def curve(self) -> list[dict[str, float]]:
        """Without timing."""
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in self.rows]


@pytest.fixture
def log() -> Kept:
    """A log callback that keeps what it was given: log.rows."""
    return Kept()


@pytest.hookimpl(tryfirst=True)  # before the marks choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs Chromium is for `make test-all`."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.whole)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, which takes a second to start; each test opens its own page."""
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server that all flows of this process's tests may report to."""
    from servers import prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


class Repository:
    """A real DVC repository of a few shell stages, and the working directory of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stages(self, **stages: dict[str, Any]) -> None:
        """Writes dvc.yaml; `cmd`, `deps`, `outs`, `matrix`, `meta` as DVC knows them."""
        (self.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    def set(self, key: str, value: Any) -> None:
        """Changes one value of params.yaml, by its dotted key."""
        params = yaml.safe_load((self.folder / "params.yaml").read_text())
        *parents, last = key.split(".")
        section = params
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(scope="session")
def new_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository without stages, to be copied: to make one takes a second."""
    folder = tmp_path_factory.mktemp("repository")
    project = Path(__file__).resolve().parents[1]
    for name in ("params.yaml", ".gitignore"):
        shutil.copy(project / name, folder)
    (folder / "sources").mkdir()
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    return folder


@pytest.fixture
def repository(new_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    folder = Path(shutil.copytree(new_repository, tmp_path / "project"))
    monkeypatch.chdir(folder)
    return Repository(folder)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; to make one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def workspace(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder with an MLflow of its own, as the current folder."""
    shutil.copy(database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path
