"""The paper's count of a network's work: binary and real multiply-accumulates."""

import dataclasses

import larq as lq
import tensorflow as tf

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
        kernels = [
            getattr(layer, name)
            for name in ("kernel", "depthwise_kernel", "pointwise_kernel")
            if hasattr(layer, name)
        ]
        if not kernels:
            continue
        spatial = layer.output_shape[1:-1] if len(layer.output_shape) == 4 else ()
        pixels = int(tf.TensorShape(spatial).num_elements())
        macs = pixels * sum(kernel.shape.num_elements() for kernel in kernels)
        precisions = [getattr(kernel, "precision", 32) or 32 for kernel in kernels]
        precisions.append(getattr(getattr(layer, "input_quantizer", None), "precision", 32))
        if all(bits == 1 for bits in precisions):
            bops += macs
        else:
            flops += macs
    return Complexity(bops, flops)


def summary(model: tf.keras.Model) -> None:
    """Prints Larq's summary of a model and the paper's count."""
    lq.models.summary(model)
    print(complexity(model))
