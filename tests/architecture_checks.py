"""What is tested for each architecture, and what counts as a refusal."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

import defemb_callbacks
import tiny
from architectures import Architecture, NoTinyModel, forget_model
from defemb_callbacks import (
    DefinitionEMBCallback,
    DefinitionEMBConfig,
    build_definition_embeddings,
    define_new_tokens,
    measure_embeddings,
)
from defemb_callbacks.senses import build_sense_dictionary, with_senses, without_senses
from defemb_callbacks.weights.rows import embedding_layer, read_table, tables_of

PACKAGE = str(Path(defemb_callbacks.__file__).parent)
TERMS = {"lynx": "a wild cat with long ears", "tokamak": "a machine for hot gas"}
# Most time goes into the number of batches, which have one length each, so texts have one length. Byte-level BPE splits
# the first word, which it knows only behind a space: texts begin with a letter, and words have as many pieces.
TEXTS = [f"a {text}" for text in tiny.random_texts(540) if text.count(" ") == 5]
WORDS = [word for word in tiny.tiny_glossary() if len(tiny.byte_bpe_tokenizer()(word)["input_ids"]) == 5]
GLOSSARY = dict(zip(WORDS[:20], TEXTS, strict=False))
# Rows of which so many differ, as a share of the glossary's words: those of synonyms may be equal.
DISTINCT = 0.9

# Families that start from tokens drawn from the vocabulary, so their output changes when it grows.
DRAWN_FROM_VOCABULARY = {"diffusion_gemma"}

# Results of a check. A model is refused by an error that this package raises, whose message is listed below.
WORKS, REFUSED, FAILS, UNKNOWN = "yes", "no", "fails", "unknown"
NOT_RUN = "–"

# Expected refusals: part of the message, and what it means in `docs/architectures.md`.
REFUSALS: dict[str, str] = {
    r"Pass the part that reads text": "a joint model of text and another modality: pass its text model",
    r"Load its text model instead": "a joint model of text and another modality: load its text model alone",
    r"Pass a model that reads tokens through one embedding table": "has no table with a row for each token",
    r"vocabulary has no words": "its tokens are bytes or characters, so none is a word with a definition",
    r"the input table has \d+\. New tokens need a row in both": "some input rows have no output row",
    r"tables cannot grow|tables of \w+ cannot grow": "transformers cannot resize its tables",
    r"does not depend on the hidden states|cannot be run on text alone": "its output needs more than text, or does not "
    "depend on these states",
    r"cannot be trained on text alone": "it can only be trained with images, audio or their masks",
    r"cannot read text by itself": "it cannot read a text without images, audio or boxes",
    r"backward pass needs texts of its full training length": "it can only be trained on texts of one length",
    r"do not depend on other tokens": "its attention needs a GPU",
    r"does not (return|have) one (hidden )?state per token": "its hidden states are those of groups of tokens",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a check, and the error's message."""

    result: str
    text: str = ""


class OneStep(Trainer):
    """A Trainer for any model: its loss is that of the model's head on text if it has one."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Loss of a batch; of its embeddings alone if the model needs more than text."""
        ids = inputs["input_ids"]
        output = run(model, ids, labels=ids) or run(model, ids)
        loss = getattr(output, "loss", None)
        if loss is None and output is not None:
            loss = output[0].float().pow(2).mean()
        if loss is None:
            loss = embedding_layer(model)(ids).float().pow(2).mean()
        if not loss.requires_grad:  # Idefics freezes its table
            loss = sum(weight.float().pow(2).mean() for weight in model.parameters() if weight.requires_grad)
        return loss


def run(model: PreTrainedModel, ids: Tensor, **inputs: Any) -> Any:
    """The model's output for a text; `None` if it needs more than text."""
    if model.config.is_encoder_decoder and not inputs:
        inputs["decoder_input_ids"] = ids
    try:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True, **inputs)
    except Exception:
        return None


