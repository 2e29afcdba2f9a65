"""From a trained run to a .tflite for 64-bit ARM, with the proof that it is the same network."""

from larq_adambnn.export.check import check
from larq_adambnn.export.convert import convert
from larq_adambnn.export.fold import fold
from larq_adambnn.export.info import describe
from larq_adambnn.export.interpreter import predict
from larq_adambnn.export.run import check_installed, export_run, main
from larq_adambnn.export.tflite import operators

__all__ = [
    "check",
    "check_installed",
    "convert",
    "describe",
    "export_run",
    "fold",
    "main",
    "operators",
    "predict",
]
