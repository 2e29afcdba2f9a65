"""ReActNet-A and ReActNet-18 (ReActNet, arXiv 2003.03488; AdamBNN, arXiv 2106.11309)."""

import tensorflow as tf

from larq_adambnn.layers import BinaryConv2D, Rotate180, RPReLU, Shift
from larq_adambnn.models.common import batch_norm, check_arguments, classify, kaiming_uniform
from larq_adambnn.quantizers import ApproxSign, ScaledSign, Switchable

__all__ = ["reactnet18", "reactnet_a"]

# (channels in units of the stem's, stride) of each block
_BLOCKS_A = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1))
_BLOCKS_18 = tuple(
    (units, 2 if units > 1 and block == 0 else 1) for units in (1, 2, 4, 8) for block in range(4)
)
_LARGE_IMAGE = 64  # from this size on the stem reduces the image


def _real_conv(filters: int, size: int, stride: int, name: str):
    return tf.keras.layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=kaiming_uniform(),
        name=name,
    )


def _binary_conv(
    filters: int,
    size: int,
    stride: int,
    name: str,
    *,
    pad_values: float,
    activation_clip: float,
    weight_clip: float,
):
    return BinaryConv2D(
        filters,
        size,
        strides=stride,
        pad_values=pad_values,
        input_quantizer=Switchable(ApproxSign(activation_clip)),
        kernel_quantizer=Switchable(ScaledSign(weight_clip)),
        kernel_initializer=kaiming_uniform(),
        name=name,
    )


def _halve(x, name: str):
    return tf.keras.layers.AveragePooling2D(2, padding="same", name=name)(x)


def reactnet_a(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    width: float = 1.0,
    *,
    stem_stride: int | None = None,
    pad_values: float = 0.0,
    activation_clip: float = 1.0,
    weight_clip: float = 1.0,
) -> tf.keras.Model:
    """ReActNet-A: MobileNet's plan with binary convolutions (ReActNet, table 1).

    Args:
        input_shape: (height, width, channels), each side 32 or more.
        num_classes: number of logits.
        width: multiplies every channel count; 1.0 is the published network.
        stem_stride: stride of the first convolution; by default 2, and 1 for
            images with a side under 64.
        pad_values: what "same" pads around binary inputs: 0 as published, or 1,
            the form that Larq Compute Engine runs fastest.
        activation_clip, weight_clip: how far from 0 the gradient of the inputs' and of the
            kernels' sign reaches, see `quantizers`; 1 as published.  It is the same network.

    Returns:
        A model from images (B, H, W, C) to logits (B, num_classes), binary in
        activations and weights; `larq_adambnn.binarize` changes that.

    Raises:
        ValueError: an argument is out of range.
    """
    options = {
        "pad_values": pad_values,
        "activation_clip": activation_clip,
        "weight_clip": weight_clip,
    }
    check_arguments(input_shape, num_classes, width, stem_stride=stem_stride, **options)
    if stem_stride is None:
        stem_stride = 2 if min(input_shape[:2]) >= _LARGE_IMAGE else 1

    def block(x, name, filters, stride):
        inputs = x.shape[-1]
        y = Shift(name=f"{name}_shift1")(x)
        y = _binary_conv(inputs, 3, stride, f"{name}_conv3x3", **options)(y)
        y = batch_norm(f"{name}_bn1")(y)
        shortcut = x if stride == 1 else _halve(x, f"{name}_halve")
        y = tf.keras.layers.Add(name=f"{name}_add1")([y, shortcut])
        y = RPReLU(name=f"{name}_rprelu1")(y)

        z = Shift(name=f"{name}_shift2")(y)
        outputs = []
        for branch in [""] if filters == inputs else ["a", "b"]:
            u = _binary_conv(inputs, 1, 1, f"{name}_conv1x1{branch}", **options)(z)
            u = batch_norm(f"{name}_bn2{branch}")(u)
            outputs.append(tf.keras.layers.Add(name=f"{name}_add2{branch}")([u, y]))
        if len(outputs) > 1:
            outputs = [tf.keras.layers.Concatenate(name=f"{name}_concat")(outputs)]
        return RPReLU(name=f"{name}_rprelu2")(outputs[0])

    images = tf.keras.Input(input_shape, name="images")
    unit = max(1, round(32 * width))
    x = Rotate180(name="rotate")(images)
    x = _real_conv(unit, 3, stem_stride, "stem_conv")(x)
    x = batch_norm("stem_bn")(x)
    for number, (units, stride) in enumerate(_BLOCKS_A, start=1):
        x = block(x, f"block{number}", units * unit, stride)
    return tf.keras.Model(images, classify(x, num_classes), name="reactnet_a")


def reactnet18(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    width: float = 1.0,
    *,
    stem_stride: int | None = None,
    pad_values: float = 0.0,
    activation_clip: float = 1.0,
    weight_clip: float = 1.0,
) -> tf.keras.Model:
    """ReActNet on the Bi-Real ResNet-18: 16 blocks of one 3 x 3 binary convolution each.

    Args, returns and raises as `reactnet_a`.  With a stem stride of 1 the max pool
    after the stem is left out too.
    """
    options = {
        "pad_values": pad_values,
        "activation_clip": activation_clip,
        "weight_clip": weight_clip,
    }
    check_arguments(input_shape, num_classes, width, stem_stride=stem_stride, **options)
    if stem_stride is None:
        stem_stride = 2 if min(input_shape[:2]) >= _LARGE_IMAGE else 1

    def block(x, name, filters, stride):
        y = Shift(name=f"{name}_shift")(x)
        y = _binary_conv(filters, 3, stride, f"{name}_conv3x3", **options)(y)
        y = batch_norm(f"{name}_bn")(y)
        if stride != 1:
            x = _halve(x, f"{name}_halve")
            x = _real_conv(filters, 1, 1, f"{name}_downsample_conv")(x)
            x = batch_norm(f"{name}_downsample_bn")(x)
        y = tf.keras.layers.Add(name=f"{name}_add")([y, x])
        return RPReLU(name=f"{name}_rprelu")(y)

    images = tf.keras.Input(input_shape, name="images")
    unit = max(1, round(64 * width))
    x = Rotate180(name="rotate")(images)
    x = _real_conv(unit, 7, stem_stride, "stem_conv")(x)
    x = batch_norm("stem_bn")(x)
    if stem_stride > 1:
        x = tf.keras.layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
    for number, (units, stride) in enumerate(_BLOCKS_18, start=1):
        x = block(x, f"block{number}", units * unit, stride)
    return tf.keras.Model(images, classify(x, num_classes), name="reactnet18")
