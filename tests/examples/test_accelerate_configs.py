"""The files for `accelerate launch` are valid and have the settings that rebuilding and saving require."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import StateDictType
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from launching import CONFIGS, fsdp_environment

FILES = sorted(CONFIGS.glob("*.yaml"))
TYPES = {
    "cpu_2_processes": DistributedType.MULTI_GPU,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
    "fsdp2": DistributedType.FSDP,
    "multi_gpu": DistributedType.MULTI_GPU,
    "single_gpu": DistributedType.NO,
}


def load(name: str) -> Any:
    return load_config_from_file(str(CONFIGS / f"{name}.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_accepts_every_key(path: Path) -> None:
    config = load(path.stem)  # raises an error for unknown keys, but not in sections
    assert config.distributed_type == TYPES[path.stem]
    assert config.mixed_precision == ("no" if path.stem == "cpu_2_processes" else "bf16")
    assert config.num_processes == (1 if path.stem == "single_gpu" else 2)
    options = vars(launch_command_parser().parse_args(["script.py"]))
    sections = [section for section in yaml.safe_load(path.read_text()).values() if isinstance(section, dict)]
    assert len(sections) == (config.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED))
    assert not [key for section in sections for key in section if key not in options]
    if config.num_processes > 1:
        assert config.main_process_port == 0  # two launches on one machine do not share port 29500


def test_there_is_a_file_for_each_way_to_launch() -> None:
    assert [path.stem for path in FILES] == sorted(TYPES)


def test_fsdp_settings_allow_writing_and_saving_rows(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in fsdp_environment(CONFIGS / "fsdp2.yaml").items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert not plugin.cpu_ram_efficient_loading
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT  # Trainer.save_model writes no other
    plugin.set_auto_wrap_policy(model)
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {BertLayer}


def test_zero3_writes_an_ordinary_checkpoint() -> None:
    assert [load(f"deepspeed_zero{stage}").deepspeed_config["zero_stage"] for stage in (2, 3)] == [2, 3]
    assert load("deepspeed_zero3").deepspeed_config["zero3_save_16bit_model"] is True


@pytest.mark.slow
def test_two_processes_really_are_launched(tmp_path: Path) -> None:
    script = tmp_path / "world.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from accelerate import PartialState\n"
        "from launching import exit_together\n"
        "state = PartialState(cpu=True)  # as TrainingArguments(use_cpu=True) does\n"
        "print(f'process {state.process_index} of {state.num_processes}, {state.backend}', flush=True)\n"
        "exit_together(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(CONFIGS / "cpu_2_processes.yaml"), str(script), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-5000:]
    assert sorted(done.stdout.splitlines()) == ["process 0 of 2, gloo", "process 1 of 2, gloo"]
