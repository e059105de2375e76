"""Launch scripts in several processes, and end those processes together."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed import TCPStore

# The cores for a test that runs a real model. With pytest-xdist, all of them for each worker would be more threads than
# cores: each operation would wait for its slowest thread, and such tests would take three times as long.
CORES = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))

CONFIGS = Path(__file__).resolve().parents[1] / "examples" / "accelerate_configs"

# torch occasionally prints this when gloo's threads outlive the interpreter of a finished process (pytorch issue
# 190489).
ABORTED_AT_EXIT = "terminate called without an active exception"


# Where possible, processes are forked from one that has imported these, which takes longer than most scripts run.
_FORKED = "forkserver" in multiprocessing.get_all_start_methods()
_CONTEXT: Any = multiprocessing.get_context("forkserver" if _FORKED else "spawn")
if _FORKED:
    _CONTEXT.set_forkserver_preload(["transformers.trainer", "defemb_callbacks"])


def launch(
    script: str, *arguments: str, processes: int = 2, env: Mapping[str, str] | None = None, timeout: float = 180
) -> list[tuple[str, str]]:
    """Run a script in processes that find each other as those of torchrun do; each uses one thread.

    Args:
        script: Path of a script that ends with `exit_together`, if there are several processes.
        arguments: Its arguments.
        processes: Number of processes. A single one is not part of a process group.
        env: Further environment variables.
        timeout: Maximum seconds.

    Returns:
        Standard output and standard error of each process.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    common = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    if processes > 1:
        common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        common |= {"TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            streams = [os.path.join(folder, f"{rank}.{name}") for name in ("stdout", "stderr")]
            running.append(_CONTEXT.Process(target=_run_here, args=([script, *arguments], common | own, streams)))
            running[-1].start()
        end = time.monotonic() + timeout
        while any(process.is_alive() for process in running) and time.monotonic() < end:
            if any(process.exitcode for process in running):
                break  # the others would wait for it
            time.sleep(0.02)
        for process in running:
            process.kill()
            process.join()
        said = [
            (Path(folder, f"{rank}.stdout").read_text("utf-8"), Path(folder, f"{rank}.stderr").read_text("utf-8"))
            for rank in range(processes)
        ]
    failed = [errors[-5000:] for process, (_, errors) in zip(running, said, strict=True) if process.exitcode]
    assert not failed, "\n".join(failed)
    return said


def _run_here(command: list[str], environment: dict[str, str], streams: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for handle, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), handle)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


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
