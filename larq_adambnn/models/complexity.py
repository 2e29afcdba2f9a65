"""The paper's count of a network's work: binary and real multiply-accumulates."""

import dataclasses

import larq as lq
import tensorflow as tf

from larq_adambnn.layers import KERNELS, is_binary

__all__ = ["Complexity", "complexity", "summary"]


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
    """Counts the convolutions and dense layers of a model with a fixed input size.

    A layer is binary when its input and every kernel of it are 1 bit wide.
    """
    bops = flops = 0
    for layer in model._flatten_layers():
        kernels = {
            attribute: getattr(layer, name)
            for attribute, name in KERNELS.items()
            if hasattr(layer, name)
        }
        if not kernels:
            continue
        spatial = layer.output_shape[1:-1] if len(layer.output_shape) == 4 else ()
        pixels = int(tf.TensorShape(spatial).num_elements())
        macs = pixels * sum(kernel.shape.num_elements() for kernel in kernels.values())
        if all(is_binary(layer, attribute) for attribute in ("input_quantizer", *kernels)):
            bops += macs
        else:
            flops += macs
    return Complexity(bops, flops)


def summary(model: tf.keras.Model) -> None:
    """Prints Larq's summary of a model and the paper's count."""
    lq.models.summary(model)
    print(complexity(model))
