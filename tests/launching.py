"""Launch scripts in several processes, and end those processes together."""

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

# The cores for a test that runs a real model. With pytest-xdist, all of them for each worker would be more threads than
# cores: each operation would wait for its slowest thread, and such tests would take three times as long.
CORES = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))

CONFIGS = Path(__file__).resolve().parents[1] / "examples" / "accelerate_configs"

# torch occasionally prints this when gloo's threads outlive the interpreter of a finished process (pytorch issue
# 190489).
ABORTED_AT_EXIT = "terminate called without an active exception"


def torchrun(
    *arguments: str, processes: int = 2, options: Sequence[str] = (), env: Mapping[str, str] | None = None, **how: Any
) -> str:
    """Run a script, or `-m module`, and return its output; each process uses one thread.

    A single process is started directly, without torchrun. Our own scripts end with `exit_together`. Others cannot:
    with `attempts=2` they are run again if torch aborts them at exit.
    """
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *options]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return _run([*(launch if processes > 1 else []), *arguments], env or {}, **how).stdout


def accelerate_launch(*arguments: str, processes: int = 2, **how: Any) -> str:
    """Run a script with `accelerate launch`; return its output and logs. The script itself must choose the CPU."""
    # With `--cpu`, accelerate starts a single process and leaves the others to mpirun.
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


def exit_together(folder: Path) -> None:
    """Wait until all processes of the launch are done, then exit without interpreter shutdown.

    Destroying the process group first does not keep gloo's threads from aborting the process. No process exits while
    another one may still communicate with it.
    """
    (folder / f"done-{os.environ['RANK']}").touch()
    while len(list(folder.glob("done-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fsdp_environment(path: Path) -> dict[str, str]:
    """Return the FSDP variables that `accelerate launch --config_file` sets in its processes."""
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "script"])
    )
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if name.startswith("FSDP_")}
