"""The paper's count of a network's work: binary and real multiply-accumulates."""

import dataclasses

import larq as lq
import tensorflow as tf

from larq_adambnn.layers import KERNELS, is_binary
from larq_adambnn.walk import nodes, walk

__all__ = ["Complexity", "complexity", "summary"]

_TRANSPOSED = (
    tf.keras.layers.Conv1DTranspose,
    tf.keras.layers.Conv2DTranspose,
    tf.keras.layers.Conv3DTranspose,
)


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Multiply-accumulates of one image (ReActNet, section 5.1): OPs = BOPs / 64 + FLOPs."""

    bops: int
    flops: int

    @property
    def ops(self) -> float:
        return self.bops / 64 + self.flops

    def __str__(self) -> str:
        return f"BOPs {self.bops:.3g}   FLOPs {self.flops:.3g}   OPs {self.ops:.3g}"


def complexity(model: tf.keras.Model) -> Complexity:
    """Counts the convolutions and dense layers of a model, each call of them.

    A layer is binary when its input and every kernel of it are 1 bit wide.

    Raises:
        ValueError: the model is not functional, or has no fixed input size.
    """
    counts = {True: 0, False: 0}

    def call(node, inputs):
        layer = node.layer
        outputs = _output_shapes(node, inputs)
        kernels = {
            attribute: getattr(layer, name)
            for attribute, name in KERNELS.items()
            if hasattr(layer, name)
        }
        if kernels:
            binary = all(is_binary(layer, attribute) for attribute in ("input_quantizer", *kernels))
            # Every weight is used once a pixel: of the output, or of what is transposed.
            transposed = isinstance(layer, _TRANSPOSED)
            pixels = _pixels(layer, inputs[0] if transposed else outputs[0])
            counts[binary] += pixels * sum(k.shape.num_elements() for k in kernels.values())
        return outputs

    nodes(model)  # or it is not functional
    walk(model, [tensor.shape for tensor in model.inputs], call)
    return Complexity(bops=counts[True], flops=counts[False])


def _output_shapes(node, inputs: list[tf.TensorShape]) -> list[tf.TensorShape]:
    """Of a layer's call, which may be inside a model that is called with another size."""
    own = [tensor.shape for tensor in node.keras_inputs]
    if [shape.as_list() for shape in inputs] == [shape.as_list() for shape in own]:
        return [tensor.shape for tensor in tf.nest.flatten(node.outputs)]
    shapes = node.layer.compute_output_shape(inputs[0] if len(inputs) == 1 else inputs)
    return [shapes] if isinstance(shapes, tf.TensorShape) else list(shapes)


def _pixels(layer, shape: tf.TensorShape) -> int:
    """Number of places of a tensor (B, ..., C) or (B, C, ...)."""
    first = getattr(layer, "data_format", None) == "channels_first"
    count = (shape[2:] if first else shape[1:-1]).num_elements()
    if count is None:
        raise ValueError(
            f"Expected a model of a fixed input size. Received: {shape} at {layer.name}"
        )
    return count


def summary(model: tf.keras.Model) -> None:
    """Prints Larq's summary of a model and the paper's count."""
    lq.models.summary(model)
    print(complexity(model))