def first_output(model: PreTrainedModel, ids: Tensor, seed: int = 0) -> Tensor | None:
    """Logits, or states, in eval mode; what is drawn at random is the same each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = run(model.eval(), ids)
    return None if output is None or not isinstance(output[0], Tensor) else output[0].clone()


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str = "the old dog saw a large animal") -> Tensor:
    """Token ids of a text that ends with the token that ends one, (1, length)."""
    ids = tokenizer(text)["input_ids"]
    end = tokenizer.eos_token_id
    return torch.tensor([[*(index for index in ids if index != end), *([] if end is None else [end])]])


def rebuild(case: Architecture, folder: Path) -> None:
    """Build, apply, metrics, one step of a Trainer with the callback, save and load."""
    tokenizer = case.shared_tokenizer()
    model = case.model()
    settings = {"cache_dir": str(folder.parent / "cache")}
    config = DefinitionEMBConfig(strategy="replace", rescale=False, **settings)
    with unchanged(model):
        built = build_definition_embeddings(model, tokenizer, GLOSSARY, config)
    check_distinct(built.rows)
    expected = read_table(model)
    expected[built.ids] = built.rows
    built.apply(model, config)
    assert torch.equal(read_table(model), expected)
    metrics = measure_embeddings(model, tokenizer, GLOSSARY)
    assert all(map(math.isfinite, metrics.values()))

    model = case.model()
    callback = DefinitionEMBCallback(GLOSSARY, plots=False, monitor_steps=1, **settings)
    batch = tokenizer(TEXTS[:8], padding="max_length", max_length=16, truncation=True)
    rows = [{name: batch[name][row] for name in ("input_ids", "attention_mask")} for row in range(8)]
    arguments = tiny.training_args(folder / "run", max_steps=1, remove_unused_columns=False)
    trainer = OneStep(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[callback])
    trainer.train()
    assert callback.report is not None
    assert any("defemb/isotropy/all" in row for row in trainer.state.log_history)
    check_reloads(trainer.model, folder / "model", text_ids(tokenizer))


def learned(case: Architecture, folder: Path) -> None:
    """Build with a constructor that is trained for one step."""
    tokenizer = case.shared_tokenizer()
    model = case.shared_model()
    training = {"max_steps": 1, "disable_tqdm": True, "learning_rate": 1e-3, "warmup_steps": 0}
    training |= {"eval_strategy": "no", "save_strategy": "no"}
    config = DefinitionEMBConfig(
        method="learned",
        constructor={"tokens_per_batch": 256, "patience": None, "training": training},
        definitions_per_token=1,
        cache_dir=str(folder.parent / "cache"),
    )
    with unchanged(model):
        built = build_definition_embeddings(model, tokenizer, GLOSSARY, config)
    check_distinct(built.rows)


def new_tokens(case: Architecture, folder: Path) -> None:
    """Define two terms: other rows and the output for other text stay the same, and the checkpoint can be loaded."""
    tokenizer = case.tokenizer()
    model = case.model()
    ids, size = text_ids(tokenizer), len(tokenizer)
    old, logits = read_table(model), first_output(model, ids)
    config = DefinitionEMBConfig(precision="float32", cache_dir=str(folder.parent / "cache"))  # "auto" is tried above
    with unchanged(model, only_if_it_fails=True):
        report = define_new_tokens(model, tokenizer, TERMS, GLOSSARY, config)
    assert len(report.terms) == len(TERMS), report.skipped
    assert all(term.is_new for term in report.terms)
    assert torch.equal(read_table(model)[:size], old[:size])  # rows after the last token may be used
    assert tokenizer("the lynx is")["input_ids"] != tokenizer("the cat is")["input_ids"]
    assert max(tokenizer("the lynx is")["input_ids"]) >= size
    now = first_output(model, ids)
    assert (now is None) == (logits is None)
    if now is not None and logits is not None and case.family not in DRAWN_FROM_VOCABULARY:
        torch.testing.assert_close(now[..., :size], logits[..., :size], rtol=1e-4, atol=1e-4)
    check_reloads(model, folder / "model", ids)


def senses(case: Architecture, folder: Path) -> None:
    """Replace states with senses: the output changes, and is restored."""
    tokenizer = case.shared_tokenizer()
    model = case.shared_model()
    # Another text: states of rare words in the sampled texts are senses themselves.
    ids = text_ids(tokenizer, " ".join(reversed(TEXTS[0].split())))
    before = first_output(model, ids)
    with unchanged(model):
        dictionary = build_sense_dictionary(model, tokenizer, TEXTS, senses=3, samples=30)
    with unchanged(model, only_if_it_fails=True):
        with_senses(model, dictionary)
    after = first_output(model, ids)
    without_senses(model)
    assert before is not None
    assert after is not None
    assert (after - before).abs().max() > 1e-4
    again = first_output(model, ids)
    assert again is not None
    torch.testing.assert_close(again, before)


CHECKS: dict[str, Callable[[Architecture, Path], None]] = {
    "rebuild": rebuild,
    "learned": learned,
    "new tokens": new_tokens,
    "senses": senses,
}


def check(case: Architecture, folder: Path) -> dict[str, Outcome]:
    """Run all checks of an architecture with fresh models; if it is refused, of the part that the error names."""
    found = _outcomes(case, folder / "whole")
    named = re.search(r"Pass the part that reads text: `model\.([\w.]+)`", found["rebuild"].text)
    if found["rebuild"].result != REFUSED or named is None:
        return found
    part = _outcomes(replace(case, part=named[1]), folder / "part")
    return {name: replace(outcome, text=f"`{named[1]}` {outcome.text}") for name, outcome in part.items()}


def _outcomes(case: Architecture, folder: Path) -> dict[str, Outcome]:
    return {name: _outcome(function, case, folder / name.replace(" ", "_")) for name, function in CHECKS.items()}


def _outcome(function: Callable[[Architecture, Path], None], case: Architecture, folder: Path) -> Outcome:
    try:
        function(case, folder)
    except NoTinyModel as error:
        return Outcome(UNKNOWN, str(error))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        text = " ".join(str(error).split())
        by_package = frames[-1].filename.startswith(PACKAGE) and isinstance(error, (ValueError, TypeError))
        if by_package and any(re.search(pattern, text) for pattern in REFUSALS):
            return Outcome(REFUSED, text)
        forget_model()  # it may be damaged
        return Outcome(FAILS, f"{type(error).__name__} in {Path(frames[-1].filename).name}: {text[:500]}")
    return Outcome(WORKS)


class unchanged:
    """Context manager that checks that a model is as it was, also if the block raises."""

    def __init__(self, model: PreTrainedModel, *, only_if_it_fails: bool = False) -> None:
        self.model, self.only_if_it_fails = model, only_if_it_fails

    def __enter__(self) -> None:
        self.state = {name: tensor.clone() for name, tensor in self._tensors().items()}
        self.traits = self._traits()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and self.only_if_it_fails:
            return
        now = self._tensors()
        assert now.keys() == self.state.keys(), "the model has other weights"
        damaged = [name for name, tensor in now.items() if not torch.equal(tensor, self.state[name])]
        assert not damaged, f"the weights {damaged[:3]} were changed"
        found = self._traits()
        # BigBird replaces its attention layers for short texts.
        same = found["modes"].keys() & self.traits["modes"].keys()
        found["modes"], self.traits["modes"] = ({n: t["modes"][n] for n in same} for t in (found, self.traits))
        for name, value in found.items():
            assert value == self.traits[name], f"the {name} of the model was changed"

    def _tensors(self) -> dict[str, Tensor]:
        return {**self.model.state_dict(), **dict(self.model.named_buffers())}  # also those that are not saved

    def _traits(self) -> dict[str, Any]:
        modules = dict(self.model.named_modules())
        return {
            "config": self.model.config.to_dict(),  # a deep copy
            "class": [type(module) for module in modules.values() if isinstance(module, PreTrainedModel)],
            "modes": {name: module.training for name, module in modules.items()},
            # transformers leaves its own, to collect hidden states.
            "hooks": [
                hook for module in modules.values() for hook in module._forward_hooks.values() if of_package(hook)
            ],
        }


def of_package(function: Any) -> bool:
    """Whether a function was defined by the package."""
    return getattr(function, "__module__", "").startswith(defemb_callbacks.__name__)


def check_distinct(rows: Tensor) -> None:
    """Check that few rows are equal: they are if definitions are not read."""
    assert torch.isfinite(rows).all()
    distinct = len({tuple(row) for row in rows.tolist()})
    assert distinct > DISTINCT * len(GLOSSARY), f"only {distinct} of {len(rows)} rows are different"


def check_reloads(model: Any, folder: Path, ids: Tensor) -> None:
    """Check that a saved model has the same tables and the same output."""
    model.save_pretrained(folder)
    # The config as AutoModel loads it: ShieldGemma 2 has a config of its own, but Gemma 3's class.
    loaded = type(model).from_pretrained(folder, config=type(model.config).from_pretrained(folder))
    padding: set[int] = set()
    for table in tables_of(model):
        saved, expected = read_table(loaded, table), read_table(model, table)
        differ = set((saved != expected).any(dim=1).nonzero().flatten().tolist())
        # Funnel zeroes the padding row when it is loaded.
        padding |= differ & {getattr(embedding_layer(model, table), "padding_idx", None)}
        assert differ <= padding, f"the {table} table was not saved"
    before, after = first_output(model, ids), first_output(loaded, ids)
    if before is not None and not padding:
        assert after is not None
        torch.testing.assert_close(after, before)


def documented(path: Path) -> Mapping[str, dict[str, str]]:
    """Read the table of `docs/architectures.md`: the result of each check by architecture, if it is known."""
    if not path.is_file():
        return {}
    rows = [line.strip("| ").split(" | ") for line in path.read_text(encoding="utf-8").splitlines() if "| `" in line]
    return {
        f"{family}-{name.strip('`')}": {
            check: cell.split()[0] for check, cell in zip(CHECKS, cells, strict=True) if cell != NOT_RUN
        }
        for family, name, *cells in rows
    }
