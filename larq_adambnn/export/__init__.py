"""From a trained run to a .tflite for 64-bit ARM, with the proof that it is the same network."""

from larq_adambnn.export.check import check, predict
from larq_adambnn.export.convert import convert
from larq_adambnn.export.run import export_run, main
from larq_adambnn.export.tflite import operators

__all__ = ["check", "convert", "export_run", "main", "operators", "predict"]
