"""Calibrate sentence embeddings at the end of a Trainer run. Thin adapter around `sentence.calibrate`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from defemb_callbacks.attempt import Attempt
from defemb_callbacks.weights.sharding import is_sharded
from defemb_callbacks.weights.unwrapping import bare_model

# `sentence.modules` and `sentence.calibrate` need the extra `sentence`, so they are imported inside functions.
if TYPE_CHECKING:
    from defemb_callbacks.sentence.calibrate import CalibratedModel, Method
    from defemb_callbacks.sentence.modules import SentenceTransformer

logger = logging.getLogger(__name__)


class CalibrationCallback(TrainerCallback):
    """Calibrate the sentence embeddings of a trained model and save the result as a `SentenceTransformer`.

    Works with any Trainer: a `SentenceTransformerTrainer`, or a `Trainer` that fine-tunes an encoder with a task head,
    which is dropped. The trained model itself is not changed. If calibration is likely to harm, a warning is logged and
    nothing is saved.

    Args:
        texts: Unlabelled texts, similar to the texts that will be compared.
        method: See `calibrate`.
        folder: Name of the folder to save to, inside the `output_dir` of the run.
        pooling: See `calibrate`. `None` uses the mean of the last layer, or the modules of a `SentenceTransformer`.
        force: Calibrate even if it is likely to harm.
        **settings: See `calibrate`.

    Attributes:
        result: Result of `calibrate`; `None` until the end of training, or if calibration was refused.

    Raises:
        ImportError: If sentence-transformers is not installed.
        ValueError: At the start of training, if the model is sharded (FSDP, DeepSpeed) or no tokenizer was given.

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
        import defemb_callbacks.sentence.modules  # noqa: F401 - fail now, not at the end of training

        self.texts = texts
        self.method: Method = method
        self.folder = folder
        self.settings = {"pooling": pooling, "force": force, **settings}
        self.result: CalibratedModel | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fail early if calibration would be impossible at the end."""
        from defemb_callbacks.sentence.modules import SentenceTransformer

        # `accelerate launch` shards models without an entry in the arguments.
        if args.fsdp or args.deepspeed or any(map(is_sharded, kwargs["model"].parameters())):
            raise ValueError(
                "CalibrationCallback needs a complete model on each process, but this one is sharded (FSDP or "
                "DeepSpeed). Remove the callback and run `defemb calibrate` on the saved checkpoint."
            )
        if not isinstance(bare_model(kwargs["model"]), SentenceTransformer) and kwargs.get("processing_class") is None:
            raise ValueError("CalibrationCallback needs a tokenizer. Pass processing_class=tokenizer to the Trainer.")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Calibrate on every process, as fitting a flow requires; save on the main process."""
        from defemb_callbacks.reconstruction.constructor.training import isolated_training
        from defemb_callbacks.sentence.calibrate import CalibrationRefused, calibrate
        from defemb_callbacks.sentence.modules import SentenceTransformer

        model: Any = bare_model(kwargs["model"])
        # The model is trained: nothing may prevent the script from saving it.
        attempt = Attempt("The sentence embeddings were not calibrated; run `defemb calibrate` on the saved model")
        # Loading modules draws random numbers, which are those of the script.
        with attempt, isolated_training():
            encoder = model if isinstance(model, SentenceTransformer) else _encoder(model, kwargs["processing_class"])
            try:
                self.result = calibrate(encoder, self.texts, self.method, **self.settings)
            except CalibrationRefused as refusal:
                logger.warning("The sentence embeddings were not calibrated. %s", refusal)
                return
            if state.is_world_process_zero:
                self.result.model.save_pretrained(str(Path(args.output_dir or ".", self.folder)))


def _encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SentenceTransformer:
    """Copy the backbone of a trained model into a `SentenceTransformer` with mean pooling."""
    from defemb_callbacks.sentence.modules import Pooling, SentenceTransformer, Transformer

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
    return SentenceTransformer(modules=modules, device=str(model.device))
