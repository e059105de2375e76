"""Read the local files of TensorBoard, W&B, MLflow and trackio into one format."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """A run of a tracker; `points[key]` is a list of (global step, value, the tracker's own row number)."""

    project: str
    points: dict[str, list[tuple[int, float, int]]] = field(default_factory=dict)
    status: str | None = None

    def add(self, key: str, step: int, value: float, row: int = -1) -> None:
        self.points.setdefault(key, []).append((step, value, row))

    def add_row(self, figures: dict[str, Any], row: int) -> None:
        """Add a row of a tracker that logs the step as the metric `train/global_step`."""
        step = figures.pop("train/global_step")
        for key, value in figures.items():
            self.add(key, step, value, row)


def read_tensorboard(folder: Path) -> list[Run]:
    """A run is a folder with event files; its project is the Trainer's `output_dir`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = []
    for events in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0})
        accumulator.Reload()
        run = Run(project=events.relative_to(folder).parts[0])
        for key in accumulator.Tags()["scalars"]:
            for event in accumulator.Scalars(key):
                run.add(key, event.step, event.value)
        runs.append(run)
    return runs


def read_wandb(folder: Path) -> list[Run]:
    """A run is a `.wandb` file of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = []
    for path in sorted(folder.rglob("*.wandb")):
        records = [Record.FromString(data) for data in _leveldb_records(path.read_bytes()[7:], offset=7)]
        [project] = {record.run.project for record in records if record.HasField("run")}
        run = Run(project)
        for record in records:
            if record.HasField("history"):
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                number = row["_step"]
                run.add_row({key: value for key, value in row.items() if not key.startswith("_")}, number)
        runs.append(run)
    return runs


def _leveldb_records(data: bytes, offset: int) -> Iterator[bytes]:
    """Parse LevelDB's log format: 32 KiB blocks of record fragments (checksum, length, type: 1 full, 4 last)."""
    position, record = 0, b""
    while position < len(data):
        left = 32768 - (position + offset) % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def read_mlflow(folder: Path) -> list[Run]:
    """A project is an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    runs = []
    for experiment in client.search_experiments():
        for found in client.search_runs([experiment.experiment_id]):
            run = Run(experiment.name, status=found.info.status)
            for key in found.data.metrics:
                for metric in client.get_metric_history(found.info.run_id, key):
                    run.add(key, metric.step, metric.value)
            runs.append(run)
    return runs


def read_trackio(folder: Path) -> list[Run]:
    """A project is an SQLite file; trackio's own reader is bound to one folder per process."""
    runs = []
    for path in sorted(folder.glob("*.db")):
        with sqlite3.connect(path) as database:
            ids = database.execute("SELECT run_id FROM configs UNION SELECT run_id FROM metrics").fetchall()
            for (run_id,) in ids:
                run = Run(path.stem)
                rows = database.execute("SELECT step, metrics FROM metrics WHERE run_id = ? ORDER BY id", (run_id,))
                for number, row in rows:
                    run.add_row(json.loads(row), number)
                runs.append(run)
    return runs


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}
