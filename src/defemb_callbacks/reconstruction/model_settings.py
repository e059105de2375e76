"""Settings of a build for the model at hand: their defaults, and what they need of the model."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel, ReformerModel

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.reconstruction.backbone import reading_of, training_problem
from defemb_callbacks.reconstruction.prompts import family_of
from defemb_callbacks.reconstruction.reader import DefinitionReader
from defemb_callbacks.weights.rows import table_shape

# Maximum width of the default features: the Gram matrix of the ridge regression has this number of rows.
MAX_WIDTH = 8192

# Sets of features that a build compares by held-out R², the default first and the narrowest last.
# MiniLM: 0.206 and 0.203; SmolLM2-135M: 0.1305, 0.1333, 0.1317 and 0.1255.
ENCODER_FEATURES = (("layers", "bag"), ("mean", "bag"))
DECODER_FEATURES = (("last", "middle", "bag"), ("last", "layers", "bag"), ("layers", "bag"), ("last", "bag"))


def resolve_settings(config: DefinitionEMBConfig, model: PreTrainedModel) -> DefinitionEMBConfig:
    """Replace `None` in `features` and `definitions_per_token` with the defaults for a model, and open its reader.

    Encoders, also those of encoder-decoders, use 8 definitions; decoders, which cost more to read, use 2. The features
    are the first of `feature_candidates`; a build compares them. With `reader`, they are those of the reader.

    Args:
        config: Settings.
        model: Any model.

    Raises:
        ValueError: If the settings need hidden states of text that the model, or the reader, does not have.
        TypeError: If the model has no embedding table.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
        >>> config = resolve_settings(DefinitionEMBConfig(), model)
        >>> config.features, config.definitions_per_token
        (['last', 'middle', 'bag'], 2)
    """
    own = table_shape(model)[1]  # raises if the model has no table
    if config.reader is not None:
        reader = DefinitionReader.of(config.reader, model.device)
        config, model = replace(config, reader=reader), reader.model
    check_method(config, model)
    # MiniLM: held-out R² 0.193 with two definitions, 0.206 with eight. A decoder costs ten times as much to read.
    definitions = 2 if reading_of(model).reads and family_of(model) == "decoder" else 8
    return replace(
        config,
        features=config.features or feature_candidates(model, 0 if config.reader is None else own)[0],
        definitions_per_token=config.definitions_per_token or definitions,
    )


def feature_candidates(model: PreTrainedModel, further: int = 0) -> list[list[str]]:
    """Return the sets of features that suit a model, the default first: those of at most `MAX_WIDTH` numbers.

    Args:
        model: The model that reads the definitions.
        further: Width of further features, which are added to each set.
    """
    reading = reading_of(model)
    if not reading.reads:
        return [["bag"]]
    candidates = DECODER_FEATURES if family_of(model) == "decoder" else ENCODER_FEATURES
    widths = feature_widths(model) | {"layers": 3 * reading.width}
    fitting = [names for names in candidates if sum(widths[name] for name in names) + further <= MAX_WIDTH]
    return [list(names) for names in fitting or candidates[-1:]]


def feature_widths(model: PreTrainedModel) -> dict[str, int]:
    """Return the width of each feature of a model but "layers", which depends on the number of layers.

    Args:
        model: The model that reads the definitions.
    """
    states = dict.fromkeys(("mean", "middle", "first", "last", "mask"), reading_of(model).width)
    return states | {"bag": table_shape(model)[1]}


def check_method(config: DefinitionEMBConfig, model: PreTrainedModel) -> None:
    """Raise if the method or the features need states that a model does not have, before any work.

    Args:
        config: Settings.
        model: The model that reads the definitions.

    Raises:
        ValueError: If the model cannot read text by itself but should be trained or read, or if it does not have the
            states that the learned constructor is trained on.
    """
    reading, name = reading_of(model), type(model).__name__
    if config.method == "learned" and not reading.reads:
        raise ValueError(
            f"`method='learned'` trains a copy of the model to read definitions, but {name} cannot read text by "
            f"itself ({reading.problem}). Use `method='ridge'`, with `reader` if another encoder should read."
        )
    if config.method == "learned" and any(isinstance(module, ReformerModel) for module in model.modules()):
        raise ValueError(
            f"`method='learned'` cannot train {name}: its backward pass needs texts of its full training length. "
            "Use `method='ridge'`."
        )
    if config.method == "learned" and not reading.per_token:
        raise ValueError(
            f"`method='learned'` reads the state of one token, but {name} does not have one state per token. "
            "Use `method='ridge'`."
        )
    if config.method == "learned" and not reading.mixes:
        # MRA without its CUDA kernels, or layers that are initialized with zeros.
        raise ValueError(
            f"`method='learned'` reads the state of one token, but the states of {name} do not depend on other tokens. "
            "Use `method='ridge'`."
        )
    if config.method == "learned" and (problem := training_problem(model)):
        raise ValueError(
            f"`method='learned'` trains a copy of the model to read definitions, but {name} cannot be trained on text "
            f"alone ({problem}). Use `method='ridge'`, or pass the part of the model that reads text."
        )
    unread = [] if reading.reads else [feature for feature in config.features or [] if feature != "bag"]
    if unread:
        raise ValueError(
            f"{name} cannot read text by itself ({reading.problem}), so it has no feature {unread[0]!r}. Use "
            "`features=['bag']`, or let another encoder read with `reader`."
        )
