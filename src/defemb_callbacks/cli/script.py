"""A script that `defemb run` runs as Python would, with the callback in every Trainer that it creates."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defemb_callbacks.callbacks.launched import SWITCH, callback_in_every_trainer

STARTUP = Path(__file__).resolve().parents[1] / "startup"


@dataclass(frozen=True)
class Script:
    """A script, or a module, and its arguments.

    Attributes:
        name: Path of the script, or name of the module.
        arguments: Its arguments.
        is_module: Whether `name` is a module, as in `python -m`.
        settings: Arguments of `DefinitionEMBCallback`, as JSON values.
    """

    name: str
    arguments: list[str] = field(default_factory=list)
    is_module: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self) -> list[str]:
        """Run the script in this process. Its errors and its `SystemExit` are raised.

        Returns:
            The class names of the Trainers that it has created in this process.
        """
        with self._environment(), callback_in_every_trainer(self.settings) as created:
            if self.is_module:
                runpy.run_module(self.name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(self.name, run_name="__main__")
        return created

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Arguments and import path as for `python script.py`; processes that it starts add the callback, too."""
        arguments, path, environment = sys.argv, sys.path[:], dict(os.environ)
        sys.argv = [self.name, *self.arguments]
        sys.path[0] = os.getcwd() if self.is_module else str(Path(self.name).resolve().parent)
        os.environ[SWITCH] = json.dumps(self.settings) if self.settings else "1"
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
        try:
            yield
        finally:
            sys.argv, sys.path[:] = arguments, path
            os.environ.clear()
            os.environ.update(environment)
