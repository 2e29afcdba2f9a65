"""What every network is made of: checks, initializers, and the layers with PyTorch's defaults."""

import tensorflow as tf

__all__ = ["batch_norm", "check_arguments", "classify", "kaiming_uniform"]

_SMALLEST_IMAGE = 32


def check_arguments(input_shape, num_classes: int, width: float) -> None:
    """Raises ValueError unless a network can be built of these."""
    if len(input_shape) != 3 or min(input_shape[:2]) < _SMALLEST_IMAGE or input_shape[2] < 1:
        raise ValueError(
            f"Expected input_shape (height, width, channels) of at least {_SMALLEST_IMAGE} x "
            f"{_SMALLEST_IMAGE} x 1. Received: input_shape={input_shape}"
        )
    if num_classes < 1:
        raise ValueError(f"Expected at least 1 class. Received: num_classes={num_classes}")
    if not width > 0:
        raise ValueError(f"Expected a positive width. Received: width={width}")


def kaiming_uniform() -> tf.keras.initializers.Initializer:
    """PyTorch's default: Kaiming uniform with a = sqrt(5)."""
    return tf.keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")


def batch_norm(name: str) -> tf.keras.layers.Layer:
    """PyTorch's defaults: epsilon 1e-5, momentum 0.1 (0.9 as Keras counts it).

    In float64 Keras's running variance is the biased estimate; PyTorch's, and that of
    the fused float32 kernel, has the factor n / (n - 1).
    """
    return tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def classify(x: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Global average pool and dense layer: features (B, H, W, C) to logits (B, num_classes)."""
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return tf.keras.layers.Dense(
        num_classes,
        kernel_initializer=kaiming_uniform(),
        dtype=tf.keras.mixed_precision.global_policy().variable_dtype,  # never half precision
        name="classifier",
    )(x)
