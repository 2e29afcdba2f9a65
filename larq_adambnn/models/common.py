"""What every network is made of: checks, initializers, and the layers with PyTorch's defaults."""

import tensorflow as tf

from larq_adambnn.arguments import Kind, expect, number, one_of, optional, several, whole

__all__ = ["batch_norm", "check_arguments", "classify", "kaiming_uniform", "logits_of"]

_SMALLEST_IMAGE = 32
_OPTIONS = {
    "stem_stride": optional(whole(1)),
    "pad_values": one_of(0, 1),
    "activation_clip": number(above=0),
    "weight_clip": number(above=0),
}


def check_arguments(
    input_shape, num_classes: int, width: float = 1.0, *, smallest: int = _SMALLEST_IMAGE, **others
) -> None:
    """Raises ValueError unless a network can be built of these.

    Args:
        input_shape, num_classes, width: of every network.
        smallest: height and width that it takes.
        **others: those of the binary networks.
    """
    expect(
        "input_shape",
        input_shape,
        Kind(
            f"(height, width, channels) of at least {smallest} x {smallest} x 1",
            lambda v: several(whole(1), "", length=3).fits(v) and min(v[:2]) >= smallest,
        ),
    )
    expect("num_classes", num_classes, whole(1))
    expect("width", width, number(above=0))
    for name, value in others.items():
        expect(name, value, _OPTIONS[name])


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


def logits_of(model: tf.keras.Model) -> tf.keras.Model:
    """A classifier of any kind with its logits, in float32, as its output: without its softmax."""
    output = model.output
    while _is_softmax(output.node.layer):
        layer = output.node.layer
        if layer.weights:  # it is the activation of what computes the logits
            layer.activation = tf.keras.activations.linear
            break
        output = layer.input
    logits = tf.keras.layers.Activation("linear", dtype="float32", name="logits")(output)
    return tf.keras.Model(model.input, logits, name=model.name)


def _is_softmax(layer) -> bool:
    activation = getattr(layer, "activation", None)
    return isinstance(layer, tf.keras.layers.Softmax) or activation is tf.keras.activations.softmax
