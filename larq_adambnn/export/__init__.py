"""From a trained network to a .tflite for 64-bit ARM, with the proof that it is the same."""

from larq_adambnn.export.check import Check, check
from larq_adambnn.export.convert import convert
from larq_adambnn.export.description import Description, describe
from larq_adambnn.export.exporter import Exported, FineTuning, export, is_installed, refuse_float
from larq_adambnn.export.fold import fold
from larq_adambnn.export.interpreter import predict
from larq_adambnn.export.tflite import operators

__all__ = [
    "Check",
    "Description",
    "Exported",
    "FineTuning",
    "check",
    "convert",
    "describe",
    "export",
    "fold",
    "is_installed",
    "operators",
    "predict",
    "refuse_float",
]
