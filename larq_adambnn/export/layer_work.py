"""What a Keras model will compute once it is converted, counted without converting it.

It follows what the export does: batch norms after convolutions and most shifts are folded, signs
are packed once for all that read them.  The multiply-accumulates are exact, the bytes and the
number of operators are those of the .tflite within a few per cent.
"""

import dataclasses

import tensorflow as tf

from larq_adambnn.export.device_times import COUNTS
from larq_adambnn.layers import is_binary
from larq_adambnn.models.complexity import is_binary_layer, layer_macs, output_shapes
from larq_adambnn.walk import nodes, walk

__all__ = ["layer_work"]

# What costs nothing; and what is nothing more after a convolution
_FREE = (
    tf.keras.layers.Dropout,
    tf.keras.layers.Flatten,
    tf.keras.layers.Reshape,
    tf.keras.layers.SpatialDropout2D,
)
_BATCH_NORM = tf.keras.layers.BatchNormalization
_FUSED = (_BATCH_NORM, tf.keras.layers.ReLU)


@dataclasses.dataclass(eq=False)
class _Value:
    """What stands for a tensor of one image: its shape, with the number of images.

    Attributes:
        linear: whether a convolution or dense layer gives it, perhaps with a batch norm.
        packed: whether its signs are there.
    """

    shape: tf.TensorShape
    linear: bool = False
    packed: bool = False

    @property
    def bytes(self) -> int:
        return 4 * self.shape[1:].num_elements()


def layer_work(model: tf.keras.Model) -> dict[str, dict[str, int]]:
    """As `device_times.work`, by kind of layer instead of operator; of a float32 file.

    Raises:
        ValueError: the model is not functional, or has no fixed input size.
    """
    sums: dict[str, dict[str, int]] = {}

    def add(kind: str, **numbers: int) -> None:
        row = sums.setdefault(kind, dict.fromkeys(COUNTS, 0))
        for name, value in numbers.items():
            row[name] += value

    def call(node, given: list[_Value]) -> list[_Value]:
        layer, inputs = node.layer, [value.shape for value in given]
        outputs = output_shapes(node, inputs)
        macs = sum(layer_macs(layer, inputs, outputs).values())
        free = isinstance(layer, _FREE) or _is_linear(layer)
        fused = given[0].linear and isinstance(layer, _FUSED)
        linear = macs > 0 or fused or (free and given[0].linear)
        made = [_Value(shape, linear) for shape in outputs]
        read, written = (sum(value.bytes for value in values) for values in (given, made))
        if is_binary(layer, "input_quantizer") and not given[0].packed:
            given[0].packed = True
            add("sign", count=1, bytes=read + read // 32)
        kind = type(layer).__name__
        if macs:
            binary = is_binary_layer(layer)
            size = (read // 32 if binary else read) + written
            add(kind, count=1, bytes=size, **{"binary_macs" if binary else "float_macs": macs})
        elif not free and not fused:
            count = 2 if isinstance(layer, _BATCH_NORM) else 1  # a product and a sum
            add(kind, count=count, bytes=count * (read + written))
        return made

    nodes(model)  # or it is not functional
    walk(model, [_Value(tensor.shape) for tensor in model.inputs], call)
    return sums


def _is_linear(layer) -> bool:
    linear = tf.keras.activations.linear
    return isinstance(layer, tf.keras.layers.Activation) and layer.activation is linear
