"""Unsupervised calibration of sentence embeddings: whitening, normalizing flows, pooling."""

from defemb_callbacks.sentence.advice import CalibrationAdvice, calibration_advice, uniformity
from defemb_callbacks.sentence.fit import fit_flow, fit_flow_on_texts
from defemb_callbacks.sentence.flow import EmbeddingFlow, EmbeddingFlowConfig
from defemb_callbacks.sentence.linear import LinearCalibration
from defemb_callbacks.sentence.pooling import encode_texts, masked_mean, pool, pooled_layers
from defemb_callbacks.sentence.whitening import WhiteningFitter, fit_whitening

__all__ = [
    "CalibrationAdvice",
    "EmbeddingFlow",
    "EmbeddingFlowConfig",
    "LinearCalibration",
    "WhiteningFitter",
    "calibration_advice",
    "encode_texts",
    "fit_flow",
    "fit_flow_on_texts",
    "fit_whitening",
    "masked_mean",
    "pool",
    "pooled_layers",
    "uniformity",
]
