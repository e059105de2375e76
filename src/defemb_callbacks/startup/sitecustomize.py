"""Python imports this module when it starts: add the callback to every Trainer if `DEFEMB_RUN` is set.

It imports nothing large, because most processes create no Trainer.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TRAINER = "transformers.trainer"


class TrainerFinder(MetaPathFinder):
    """Finds the module of the Trainer as the other finders do, and adds the callback when it has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of `transformers.trainer`, `None` for all other modules.

        Args:
            name: Name of the module.
            path: Unused.
            target: Unused.
        """
        if name != TRAINER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            add_callback(module.Trainer)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def add_callback(trainer_class: Any) -> None:
    """Wrap `Trainer.__init__`. The package is imported when the first Trainer is created.

    Args:
        trainer_class: The class `Trainer`.
    """
    original = trainer_class.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        launched = importlib.import_module("defemb_callbacks.callbacks.launched")
        settings = launched.settings_from_environment()
        if settings is None:
            original(self, *args, **kwargs)
        else:
            launched.create_trainer(original, self, args, kwargs, settings)

    trainer_class.__init__ = init


def import_hidden_module() -> None:
    """Import the `sitecustomize` that this one hides, such as that of a Linux distribution."""
    here = os.path.dirname(os.path.abspath(__file__))
    path, sys.path[:] = sys.path[:], [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    own = sys.modules.pop(__name__)
    with contextlib.suppress(ImportError):
        importlib.import_module(__name__)
    sys.path[:] = path
    sys.modules[__name__] = own


if __name__ == "sitecustomize":
    if os.environ.get("DEFEMB_RUN", "0") not in ("", "0"):
        sys.meta_path.insert(0, TrainerFinder())
    import_hidden_module()
