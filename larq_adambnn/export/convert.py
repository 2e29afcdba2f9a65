"""Keras model -> .tflite, with Larq Compute Engine's converter."""

import contextlib
import logging
import tempfile
import warnings

import numpy as np
import tensorflow as tf

from larq_adambnn.export.fold import fold
from larq_adambnn.export.tflite import Graph, compact, named_outputs, unpadded
from larq_adambnn.machine import quiet
from larq_adambnn.padding import same_padding
from larq_adambnn.walk import nodes

__all__ = ["check_form", "convert", "convert_as_is", "silence"]


def convert(model: tf.keras.Model) -> bytes:
    """Folds a float32 model of Larq layers and converts it to TFLite for 64-bit ARM.

    Args:
        model: a built functional model with a fixed input size; it stays as it is.

    Returns:
        The .tflite file's bytes; it takes one image at a time, and gives the model's outputs in
        their order and under their names.

    Raises:
        ImportError: larq-compute-engine is not installed.
        ValueError: the model is not float32, not functional, has no fixed input size or
            another batch size than 1, or LCE would change what it computes.
    """
    check_form(model)
    return convert_as_is(fold(model).model)


def convert_as_is(model: tf.keras.Model, *, int8_io: bool = False) -> bytes:
    """Converts a model without folding it; returns and raises what `convert` does.

    Args:
        model: see `convert`; an operator becomes int8 where all that goes in and out of it is
            fake quantized.
        int8_io: whether a quantized model takes and gives int8 instead of float32.
    """
    check_form(model)
    # convert_keras_model would trace every layer on its own and all gradients, which takes
    # minutes; only the inference of one image is wanted.
    function = tf.function(
        lambda images: {
            f"output_{number}": output
            for number, output in enumerate(tf.nest.flatten(model(images, training=False)))
        },
        input_signature=[tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="images")],
    ).get_concrete_function()
    _check_padding(function.graph)
    module = tf.Module()
    module.weights = model.weights
    with silence(), tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(
            module,
            folder,
            signatures=function,
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
        tflite = _convert_saved_model(folder, tf.int8 if int8_io else tf.float32)
    tflite = _named_convolutions(named_outputs(tflite, model.output_names), model)
    return compact(unpadded(tflite))


def _convert_saved_model(folder: str, io_type: tf.DType) -> bytes:
    """What LCE's converter makes of a SavedModel; nothing else here uses the converter.

    It imports private modules of TensorFlow, which a release may drop: docs/design.md says what
    is to be done then.

    Raises:
        ImportError: larq-compute-engine is not installed, or not made for this TensorFlow.
    """
    try:
        import larq_compute_engine as lce

        return lce.convert_saved_model(
            folder, inference_input_type=io_type, inference_output_type=io_type
        )
    except (AttributeError, ImportError) as error:
        raise ImportError(
            "Expected larq-compute-engine and a TensorFlow that its converter works with (2.19 to "
            f"2.21 do). Received: TensorFlow {tf.__version__}; {error}"
        ) from error


def _named_convolutions(tflite: bytes, model: tf.keras.Model) -> bytes:
    """The same file whose binary convolutions are named after their layers.

    The converter names what one gives after the layer that ends it, and packed signs after
    the layer that takes them.
    """
    graph, layers = Graph(tflite), {layer.name: layer for layer in model.layers}
    for operator in graph.operators:
        if operator.kind != "LceBconv2d":
            continue
        (output,) = operator.outputs
        parts = graph.name(output).split(";")[0].split("/")[1:]  # after the model's name
        layer = next((layers[part] for part in parts if part in layers), None)
        if layer is not None and graph.dtype(output) == np.int32:
            layer = _before(layer)
        while layer is not None and not hasattr(layer, "kernel_quantizer"):
            layer = _before(layer)
        if layer is not None:
            graph.graph.tensors[output].name = layer.name.encode()
    return graph.to_bytes()


def _before(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer | None:
    """The only layer that a layer takes something from, if it is one."""
    inputs = layer.inbound_nodes[0].keras_inputs
    return inputs[0].node.layer if len(inputs) == 1 else None


def check_form(model: tf.keras.Model) -> None:
    """Raises ValueError if a model is of a form that `convert` refuses, before any work."""
    nodes(model)
    policies = {layer.compute_dtype for layer in model._flatten_layers()}
    if policies != {"float32"}:
        other = sorted(policies - {"float32"})
        raise ValueError(
            f"Expected a float32 model; build it in the float32 policy and load the weights. "
            f"Received: layers of {', '.join(other)}"
        )
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) < 2 or None in shape[1:]:
        raise ValueError(f"Expected one input of a fixed size. Received: input_shape={shape}")
    if shape[0] not in (None, 1):
        raise ValueError(
            "Expected a model for batches of any size, or of 1, which LCE's interpreter takes. "
            f"Received: batch size {shape[0]}"
        )


def _check_padding(graph) -> None:
    """Raises ValueError where LCE would replace a padding with one that differs.

    It takes an explicit padding with ones between a sign and a convolution for "same" if
    the output size fits, although (1, 1) before a stride of 2 is not what "same" pads there.
    """
    for operation in graph.get_operations():
        if operation.type != "Conv2D" or max(operation.get_attr("strides")) == 1:
            continue
        pad = operation.inputs[0].op
        if pad.type != "PadV2":
            continue
        paddings, value = (tf.get_static_value(tensor) for tensor in pad.inputs[1:])
        if value is None or paddings is None or value != 1:
            continue
        kernel = operation.inputs[1].shape
        for axis in (1, 2):
            size, stride = pad.inputs[0].shape[axis], operation.get_attr("strides")[axis]
            span = (kernel[axis - 1] - 1) * operation.get_attr("dilations")[axis] + 1
            same = same_padding(size, span, stride)
            if tuple(paddings[axis]) != same:
                raise ValueError(
                    f'Expected {same}, which "same" pads, as the explicit padding with '
                    f"ones before the strided convolution {operation.name}; LCE would change "
                    'another to it. Pad before the sign instead, or use padding="same" with '
                    f"pad_values=1. Received: {tuple(map(int, paddings[axis]))}"
                )


@contextlib.contextmanager
def silence():
    """Keeps LCE's notes, some of them written by C++, off the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
