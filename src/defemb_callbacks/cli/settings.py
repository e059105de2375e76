"""Turn fields of `DefinitionEMBConfig` into command-line options, so that each setting is defined only once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from defemb_callbacks.config import DefinitionEMBConfig

BUILD_SETTINGS = (
    "method",
    "constructor",
    "table",
    "features",
    "reader",
    "definitions_per_token",
    "max_length",
    "precision",
    "batch_size",
    "cache_dir",
)
# How the rows of new tokens and of terms that are already tokens are written
DEFINE_SETTINGS = (
    "strategy",
    "blend",
    "blend_floor",
    "rescale",
    "frequency",
    "group_edges",
    "new_token_group",
    "distil",
    "texts_per_term",
    "reuse_reserved",
)
APPLY_SETTINGS = ("table", "strategy", "blend", "blend_floor", "rescale", "alpha", "frequency", "group_edges")


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with one option per config field. The command gets the resulting `config` as a keyword.

    A command with a parameter `context` gets the context of typer, too.

    Args:
        *names: Names of fields of `DefinitionEMBConfig`.
    """
    hints = get_type_hints(DefinitionEMBConfig)
    defaults = DefinitionEMBConfig()
    options = []
    for field in (field for field in fields(DefinitionEMBConfig) if field.name in names):
        kind: Any = hints[field.name]
        choices = None
        if get_origin(kind) is Literal:
            kind, choices = str, "|".join(get_args(kind))
        elif field.name in ("constructor", "reader"):  # JSON text or a JSON file instead of a dict; a name, not a model
            kind = str | None
        option = Annotated[kind, typer.Option(metavar=choices, help=field.metadata["help"])]
        default = getattr(defaults, field.name)
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(field.name, keyword, default=default, annotation=option))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        given = ("config", "context")
        parameters = [parameter for parameter in signature.parameters.values() if parameter.name not in given]

        def run(context: typer.Context, **values: Any) -> None:
            settings = {name: values.pop(name) for name in names}
            if values.get("paper") is None:
                config = DefinitionEMBConfig(**settings)
            else:  # options given on the command line override the paper's settings; defaults do not
                sources = {name: context.get_parameter_source(name) for name in settings}
                explicit = {
                    name: value for name, value in settings.items() if getattr(sources[name], "name", "") != "DEFAULT"
                }
                config = DefinitionEMBConfig.paper(values["paper"], **explicit)
            if "context" in signature.parameters:
                values["context"] = context
            command(config=config, **values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        run.__signature__ = signature.replace(parameters=[first, *parameters, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [first, *parameters, *options]}
        return run

    return decorate
