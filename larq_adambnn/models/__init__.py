"""Networks: tf.keras.Model from images (B, H, W, C) to logits (B, num_classes)."""

import tensorflow as tf

from larq_adambnn.config import Config
from larq_adambnn.models.complexity import Complexity, complexity, summary
from larq_adambnn.models.reactnet import reactnet18, reactnet_a
from larq_adambnn.models.resnet import resnet34

__all__ = [
    "Complexity",
    "build",
    "complexity",
    "main",
    "reactnet18",
    "reactnet_a",
    "resnet34",
    "summary",
]

_NETWORKS = {"reactnet_a": reactnet_a, "reactnet18": reactnet18, "resnet34": resnet34}


def build(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    pad_values: float = 0.0,
) -> tf.keras.Model:
    """The network of a name as --model takes it.

    Raises:
        ValueError: no such network, or an argument it does not take.
    """
    if name not in _NETWORKS:
        raise ValueError(f"Expected one of {', '.join(_NETWORKS)}. Received: name={name!r}")
    binary = {} if name == "resnet34" else {"pad_values": pad_values}
    return _NETWORKS[name](input_shape, num_classes, width, **binary)


def main(config: Config) -> None:
    """--mode=summary: prints Larq's summary of the network and the paper's count."""
    from larq_adambnn import data

    class_names, channels = data.describe(config)
    summary(
        build(
            config.model,
            input_shape=(config.image_size, config.image_size, channels),
            num_classes=len(class_names),
            width=config.width,
            pad_values=config.pad_values,
        )
    )
