"""Training and saving, as the example scripts share them."""

from __future__ import annotations

from huggingface_hub import HfApi
from transformers import Trainer

from defemb_callbacks import DefinitionEMBCallback, update_model_card


def train_and_save(trainer: Trainer, callback: DefinitionEMBCallback) -> dict[str, float]:
    """Train as the Trainer's arguments say; save metrics, state and, unless `save_strategy="no"`, the model.

    What was rebuilt goes into the model card, on the hub too where the arguments push to it.
    """
    args = trainer.args
    metrics = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    if args.save_strategy != "no":
        trainer.save_model()  # pushes, too, and writes a card of its own
        if callback.report and trainer.is_world_process_zero():
            card = update_model_card(args.output_dir, callback.report)
            if args.push_to_hub:
                api = HfApi(token=args.hub_token)
                api.upload_file(path_or_fileobj=card, path_in_repo=card.name, repo_id=trainer.hub_model_id)
    return metrics
