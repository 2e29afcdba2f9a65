"""Networks: tf.keras.Model from images (B, H, W, C) to logits (B, num_classes)."""

import tensorflow as tf

from larq_adambnn.config import ZOO, Config
from larq_adambnn.models.complexity import Complexity, complexity, summary
from larq_adambnn.models.reactnet import reactnet18, reactnet_a
from larq_adambnn.models.resnet import resnet34
from larq_adambnn.models.zoo import zoo

__all__ = [
    "Complexity",
    "build",
    "complexity",
    "from_config",
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
    stem_stride: int = 0,
    sync_batch_norm: bool = False,
) -> tf.keras.Model:
    """The network of a name as --model takes it; larq-zoo's have no width and padding to choose.

    Raises:
        ValueError: no such network, or an argument it does not take.
    """
    if name in ZOO:
        model = zoo(name, input_shape, num_classes)
    elif name in _NETWORKS:
        options = {} if name == "resnet34" else {"pad_values": pad_values}
        if stem_stride:
            options["stem_stride"] = stem_stride
        model = _NETWORKS[name](input_shape, num_classes, width, **options)
    else:
        names = ", ".join([*_NETWORKS, *ZOO])
        raise ValueError(f"Expected one of {names}. Received: name={name!r}")
    if sync_batch_norm:
        for layer in model.layers:
            if isinstance(layer, tf.keras.layers.BatchNormalization):
                layer.synchronized, layer.fused = True, False
    return model


def from_config(config: Config, channels: int, num_classes: int) -> tf.keras.Model:
    """The network of a config for images with so many channels and classes."""
    return build(
        config.model,
        input_shape=(config.image_size, config.image_size, channels),
        num_classes=num_classes,
        width=config.width,
        pad_values=config.pad_values,
        stem_stride=config.stem_stride,
        sync_batch_norm=config.sync_batch_norm,
    )


def main(config: Config) -> None:
    """--mode=summary: prints Larq's summary of the network and the paper's count."""
    from larq_adambnn import data

    class_names, channels = data.describe(config)
    summary(from_config(config, channels, len(class_names)))
