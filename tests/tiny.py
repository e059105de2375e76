"""Tiny but real tokenizers, models and data, built in memory: no download, no file, identical on every run.

The tokenizers share the same ordinary English words, so one test can cover every family. They differ as real ones do:
in the marker of a word start (`##` for continuations, `Ġ`, `▁`), case, the unknown token, and the position of special
tokens. As in real vocabularies, tokens are roughly ordered by frequency.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    TrainingArguments,
)

MAX_LENGTH = 128
ModelT = TypeVar("ModelT", bound=PreTrainedModel)

# Words that are one token in every family, most frequent first. They include inflected forms along with their lemmas.
WORDS: tuple[str, ...] = tuple(
    """
    the of and in to a is was for on as with that by it from at his an are were which this be he or had not one their
    has its but have they who two been first all her she more than can into other some time when used no may also
    years after new only up out people about made there many will so most what would year them over city him between
    world state if part three where such well during long water called small large both high house same war each old
    early life any number found name before being then book day family house's second work works great through because
    however under since several music home end became place country way left very four school white children black
    child town line man woman men women body land king queen church river road power houses light air sea head hand
    young night food letter word words language animal bird birds fish horse dog dogs cat cats tree trees plant plants
    flower fruit apple bread milk sugar salt gold iron silver stone glass paper wood cloth green red blue yellow dark
    bright cold hot warm dry wet run ran running runs walk walked walking see saw seen give gave given write wrote
    written read reading sing sang song teacher student doctor nurse soldier farmer sailor judge thief poet baker
    table chair door window wall roof floor bridge tower ship boat train car wheel engine hammer knife clock lamp
    spoon bottle basket rope mountain hill valley desert forest island lake ocean beach storm rain snow wind cloud
    star moon sun planet summer winter spring autumn morning evening month week hour good better best bad worse worst
    big bigger biggest happy sad quick quickly slow slowly quiet loud brave love fear anger joy hope dream truth
    justice peace money price market trade doctor's goose geese mouse mice wolf wolves sheep ox oxen leaf leaves tooth
    teeth foot feet knives lion tiger bear fox rabbit owl eagle crow duck frog snake spider ant bee honey violin piano
    drum flute trumpet dance opera copper zinc oxygen carbon acid virus fever surgeon lawyer castle prison temple
    harbor lantern candle needle pillow blanket
    """.split()  # noqa: SIM905 - a list of 371 quoted words would be harder to read
)
NAMES: tuple[str, ...] = ("London", "Paris", "Mary", "John", "Monday", "March")
NUMBERS: tuple[str, ...] = ("1", "2", "10", "100", "1990", "2000")
PUNCTUATION: tuple[str, ...] = tuple(".,;:!?'\"()-")
SUFFIXES: tuple[str, ...] = ("s", "ed", "ing", "er", "ly", "ness", "tion")
LETTERS: tuple[str, ...] = tuple("abcdefghijklmnopqrstuvwxyz0123456789")

_GLOSSES = """
house: a building in which a family lives
water: the clear liquid that falls as rain and fills the sea
city: a large and important town
war: fighting between two countries or states
book: sheets of paper with written words, bound together
music: sounds made by singing or playing instruments
school: a place where children are taught
child: a young human being
king: a man who rules a country
queen: a woman who rules a country
river: a large stream of water that runs to the sea
road: a way for cars and people to go from town to town
animal: a living thing that can feel and move
bird: an animal with wings and feathers that lays eggs
fish: an animal that lives in water and has fins
horse: a large animal that people ride
dog: an animal kept at home that barks
cat: a small animal kept at home that catches mice
tree: a tall plant of wood
flower: the bright part of a plant
fruit: the part of a tree that holds its seeds and is good to eat
apple: a round red or green fruit
bread: a food made by the baker from flour and water
milk: the white food that a mother gives her young
gold: a yellow metal of high price
iron: a heavy grey metal used for tools
silver: a white metal used for money
green: of the color of leaves
red: of the color of blood
cold: having little heat
hot: having much heat
run: to go quickly on foot
walk: to go slowly on foot
write: to put words on paper
sing: to make music with the voice
teacher: a person who teaches students in a school
doctor: a person who treats the sick
soldier: a person who fights in a war
sailor: a person who works on a ship
table: a flat board on legs
chair: a seat for one person
bridge: a road over a river
ship: a large boat for the sea
hammer: a tool for driving nails
knife: a tool with a sharp edge for cutting
clock: an instrument that shows the hour
mountain: very high land
island: land with water on every side
storm: bad weather with wind and rain
moon: the bright body that goes round the earth
winter: the cold part of the year
good: of the right or wanted kind
big: large
happy: full of joy
quickly: in little time
goose: a large bird with a long neck
mouse: a small animal with a long tail
wolf: a wild animal like a large dog
leaf: a flat green part of a plant
tooth: one of the hard white parts in the mouth
lion: a large wild cat
owl: a bird of the night
violin: an instrument of wood with four strings
copper: a red metal
fever: a heat of the body that comes with sickness
castle: a large house with strong walls
"""


def tiny_glossary() -> dict[str, str]:
    """Glosses of 66 of `WORDS`: lemmas only, so that "geese" has a definition only through "goose"."""
    return dict(line.split(": ", 1) for line in _GLOSSES.strip().splitlines())


def wordpiece_tokenizer(*, mask: bool = True) -> PreTrainedTokenizerFast:
    """Like BERT's: lower-cased, `##` marks word continuations, `[unusedN]` entries, and an `[UNK]` that occurs."""
    tokens = [
        "[PAD]",
        *(f"[unused{i}]" for i in range(4)),
        *("[UNK]", "[CLS]", "[SEP]"),
        *(["[MASK]"] if mask else []),
        *PUNCTUATION,
        *LETTERS,
        *(f"##{letter}" for letter in LETTERS),
        # BERT's pre-tokenizer splits at the apostrophe, so "house's" cannot be a token; names are lower-cased.
        *(word for word in WORDS if "'" not in word),
        *(f"##{suffix}" for suffix in SUFFIXES),
        *(name.lower() for name in NAMES),
        *NUMBERS,
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_LENGTH,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]" if mask else None,
    )


