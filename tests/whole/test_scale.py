"""Several processes and what starts them: accelerate's files, FSDP, a launched stage under DVC.

What train, rlvr and score compute in several processes is in test_train.py, test_rlvr.py and test_score.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_sets
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from pipelines import REPRO, ROOT, assert_same, copied, forget, reference, run, stages_run
from processes import wait_until_left
from safetensors.torch import load_file
from training_rows import ROWS, SHARED, WITH_UL

from conftest import Kept
from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.errors import ConfigError
from oxa.model import loading
from oxa.training import fine_tuning, resume

FILES = sorted((ROOT / "presets" / "accelerate").glob("*.yaml"))
ACCELERATE = [
    str(Path(sys.executable).parent / "accelerate"),
    "launch",
    "--main_process_port",
    "0",
]  # a free port


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_every_file_that_is_there_for_it(path: Path) -> None:
    config: Any = load_config_from_file(str(path))
    assert config.mixed_precision == "no", "the section's own dtype says it"
    assert config.num_processes % config.num_machines == 0
    assert (config.num_machines > 1) == ("multi-node" in path.stem)
    if config.fsdp_config:
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    if config.deepspeed_config:
        assert config.deepspeed_config["zero3_save_16bit_model"] is True


CHILD = """
import faulthandler, json, os, signal, sys
from pathlib import Path
faulthandler.dump_traceback_later(240, exit=True)  # says where it hangs, before the test gives up
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import DistributedType, PartialState
from oxa.config.fine_tuning import TrainArm, FineTuning
from oxa.training import fine_tuning

class OnCPUs(fine_tuning.OXATrainer):
    def create_accelerator_and_postprocess(self):
        # accelerate takes FSDP for GPUs alone and would train with DDP here, while torch's FSDP runs on CPUs, with gloo
        plugin = FullyShardedDataParallelPlugin()
        Accelerator(cpu=True).state.fsdp_plugin = plugin
        PartialState().distributed_type = DistributedType.FSDP
        super().create_accelerator_and_postprocess()

    def train(self, *arguments, **options):
        super().train(*arguments, **options)
        assert type(next(self.model_wrapped.parameters())).__name__ == "DTensor"

fine_tuning.OXATrainer = OnCPUs
model, data, folder, shared, arm, kill_after = (json.loads(argument) for argument in sys.argv[1:])
torch.set_num_threads(1)
folder = Path(folder)
(folder / "scratch").mkdir(parents=True, exist_ok=True)

def log(step, **values):
    with open(folder / "log.txt", "a") as file:
        file.write(json.dumps({"step": step, **values}) + chr(10))
    if step == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

fine_tuning.run(FineTuning(**shared), TrainArm(**arm), model=Path(model), data=Path(data), output=folder / "model",
          scratch=folder / "scratch", seed=0, log=log)
"""


@pytest.mark.whole
@pytest.mark.parametrize("adapter", [None, {"rank": 3}])
def test_fsdp_killed_and_started_again_trains_like_one_process(
    checkpoint: Path, tmp_path: Path, adapter: dict[str, int] | None
) -> None:
    shared = {**SHARED, "adapter": adapter}
    data = training_sets.write(tmp_path / "t", ROWS)
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "one").mkdir()
    alone = Kept()
    fine_tuning.run(
        FineTuning(**shared),
        TrainArm(**WITH_UL),
        model=checkpoint,
        data=data,
        output=tmp_path / "one" / "model",
        scratch=tmp_path / "one",
        seed=0,
        log=alone,
    )

    def launched(kill_after: int) -> int:
        arguments = [str(checkpoint), str(data), str(tmp_path / "two"), shared, WITH_UL, kill_after]
        launcher = [
            *ACCELERATE,
            "--config_file",
            str(ROOT / "presets/accelerate/fsdp.yaml"),
            "--num_processes",
            "2",
        ]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [*launcher, str(tmp_path / "child.py"), *map(json.dumps, arguments)]
        return subprocess.run(command, env=environment, timeout=300).returncode

    assert launched(kill_after=3) != 0
    assert launched(kill_after=-1) == 0
    rows = [json.loads(line) for line in (tmp_path / "two/log.txt").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6]
    assert not (tmp_path / "two/scratch/checkpoints").exists()
    weights_file = tmp_path / "two/scratch/checkpoints-fsdp/checkpoint-6/pytorch_model_fsdp.bin"
    losses = {row["step"]: row["loss"] for row in rows}
    assert [losses[row["step"]] for row in alone.rows] == pytest.approx(
        [row["loss"] for row in alone.rows], rel=1e-4
    )
    weights, expected = (load_file(tmp_path / name / "model/model.safetensors") for name in ("two", "one"))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert weights[name].dtype == value.dtype
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5)
    loading.load(tmp_path / "two" / "model")
    assert weights_file.is_file()
    weights_file.write_bytes(weights_file.read_bytes()[:-100])
    folder = weights_file.parents[1]
    assert resume.last_whole(folder, may_remove=False) == str(folder / "checkpoint-4"), (
        "the cut one is left out"
    )


def test_fsdp_that_would_save_no_whole_weights_is_refused() -> None:
    resume.refuse_parts(None)
    resume.refuse_parts(FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT"))
    with pytest.raises(
        ConfigError, match="with fsdp_state_dict_type SHARDED_STATE_DICT no model would be saved"
    ):
        resume.refuse_parts(
            FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
        )


def test_launchers_that_keep_checkpoints_of_different_kinds_keep_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [resume.folder(tmp_path).name]
    for kind in ("FSDP", "DEEPSPEED"):
        with monkeypatch.context() as patch:
            patch.setenv(f"ACCELERATE_USE_{kind}", "true")
            folders.append(resume.folder(tmp_path).name)
    assert folders == ["checkpoints", "checkpoints-fsdp", "checkpoints-deepspeed"]


@pytest.mark.whole
@pytest.mark.parametrize(
    "launcher",
    [
        "torchrun --standalone --nproc-per-node 2",
        f"accelerate launch --config_file {ROOT}/presets/accelerate/multi-gpu.yaml --num_processes 2",
    ],
)
def test_two_processes_score_what_one_does_and_dvc_takes_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, launcher: str
) -> None:
    done, stage = reference(tmp_path_factory, REPRO), "score@self"
    copy = copied(done, tmp_path / "copy")
    forget(copy, stage)
    assert stages_run(run(copy, *REPRO, stage, OXA_LAUNCH=launcher)) == {stage}
    assert_same(copy, done, stage)
    wait_until_left(copy)
