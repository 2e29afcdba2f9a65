"""The real-valued ResNet-34, the published teacher (He et al., arXiv 1512.03385)."""

import tensorflow as tf

from larq_adambnn.models.common import batch_norm, check_arguments, classify

__all__ = ["resnet34"]

# (channels in units of the stem's, stride) of each block
_BLOCKS = tuple(
    (units, 2 if units > 1 and block == 0 else 1)
    for units, blocks in ((1, 3), (2, 4), (4, 6), (8, 3))
    for block in range(blocks)
)


def _conv(x, filters: int, size: int, stride: int, name: str):
    """Convolution with PyTorch's explicit padding, which "same" is not at stride 2."""
    if size > 1:
        x = tf.keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return tf.keras.layers.Conv2D(
        filters,
        size,
        strides=stride,
        use_bias=False,
        kernel_initializer=tf.keras.initializers.VarianceScaling(
            2, mode="fan_out", distribution="untruncated_normal"
        ),
        name=name,
    )(x)


def resnet34(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    width: float = 1.0,
) -> tf.keras.Model:
    """ResNet-34 in torchvision's layout (v1: the stride is in a block's first convolution).

    It computes what torchvision's computes at every image size; `checkpoints` reads its
    state_dict.

    Args:
        input_shape: (height, width, channels), each side 32 or more.
        num_classes: number of logits.
        width: multiplies every channel count; 1.0 is torchvision's.

    Returns:
        A model from images (B, H, W, C) to logits (B, num_classes).

    Raises:
        ValueError: an argument is out of range.
    """
    check_arguments(input_shape, num_classes, width)

    def relu(x, name):
        return tf.keras.layers.ReLU(name=name)(x)

    def block(x, name, filters, stride):
        y = _conv(x, filters, 3, stride, f"{name}_conv1")
        y = relu(batch_norm(f"{name}_bn1")(y), f"{name}_relu1")
        y = _conv(y, filters, 3, 1, f"{name}_conv2")
        y = batch_norm(f"{name}_bn2")(y)
        if stride != 1:
            x = _conv(x, filters, 1, stride, f"{name}_downsample_conv")
            x = batch_norm(f"{name}_downsample_bn")(x)
        return relu(tf.keras.layers.Add(name=f"{name}_add")([y, x]), f"{name}_relu2")

    images = tf.keras.Input(input_shape, name="images")
    unit = max(1, round(64 * width))
    x = _conv(images, unit, 7, 2, "stem_conv")
    x = relu(batch_norm("stem_bn")(x), "stem_relu")
    # The padding's zeros change no maximum: no value after a ReLU is negative.
    x = tf.keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    x = tf.keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    for number, (units, stride) in enumerate(_BLOCKS, start=1):
        x = block(x, f"block{number}", units * unit, stride)
    return tf.keras.Model(images, classify(x, num_classes), name="resnet34")
