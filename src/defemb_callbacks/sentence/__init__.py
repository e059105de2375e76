"""Sentence embeddings of a frozen encoder, calibrated into an isotropic space without labels."""

from defemb_callbacks.sentence.pooling import encode_texts, masked_mean, pool, pooled_layers

__all__ = ["encode_texts", "masked_mean", "pool", "pooled_layers"]
