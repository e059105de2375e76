"""Checks that several settings share; their errors name the field, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(settings: Any) -> None:
    """Check that the fields of a dataclass with a `Literal` type have one of the allowed values.

    Args:
        settings: The dataclass instance.

    Raises:
        ValueError: If one has not; the message lists the allowed values.
    """
    for name, hint in get_type_hints(type(settings)).items():
        choices = get_args(hint)
        if get_origin(hint) is Literal and getattr(settings, name) not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(settings, name)!r}.")


def check_shares(settings: Any, *names: str) -> None:
    """Check that fields are between 0 and 1, or "auto".

    Args:
        settings: The dataclass instance.
        *names: Names of the fields.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        value = getattr(settings, name)
        if value != "auto" and not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be between 0 and 1, got {value!r}.")


def check_minimum(settings: Any, name: str, least: int, advice: str = "") -> None:
    """Check that a field is large enough, or `None` if that is its default.

    Args:
        settings: The dataclass instance.
        name: Name of the field.
        least: The smallest allowed value.
        advice: A sentence that says what to pass instead.

    Raises:
        ValueError: If the field is too small.
    """
    value = getattr(settings, name)
    is_default = value is None and getattr(type(settings), name) is None
    if not is_default and (value is None or value < least):
        raise ValueError(f"`{name}` must be at least {least}, got {value!r}. {advice}".rstrip())


def distinct_choices(name: str, values: Sequence[str], choices: Sequence[str]) -> list[str]:
    """Return the values of a field as a list.

    Args:
        name: Name of the field.
        values: Its values.
        choices: The allowed values.

    Raises:
        ValueError: If the values are a string, empty, repeated or not allowed.

    Example:
        >>> distinct_choices("features", ("mean", "bag"), ["mean", "first", "bag"])
        ['mean', 'bag']
    """
    if isinstance(values, str):
        raise ValueError(f"`{name}` must be a list, got {values!r}. Pass [{values!r}].")
    values = list(values)  # may be a tuple
    if not values or len(set(values)) < len(values):
        raise ValueError(f"`{name}` must be a non-empty list without duplicates, got {values!r}.")
    unknown = [value for value in values if value not in choices]
    if unknown:
        raise ValueError(f"`{name}` must contain only {', '.join(choices)}, got {unknown[0]!r}.")
    return values


def number_or_auto(name: str, value: Any) -> float | str:
    """Return the value of a field that is a number or "auto".

    Args:
        name: Name of the field.
        value: Its value, also as text.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> number_or_auto("blend", "0.3"), number_or_auto("blend", "auto")
        (0.3, 'auto')
    """
    if value == "auto" or isinstance(value, int | float):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be 'auto' or a number between 0 and 1, got {value!r}.") from None


def name_of_model(model: Any) -> str | None:
    """Return the name of a model that a setting holds.

    Args:
        model: Its name or folder, a transformers model, a `SentenceTransformer`, or a pair of model and tokenizer.

    Example:
        >>> name_of_model("bert-base-uncased")
        'bert-base-uncased'
    """
    if model is None or isinstance(model, str | Path):
        return None if model is None else str(model)
    model = model[0] if isinstance(model, tuple) else getattr(model, "model", model)
    model = getattr(model, "transformers_model", model)
    return getattr(model, "name_or_path", None) or type(model).__name__