def byte_bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Like RoBERTa's: cased, `Ġ` marks word starts, every byte is known, `<mask>` includes the space before it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=5_000,  # more than there are merges, so that each word becomes one token
        min_frequency=1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    entries = [*WORDS, *NAMES, *NUMBERS, *(word.capitalize() for word in WORDS[:40])]
    # Counts follow Zipf's law, which orders the merges, and so the ids, by frequency. Line starts have no marker.
    corpus = [f" {word}" for i, word in enumerate(entries) for _ in range(1 + 600 // (i + 1))]
    corpus += [*(word.capitalize() for word in WORDS[:40]), *PUNCTUATION]
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_LENGTH,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Like T5's: cased, `▁` marks word starts, `</s>` ends a text, `<extra_id_3>` … `<extra_id_0>` come last."""
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(4))]
    return _unigram(["<pad>", "</s>", "<unk>"], "$A </s>", "$A </s> $B </s>", sentinels, eos_token="</s>")


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Like Gemma's: `<bos>` starts a text, nothing ends it, and `<mask>` is not registered as the mask token."""
    specials = ["<pad>", "<eos>", "<unk>", "<bos>"]
    tokens = {"eos_token": "<eos>", "bos_token": "<bos>"}
    return _unigram(specials, "<bos> $A", "<bos> $A <bos> $B", ["<mask>"], **tokens)


