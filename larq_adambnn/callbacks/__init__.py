"""The recipe and the paper's measurements as Keras callbacks, for any `model.fit`."""

from larq_adambnn.callbacks.measurements import (
    ActivationSaturation,
    CorrelationToInitialization,
    FlipFlopRatio,
    Gradients,
    KernelMagnitude,
    UpdateSize,
)
from larq_adambnn.callbacks.recipe import (
    AverageWeights,
    LinearDecay,
    RateSchedule,
    TwoStepSwitch,
    WeightDecaySchedule,
)

__all__ = [
    "ActivationSaturation",
    "AverageWeights",
    "CorrelationToInitialization",
    "FlipFlopRatio",
    "Gradients",
    "KernelMagnitude",
    "LinearDecay",
    "RateSchedule",
    "TwoStepSwitch",
    "UpdateSize",
    "WeightDecaySchedule",
]
