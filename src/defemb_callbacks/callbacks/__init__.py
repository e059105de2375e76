"""Trainer callbacks: rebuild, monitor, train new tokens only, measure senses, calibrate."""

from defemb_callbacks.callbacks.calibration import CalibrationCallback
from defemb_callbacks.callbacks.monitor import EmbeddingMonitorCallback
from defemb_callbacks.callbacks.rebuild import DefinitionEMBCallback
from defemb_callbacks.callbacks.senses import SenseMonitorCallback
from defemb_callbacks.callbacks.train_new_tokens import TrainNewTokensCallback

__all__ = [
    "CalibrationCallback",
    "DefinitionEMBCallback",
    "EmbeddingMonitorCallback",
    "SenseMonitorCallback",
    "TrainNewTokensCallback",
]