def _unigram(specials: list[str], single: str, pair: str, last: list[str], **tokens: str) -> PreTrainedTokenizerFast:
    words = [*WORDS, *NAMES, *NUMBERS, *(word.capitalize() for word in WORDS[:40])]
    pieces = dict.fromkeys([f"▁{word}" for word in words] + [*SUFFIXES, *PUNCTUATION])
    letters = dict.fromkeys(["▁", *LETTERS, *(letter.upper() for letter in LETTERS)])
    scores = [(piece, -4.0 - 0.01 * i) for i, piece in enumerate(pieces)]
    # Letters are so unlikely that a word is never spelled out.
    scores += [(letter, -20.0) for letter in letters if letter not in pieces]
    backend = Tokenizer(models.Unigram([*((special, 0.0) for special in specials), *scores], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(special, i) for i, special in enumerate(specials)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_LENGTH,
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=last,
        **tokens,
    )


def tiny_bert(
    tokenizer: PreTrainedTokenizerBase, model_class: type[PreTrainedModel] = BertModel, **config: Any
) -> PreTrainedModel:
    """A two-layer BERT for `tokenizer`, of any `Bert*` class: `tiny_bert(tokenizer, BertForMaskedLM)`."""
    return _tiny_encoder(BertConfig, model_class, tokenizer, MAX_LENGTH, config)


def tiny_roberta(
    tokenizer: PreTrainedTokenizerBase, model_class: type[PreTrainedModel] = RobertaModel, **config: Any
) -> PreTrainedModel:
    """A two-layer RoBERTa for `tokenizer`, of any `Roberta*` class."""
    # RoBERTa counts positions from pad_token_id + 1.
    return _tiny_encoder(RobertaConfig, model_class, tokenizer, MAX_LENGTH + tokenizer.pad_token_id + 1, config)


def _tiny_encoder(
    config_class: type[BertConfig] | type[RobertaConfig],
    model_class: type[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    positions: int,
    overrides: dict[str, Any],
) -> PreTrainedModel:
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": positions,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        # With the usual 0.02, layers of this width are almost linear, and all definitions get nearly the same state.
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config_class(**settings | overrides)).eval()


_LAYER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
_LAYER |= {"max_position_embeddings": MAX_LENGTH, "initializer_range": 0.2}
_GROUPED = {**_LAYER, "num_key_value_heads": 2, "head_dim": 8}
_DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
_BOTH_SIDES = {
    f"{side}_{name}": number
    for side in ("encoder", "decoder")
    for name, number in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 64))
}
# Settings of each model type for one layer of width 32 with 4 heads, and weights large enough for states to differ.
_SIZES: dict[str, dict[str, Any]] = {
    "bert": _LAYER,
    "deberta-v2": _LAYER | _DISENTANGLED,
    "electra": {**_LAYER, "embedding_size": 16},
    "xlnet": {"d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64, "initializer_range": 0.2},
    "bart": {"d_model": 32, "max_position_embeddings": MAX_LENGTH, "init_std": 0.2, **_BOTH_SIDES},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": MAX_LENGTH, "initializer_range": 0.2},
    "llama": {**_GROUPED, "tie_word_embeddings": False},
    "gemma": _GROUPED,
    "gemma3_text": _GROUPED,
    "qwen2": {**_LAYER, "num_key_value_heads": 2, "tie_word_embeddings": True},
}


def tiny_model(model_class: type[ModelT], tokenizer: PreTrainedTokenizerBase, **config: Any) -> ModelT:
    """A one-layer model of width 32 for `tokenizer`, of any other family: `tiny_model(T5Model, tokenizer)`."""
    config_class = model_class.config_class
    settings: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    settings["vocab_size"] = len(tokenizer)
    if config_class.model_type == "t5gemma":
        part = {**_GROUPED, **settings, "sliding_window": 16}
        settings |= {"encoder": part, "decoder": dict(part)}
    else:
        settings |= _SIZES[config_class.model_type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config_class(**settings | config)).eval()


_LIVING = ("dog", "cat", "horse", "bird", "wolf", "lion", "owl", "goose")
_THINGS = ("table", "chair", "hammer", "knife", "clock", "ship", "bridge", "book")
_FRAMES = (
    "the {} was in the house .",
    "a {} is on the road",
    "he saw the old {}",
    "people found a {} in the city",
    "the {}",
)


def random_texts(count: int) -> list[str]:
    """Texts of 4 to 12 random words."""
    words = [word for word in WORDS if "'" not in word][:40]
    return [" ".join(random.Random(seed).choices(words, k=4 + seed % 9)) for seed in range(count)]


def tiny_dataset(tokenizer: PreTrainedTokenizerBase, n: int = 64) -> Dataset:
    """`n` short sentences, half about an animal (label 1), half about an object (label 0), padded to one length."""
    shuffled = random.Random(0)
    labels = [i % 2 for i in range(n)]
    sentences = [shuffled.choice(_FRAMES).format(shuffled.choice(_LIVING if label else _THINGS)) for label in labels]
    encoded = tokenizer(sentences, padding="max_length", max_length=16, truncation=True)
    return Dataset.from_dict(
        {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}
    )


def training_args(output_dir: str | Path, **overrides: Any) -> TrainingArguments:
    """Eight quick CPU steps over `tiny_dataset`, each one logged; no reporter, no progress bar, no checkpoints."""
    settings = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,  # warns without an accelerator
    }
    return TrainingArguments(output_dir=str(output_dir), **settings | overrides)
