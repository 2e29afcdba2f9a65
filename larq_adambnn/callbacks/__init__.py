"""The recipe and the paper's measurements as Keras callbacks, for any `model.fit`."""

from larq_adambnn.callbacks.average import AverageWeights
from larq_adambnn.callbacks.measurements import (
    ActivationSaturation,
    CorrelationToInitialization,
    FlipFlopRatio,
    Gradients,
    KernelMagnitude,
    UpdateSize,
)
from larq_adambnn.callbacks.schedules import (
    LinearDecay,
    ProgressiveWeights,
    RateSchedule,
    WeightDecaySchedule,
)
from larq_adambnn.callbacks.switch import FirstStepTeacher, TwoStepSwitch

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
