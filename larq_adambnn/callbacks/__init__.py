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
    FirstStepTeacher,
    LinearDecay,
    ProgressiveWeights,
    RateSchedule,
    TwoStepSwitch,
    WeightDecaySchedule,
)

__all__ = [
    "ActivationSaturation",
    "AverageWeights",
    "CorrelationToInitialization",
    "FirstStepTeacher",
    "FlipFlopRatio",
    "Gradients",
    "KernelMagnitude",
    "LinearDecay",
    "ProgressiveWeights",
    "RateSchedule",
    "TwoStepSwitch",
    "UpdateSize",
    "WeightDecaySchedule",
]
