"""Watching the embeddings of a model that is trained."""

from defemb_callbacks.monitoring.callback import EmbeddingMonitorCallback
from defemb_callbacks.monitoring.monitor import EmbeddingMonitor, measure_embeddings

__all__ = ["EmbeddingMonitor", "EmbeddingMonitorCallback", "measure_embeddings"]
