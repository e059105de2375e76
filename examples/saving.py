"""Train and save. Shared by the example scripts."""

from __future__ import annotations

from huggingface_hub import HfApi
from transformers import Trainer

from defemb_callbacks import DefinitionEMBCallback, update_model_card


def train_and_save(trainer: Trainer, callback: DefinitionEMBCallback) -> dict[str, float]:
    """Train and save metrics, state and, unless `save_strategy="no"`, the model.

    The rebuild is described in the model card, also on the Hub if `push_to_hub` is set.
    """
    args = trainer.args
    metrics = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    if args.save_strategy != "no":
        trainer.save_model()  # also pushes to the Hub and writes a model card
        if callback.report and trainer.is_world_process_zero():
            card = update_model_card(args.output_dir, callback.report)
            if args.push_to_hub:
                api = HfApi(token=args.hub_token)
                api.upload_file(path_or_fileobj=card, path_in_repo=card.name, repo_id=trainer.hub_model_id)
    return metrics
