"""A calibration at the end of a Trainer run: this decides when, everything else happens in `calibrate`.

Not imported by `defemb_callbacks.sentence`, as sentence-transformers is an extra.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from defemb_callbacks.sentence.calibrate import CalibratedModel, CalibrationRefused, Method, calibrate
from defemb_callbacks.sentence.modules import Pooling, SentenceTransformer, Transformer
from defemb_callbacks.weights.rows import bare_model

logger = logging.getLogger(__name__)


class CalibrationCallback(TrainerCallback):
    """Calibrates the sentence embeddings of a model once it is trained, and saves it as a `SentenceTransformer`.

    For any Trainer: a `SentenceTransformerTrainer`, or one that has fine-tuned an encoder with any head, which is left
    out. The trained model itself is not changed. Where calibration is expected to harm, that is logged as a warning and
    nothing is saved.

    Args:
        texts: like those that will be compared; no labels.
        method: see `calibrate`.
        folder: where to save, within the `output_dir` of the run.
        pooling: see `calibrate`; `None` is the mean of the last layer, or the modules that a `SentenceTransformer` has.
        force: calibrate even where it is expected to harm.
        **settings: see `calibrate`.

    Attributes:
        result: what `calibrate` gave; `None` before the end, and where nothing was done.

    Raises:
        ValueError: at train start, a model that is spread over processes (FSDP, DeepSpeed), or no tokenizer.

    Example:
        >>> callback = CalibrationCallback(["A plane is taking off.", "Two dogs."], components=256)
        >>> # Trainer(model, args, train_dataset=…, processing_class=tokenizer, callbacks=[callback])
    """

    def __init__(
        self,
        texts: Sequence[str],
        method: Method = "whitening",
        *,
        folder: str = "calibrated",
        pooling: str | None = None,
        force: bool = False,
        **settings: Any,
    ) -> None:
        self.texts = texts
        self.method: Method = method
        self.folder = folder
        self.settings = {"pooling": pooling, "force": force, **settings}
        self.result: CalibratedModel | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say at once what could not be done at the end."""
        if args.fsdp or args.deepspeed:
            raise ValueError(
                "CalibrationCallback encodes texts with a whole model, and this one is spread over processes: leave "
                "it out, and run `defemb calibrate` on the checkpoint that the run saves."
            )
        if not isinstance(bare_model(kwargs["model"]), SentenceTransformer) and kwargs.get("processing_class") is None:
            raise ValueError("CalibrationCallback needs a tokenizer: give the Trainer processing_class=tokenizer.")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Calibrate on every process, which a flow's own training needs; save on one."""
        model: Any = bare_model(kwargs["model"])
        encoder = model if isinstance(model, SentenceTransformer) else _encoder(model, kwargs["processing_class"])
        try:
            self.result = calibrate(encoder, self.texts, self.method, **self.settings)
        except CalibrationRefused as refusal:
            logger.warning("The sentence embeddings were not calibrated. %s", refusal)
            return
        if state.is_world_process_zero:
            self.result.model.save_pretrained(str(Path(args.output_dir or ".", self.folder)))


def _encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SentenceTransformer:
    """A copy of a trained model's backbone with mean pooling."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
    return SentenceTransformer(modules=modules, device=str(model.device))
