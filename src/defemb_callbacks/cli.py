"""The command line `defemb`: the same functions, without a Trainer."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import transformers
import typer
from accelerate import PartialState
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.build import build_definition_embeddings, definitions_of_tokens
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.embeddings import DefinitionEmbeddings, applied_to
from defemb_callbacks.monitoring.monitor import measure_embeddings
from defemb_callbacks.rows import embedding_weight
from defemb_callbacks.vocabulary import read_vocabulary

app = typer.Typer(
    help="Rebuild a model's token embeddings from dictionary definitions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose tables cut the names of options
)

BUILD_SETTINGS = ("features", "definitions_per_token", "max_length", "precision", "batch_size", "cache_dir")
APPLY_SETTINGS = ("strategy", "blend", "blend_floor", "rescale", "alpha", "frequency", "group_edges")

Model = Annotated[str, typer.Argument(help="Folder of a checkpoint, or its id on the hub.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of MODEL on the hub.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that MODEL comes with.")]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SRC",
        help="'wordnet' (the default), or a glossary: .tsv, .csv or .json. Give it several times to join dictionaries.",
    ),
]
Output = Annotated[Path, typer.Option(help="Folder to write into.", show_default=False)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend is one line on stderr and exit code 1."""
    try:
        app(arguments, prog_name="defemb")
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise SystemExit(1) from None


def _with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these fields of the config, and the config made of them."""
    hints = get_type_hints(DefinitionEMBConfig)
    defaults = DefinitionEMBConfig()
    options = []
    for field in (field for field in fields(DefinitionEMBConfig) if field.name in names):
        kind: Any = hints[field.name]
        choices = None
        if get_origin(kind) is Literal:
            kind, choices = str, "|".join(get_args(kind))
        option = Annotated[kind, typer.Option(metavar=choices, help=field.metadata["help"])]
        default = getattr(defaults, field.name)
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(field.name, keyword, default=default, annotation=option))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "config"]

        def run(**values: Any) -> None:
            config = DefinitionEMBConfig(**{name: values.pop(name) for name in names})
            command(config=config, **values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
        return run

    return decorate


@app.command("inspect")
def inspect_model(
    model: Model,
    definitions: Sources = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show a model's vocabulary, how much of it a dictionary defines, and the metrics of its token embeddings."""
    network, tokenizer = _load(model, revision, trust_remote_code)
    lexicon = load_definitions(definitions or "wordnet")
    vocabulary = read_vocabulary(tokenizer, len(embedding_weight(network)))
    defined = definitions_of_tokens(vocabulary, lexicon, most=1)
    found: dict[str, Any] = {
        "model": model,
        "rebuilt": applied_to(network),
        "vocabulary": dict(Counter(reason or "word" for reason in vocabulary.reasons).most_common()),
        "dictionary": {
            "name": lexicon.name,
            "words": len(lexicon),
            "defined_words": sum(vocabulary.words[index] is not None for index in defined),
            "defined_tokens": len(defined),
        },
        "metrics": measure_embeddings(network, tokenizer, lexicon),
    }
    _say(json.dumps(found, ensure_ascii=False, indent=1) if as_json else _as_text(found))


@app.command()
@_with_settings(*BUILD_SETTINGS)
def build(
    model: Model,
    output: Output,
    definitions: Sources = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    *,
    config: DefinitionEMBConfig,
) -> None:
    """Reconstruct a model's token embeddings from definitions, and save them for `defemb apply`."""
    network, tokenizer = _load(model, revision, trust_remote_code)
    state = PartialState()
    network.to(state.device)
    with state.local_main_process_first():  # the others read what it has put into the cache
        embeddings = build_definition_embeddings(network, tokenizer, definitions or "wordnet", config)
    if state.is_main_process:
        embeddings.save_pretrained(output)
    info = embeddings.info
    _say(
        f"{len(embeddings.ids):,} of {len(embeddings.vocabulary):,} tokens rebuilt from "
        f"{info['definitions_read']:,} definitions ({info['definitions']}), which explain {info['r_squared']:.3f} of "
        f"the old rows' variation.\nSaved in {output}. Next: defemb apply {model} {output} --output DIR"
    )


@app.command()
@_with_settings(*APPLY_SETTINGS)
def apply(
    model: Model,
    embeddings: Annotated[str, typer.Argument(help="Folder that `defemb build` wrote, or hub id.")],
    output: Output,
    force: Annotated[bool, typer.Option("--force", help="Rebuild a model that was rebuilt before.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the full report here, as JSON.")] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    *,
    config: DefinitionEMBConfig,
) -> None:
    """Write reconstructed embeddings into a model, task head included, and save it as an ordinary checkpoint."""
    if output.exists() and Path(model).exists() and output.samefile(model):
        raise ValueError(f"--output {output} is MODEL itself; name another folder.")
    network, tokenizer = _load(model, revision, trust_remote_code)
    ready = DefinitionEmbeddings.from_pretrained(embeddings)
    ready.check_tokenizer(read_vocabulary(tokenizer, len(embedding_weight(network))))
    done = ready.apply(network, config, force=force)
    if PartialState().is_main_process:
        network.save_pretrained(output)
        tokenizer.save_pretrained(output)
        if report is not None:
            report.write_text(done.to_json(), encoding="utf-8")
    _say(f"{done}\n\nSaved in {output}.")


def _load(name: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the class that its checkpoint was saved from, so that its task head is kept, and its tokenizer."""
    settings = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **settings)
    architecture = (config.architectures or ["AutoModel"])[0]
    # Code that comes with the model is reached through the automatic class it is registered for.
    registered = getattr(config, "auto_map", {}).items() if trust_remote_code else ()
    wanted = next((auto for auto, target in registered if str(target).endswith(f".{architecture}")), architecture)
    if not hasattr(transformers, wanted):
        raise ValueError(f"transformers has no model class {architecture!r}; --trust-remote-code runs the model's own.")
    model = getattr(transformers, wanted).from_pretrained(name, **settings)
    return model.eval(), AutoTokenizer.from_pretrained(name, **settings)


def _as_text(found: dict[str, Any]) -> str:
    vocabulary, dictionary = found["vocabulary"], found["dictionary"]
    size, words, defined = sum(vocabulary.values()), vocabulary.get("word", 0), dictionary["defined_words"]
    lines = [f"{found['model']}: {size:,} tokens"]
    lines += [f"  {kind:<20}{number:>9,}{number / size:>8.1%}" for kind, number in vocabulary.items()]
    lines += [
        "",
        f"{dictionary['name']} ({dictionary['words']:,} words) defines {defined:,} of {words:,} words "
        f"({defined / max(words, 1):.1%}), and {dictionary['defined_tokens']:,} tokens in all.",
        "",
    ]
    metrics = dict.fromkeys(key.split("/")[1] for key in found["metrics"])
    groups = dict.fromkeys(key.split("/")[2] for key in found["metrics"])
    lines.append("group     " + "".join(f"{metric.replace('_', ' '):>16}" for metric in metrics))
    for group in groups:
        values = (found["metrics"].get(f"defemb/{metric}/{group}") for metric in metrics)
        lines.append(f"{group:<10}" + "".join(" " * 16 if value is None else f"{value:>16.4g}" for value in values))
    if found["rebuilt"]:
        lines += ["", f"Rebuilt before: {found['rebuilt']['rebuilt']:,} rows ({found['rebuilt']['strategy']})."]
    return "\n".join(lines)


def _say(text: str) -> None:
    if PartialState().is_main_process:
        typer.echo(text)
