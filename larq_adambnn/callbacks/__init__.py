"""The recipe and the paper's measurements as Keras callbacks, for any `model.fit`."""

from larq_adambnn.callbacks.measurements import CorrelationToInitialization, FlipFlopRatio
from larq_adambnn.callbacks.recipe import (
    AverageWeights,
    LinearDecay,
    TwoStepSwitch,
    WeightDecaySchedule,
)

__all__ = [
    "AverageWeights",
    "CorrelationToInitialization",
    "FlipFlopRatio",
    "LinearDecay",
    "TwoStepSwitch",
    "WeightDecaySchedule",
]
