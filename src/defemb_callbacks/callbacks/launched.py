"""The callback that `defemb run` adds to the Trainers of a script, and how it is added."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from defemb_callbacks.callbacks.console import show
from defemb_callbacks.callbacks.rebuild import DefinitionEMBCallback
from defemb_callbacks.callbacks.tokenizer_search import find_tokenizer
from defemb_callbacks.weights.rows import NoTokenEmbeddings

# Environment variable: settings of the callback as a JSON object, or 1 for the defaults.
SWITCH = "DEFEMB_RUN"

# Trainers and models of this package that train a constructor or a flow.
INTERNAL = ("defemb_callbacks.reconstruction.constructor.", "defemb_callbacks.sentence.")


class LaunchedCallback(DefinitionEMBCallback):
    """`DefinitionEMBCallback` for any Trainer of a script: one without text is left as it is.

    Example:
        >>> callback = LaunchedCallback(blend=0.3)
        >>> # Trainer(model, args, train_dataset=…, processing_class=tokenizer, callbacks=[callback])
    """

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        processing_class: Any = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Rebuild the embeddings of a model that reads text."""
        self._is_idle = False
        try:
            super().on_init_end(args, state, control, processing_class=processing_class, model=model, **kwargs)
        except NoTokenEmbeddings:
            self._is_idle = True
            show(args, state, f"{type(model).__name__} has no text: it has no token embeddings, and is left as it is.")

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure the embeddings, unless the run has no text."""
        if self._is_idle:
            return
        if find_tokenizer(self, kwargs.get("processing_class"), model, train_dataloader)[0] is None:
            show(
                args,
                state,
                "This Trainer has no text: no tokenizer was found. Its token embeddings are left as they are.",
            )
            return
        super().on_train_begin(args, state, control, model=model, train_dataloader=train_dataloader, **kwargs)


def settings_from_environment() -> dict[str, Any] | None:
    """Read the settings of the callback from the environment variable `DEFEMB_RUN`.

    Returns:
        Arguments of `DefinitionEMBCallback`; `None` if the variable is not set, empty or 0.

    Raises:
        ValueError: If the variable is neither 0, 1 nor a JSON object.
    """
    text = os.environ.get(SWITCH, "").strip()
    if text in ("", "0", "1"):
        return {} if text == "1" else None
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f'{SWITCH} must be 1 or a JSON object of settings such as {{"blend": 0.3}}, got {text!r}.')
    return settings


def create_trainer(
    create: Callable[..., None], trainer: Trainer, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Any
) -> None:
    """Create a Trainer with a `LaunchedCallback`, unless the script has passed a `DefinitionEMBCallback`.

    Args:
        create: `Trainer.__init__`.
        trainer: The Trainer.
        args: Positional arguments of the script.
        kwargs: Keyword arguments of the script.
        settings: Arguments of the callback.
    """
    names = list(inspect.signature(create).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    callbacks = list(given.get("callbacks") or [])
    kinds = [callback if isinstance(callback, type) else type(callback) for callback in callbacks]
    modules = [type(owner).__module__ for owner in (trainer, given.get("model"))]
    if any(issubclass(kind, DefinitionEMBCallback) for kind in kinds) or any(map(is_internal, modules)):
        create(trainer, *args, **kwargs)
        return
    callback = LaunchedCallback(**settings)
    callbacks.append(callback)
    position = names.index("callbacks")
    # Other arguments are passed on as they are: Python's own error about wrong ones names `Trainer.__init__`.
    if len(args) > position:
        create(trainer, *args[:position], callbacks, *args[position + 1 :], **kwargs)
    else:
        create(trainer, *args, **kwargs | {"callbacks": callbacks})
    callback.attach(trainer)


def is_internal(module: str) -> bool:
    """Return whether a Trainer or model is defined by this package for its own training.

    Args:
        module: Name of the module of its class.
    """
    return module.startswith(INTERNAL)


@contextmanager
def callback_in_every_trainer(settings: Mapping[str, Any]) -> Iterator[list[str]]:
    """Add the callback to every Trainer that is created inside the block.

    Args:
        settings: Arguments of `DefinitionEMBCallback`.

    Yields:
        The class names of the Trainers created so far.
    """
    original: Callable[..., None] = Trainer.__init__
    created: list[str] = []

    @functools.wraps(original)
    def init(self: Trainer, *args: Any, **kwargs: Any) -> None:
        create_trainer(original, self, args, kwargs, settings)
        created.append(type(self).__name__)

    Trainer.__init__ = init  # type: ignore[method-assign]
    try:
        yield created
    finally:
        Trainer.__init__ = original  # type: ignore[method-assign]
