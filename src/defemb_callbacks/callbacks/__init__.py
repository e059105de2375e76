"""Trainer callbacks: rebuild, monitor, measure senses, calibrate."""

from defemb_callbacks.callbacks.calibration import CalibrationCallback
from defemb_callbacks.callbacks.monitor import EmbeddingMonitorCallback
from defemb_callbacks.callbacks.rebuild import DefinitionEMBCallback
from defemb_callbacks.callbacks.senses import SenseMonitorCallback

__all__ = ["CalibrationCallback", "DefinitionEMBCallback", "EmbeddingMonitorCallback", "SenseMonitorCallback"]
