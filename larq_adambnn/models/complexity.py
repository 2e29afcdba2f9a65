"""The paper's count of a network's work: binary and real multiply-accumulates."""

import dataclasses
import math

import larq as lq
import tensorflow as tf

from larq_adambnn.layers import KERNELS, is_binary, quantizer
from larq_adambnn.walk import nodes, walk

__all__ = ["Complexity", "complexity", "summary"]

_TRANSPOSED = (
    tf.keras.layers.Conv1DTranspose,
    tf.keras.layers.Conv2DTranspose,
    tf.keras.layers.Conv3DTranspose,
)

_REAL_BITS = 16  # that ACE counts for a real number


@dataclasses.dataclass(frozen=True)
class Complexity:
    """The work of one image.

    Attributes:
        bops, flops: binary and real multiply-accumulates (ReActNet, section 5.1).
        ops: BOPs / 64 + FLOPs.
        ace: the sum of multiply-accumulates x bits of the weight x bits of the activation, where
            a real number has 16 (PokeBNN, arXiv 2112.00133).
    """

    bops: int
    flops: int
    ace: int

    @property
    def ops(self) -> float:
        return self.bops / 64 + self.flops

    def __str__(self) -> str:
        return (
            f"BOPs {self.bops:.3g}   FLOPs {self.flops:.3g}   OPs {self.ops:.3g}   "
            f"ACE {self.ace:.3g}"
        )


def complexity(model: tf.keras.Model) -> Complexity:
    """Counts the convolutions and dense layers of a model, each call of them.

    A layer is binary when its input and every kernel of it are 1 bit wide.

    Raises:
        ValueError: the model is not functional, or has no fixed input size.
    """
    counts = dict.fromkeys(("bops", "flops", "ace"), 0)

    def call(node, inputs):
        outputs = output_shapes(node, inputs)
        binary = is_binary_layer(node.layer)
        for attribute, macs in layer_macs(node.layer, inputs, outputs).items():
            counts["bops" if binary else "flops"] += macs
            counts["ace"] += macs * math.prod(
                getattr(quantizer(node.layer, name), "precision", None) or _REAL_BITS
                for name in ("input_quantizer", attribute)
            )
        return outputs

    nodes(model)  # or it is not functional
    walk(model, [tensor.shape for tensor in model.inputs], call)
    return Complexity(**counts)


def is_binary_layer(layer) -> bool:
    """Whether the input of a layer and every kernel of it are 1 bit wide."""
    return all(is_binary(layer, name) for name in ("input_quantizer", *_kernels(layer)))


def layer_macs(layer, inputs, outputs) -> dict[str, int]:
    """The multiply-accumulates of a layer's call by the attribute of the kernel's quantizer.

    Args:
        layer: any layer; most have none.
        inputs, outputs: the shapes of what it takes and gives.

    Raises:
        ValueError: those have no fixed size.
    """
    # Every weight is used once a pixel: of the output, or of what is transposed.
    shape = (inputs if isinstance(layer, _TRANSPOSED) else outputs)[0]
    return {
        attribute: _pixels(layer, shape) * kernel.shape.num_elements()
        for attribute, kernel in _kernels(layer).items()
    }


def _kernels(layer) -> dict[str, tf.Variable]:
    return {
        attribute: getattr(layer, name)
        for attribute, name in KERNELS.items()
        if hasattr(layer, name)
    }


def output_shapes(node, inputs: list[tf.TensorShape]) -> list[tf.TensorShape]:
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
