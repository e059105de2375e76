"""Several processes: how tests start them, and how these end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

CONFIGS = Path(__file__).resolve().parents[1] / "examples" / "accelerate_configs"

# What torch says when gloo's threads outlive the interpreter, now and then, of a process that is done (pytorch issue
# 190489).
ABORTED_AT_EXIT = "terminate called without an active exception"


def torchrun(
    *arguments: str, processes: int = 2, options: Sequence[str] = (), env: Mapping[str, str] | None = None, **how: Any
) -> str:
    """Run a script, or `-m module`, in processes of one thread each, one of them without a launch; what they printed.

    Scripts of ours end by `leave_together`. Those of users cannot: with `attempts=2` they are started once more where
    torch has aborted them at their end.
    """
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *options]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return _run([*(launch if processes > 1 else []), *arguments], env or {}, **how).stdout


def accelerate_launch(*arguments: str, processes: int = 2, **how: Any) -> str:
    """The same by `accelerate launch`: what they printed and logged. The script has to be told to stay on the CPU."""
    # As its "CPU", accelerate would start a single process and leave the others to mpirun.
    launch = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", "0"]
    done = _run(["-m", "accelerate.commands.launch", *launch, *arguments], {}, **how)
    return done.stdout + done.stderr


def _run(
    command: Sequence[str], env: Mapping[str, str], timeout: float = 180, attempts: int = 1
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
    for attempt in range(1, attempts + 1):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode == 0 or ABORTED_AT_EXIT not in done.stderr or attempt == attempts:
            break
    assert done.returncode == 0, done.stderr[-5000:]
    return done


def leave_together(folder: Path) -> None:
    """End this process of a launch, when all others are done too, without tearing the interpreter down.

    Destroying the group first does not keep gloo's threads from aborting the process. No process leaves while another
    may still hear from it.
    """
    (folder / f"done-{os.environ['RANK']}").touch()
    while len(list(folder.glob("done-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fsdp_environment(path: Path) -> dict[str, str]:
    """What `accelerate launch --config_file` tells its processes of FSDP."""
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "script"])
    )
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if name.startswith("FSDP_")}
