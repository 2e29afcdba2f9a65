"""The conversion doctor: what became of every binary convolution, and what the file holds."""

import collections
import dataclasses
from collections.abc import Iterator

import larq as lq
import numpy as np
import tensorflow as tf

from larq_adambnn.export.fold import signs_and_scales
from larq_adambnn.export.tflite import Graph, Operator
from larq_adambnn.layers import KERNELS, is_binary, quantizer
from larq_adambnn.walk import named_nodes, walk

__all__ = [
    "Diagnosis",
    "binary_calls",
    "binary_layers",
    "bits",
    "call_inputs",
    "converted",
    "diagnose",
    "macs",
    "never_binary",
    "pack",
]

_REAL = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is in a .tflite, against the Keras model that it was made of.

    Attributes:
        converted: index of the LceBconv2d operator by the layer's name (see `binary_calls`).
        float_layers: (reason, advice) of each binary layer that is computed in real
            arithmetic, by its name.
        operators: by kind, the most frequent first: count, weight_bytes, binary_macs and
            real_macs (of one image).
    """

    converted: dict[str, int]
    float_layers: dict[str, tuple[str, str]]
    operators: dict[str, dict[str, int]]

    @property
    def expected(self) -> int:
        return len(self.converted) + len(self.float_layers)


def never_binary(model: tf.keras.Model) -> dict[str, tuple[str, str]]:
    """(reason, advice) of the binary layers that LCE has no operator for, by name."""
    reasons = {name: _own_reason(node.layer) for name, node in binary_calls(model).items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def diagnose(model: tf.keras.Model, tflite: bytes, folded: tf.keras.Model) -> Diagnosis:
    """Finds every binary layer of a model in its .tflite.

    Args:
        model: the network as it was built.
        tflite: what it was converted to.
        folded: the form of it that was converted.
    """
    graph = Graph(tflite)
    found = converted(model, graph)
    calls = binary_calls(model).items()
    left = {name: node.layer for name, node in calls if name not in found}
    reasons = _reasons(left, folded) if left else {}
    return Diagnosis(found, reasons, _summary(graph))


def binary_layers(model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    """The layers of a model, or of models in it, that are meant to be binary.

    Their kernel is quantized to 1 bit, and so is their input, unless it is the image.
    """
    for layer in model._flatten_layers(include_self=False):
        one_bit = any(is_binary(layer, attribute) for attribute in KERNELS)
        if (one_bit or _has_binary_kernel(layer)) and not _on_image(layer):
            yield layer


def binary_calls(model: tf.keras.Model) -> dict:
    """Keras's records of the calls of binary layers, by their names in `named_nodes`."""
    binary = set(map(id, binary_layers(model)))
    return {name: node for name, node in named_nodes(model) if id(node.layer) in binary}


def _has_binary_kernel(layer) -> bool:
    return isinstance(layer, lq.layers.QuantConv2D) and signs_and_scales(layer) is not None


def _on_image(layer) -> bool:
    """Whether a layer without a sign is the first that has weights."""
    if getattr(layer, "input_quantizer", None) is not None:
        return False
    nodes = list(layer._inbound_nodes)
    while nodes:
        for previous in tf.nest.flatten(nodes.pop().keras_inputs):
            source = previous.node.layer
            if source.weights or isinstance(source, tf.keras.layers.Activation):
                return False
            nodes.append(previous.node)
    return True


def pack(negative: np.ndarray) -> np.ndarray:
    """Booleans (..., C) as LCE packs signs: int32 (..., C / 32), a set bit for a negative one."""
    words = -(-negative.shape[-1] // 32)
    padded = np.zeros((*negative.shape[:-1], 32 * words), bool)
    padded[..., : negative.shape[-1]] = negative
    return np.packbits(padded, axis=-1, bitorder="little").view("<i4")


def bits(words: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of `pack`: booleans (..., C)."""
    words = np.ascontiguousarray(words, "<i4")
    return np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., :channels] > 0


def converted(model: tf.keras.Model, graph: Graph) -> dict[str, int]:
    """Index of the LceBconv2d of each binary layer, by name: the one that holds its very signs.

    Where its output is packed, LCE has turned the signs of the channels whose multiplier is
    negative.  Several with the same signs, as of a layer that is called twice, are told apart
    by their names, or else in the same order; calls on one tensor are one operator.
    """
    filters = collections.defaultdict(set)
    for index, operator in enumerate(graph.operators):
        if operator.kind == "LceBconv2d":
            words = graph.constant(operator.inputs[1])
            negative = bits(words, _channels(operator, words.shape[-1]))
            packed = graph.dtype(operator.outputs[0]) == np.int32
            filters[_filter(negative, packed)].add(index)
    inputs, found, known = call_inputs(model), {}, {}
    for name, node in binary_calls(model).items():
        form = signs_and_scales(node.layer) if hasattr(node.layer, "kernel") else None
        if form is None or form[0].ndim != 4:
            continue
        call = (id(node.layer), inputs[name])
        if call not in known:
            negative = form[0].transpose(3, 0, 1, 2) < 0
            same = [i for packed in (False, True) for i in filters[_filter(negative, packed)]]
            fitting = [i for i in sorted(same) if _fits(node, graph, graph.operators[i])]
            named = [i for i in fitting if graph.name(graph.operators[i].outputs[0]) == name]
            known[call] = next(iter([*named, *fitting]), None)
            for indices in filters.values():
                indices.discard(known[call])
        if known[call] is not None:
            found[name] = known[call]
    return found


def _fits(node, graph: Graph, operator: Operator) -> bool:
    """Whether a call may have an operator's output size, which is not always known."""
    sizes = zip(node.outputs.shape[1:3], graph.shape(operator.outputs[0])[1:3], strict=True)
    return all(own in (None, theirs) for own, theirs in sizes)


def _filter(negative: np.ndarray, up_to_signs: bool) -> tuple:
    """What two kernels (O, H, W, I) have in common if they are equal, or up to a sign a channel."""
    if up_to_signs:
        negative = negative ^ negative[:, :1, :1, :1]
    return up_to_signs, negative.shape, negative.tobytes()


def _channels(operator: Operator, words: int) -> int:
    """Of a binary convolution's kernel, which holds so many words of 32 of them."""
    channels = operator.options["channels_in"]
    return channels // (-(-channels // 32) // words)  # by the number of groups


def call_inputs(model: tf.keras.Model) -> dict[str, int]:
    """A number of what each call of a layer takes, by its name: the same for equal values.

    Values are equal if the same layers compute them from the same inputs of the model.
    """
    names = (name for name, _ in named_nodes(model))  # in the order of `walk`
    inputs, numbers = {}, {}

    def call(node, given):
        inputs[next(names)] = given[0]
        results = [
            (id(node.layer), *given, index) for index in range(len(tf.nest.flatten(node.outputs)))
        ]
        return [numbers.setdefault(result, len(numbers)) for result in results]

    walk(model, range(-len(model.inputs), 0), call)
    return inputs


def _reasons(calls, folded: tf.keras.Model) -> dict[str, tuple[str, str]]:
    """Why LCE left layers real, and what to do."""
    spec = tf.TensorSpec((1, *folded.input_shape[1:]), folded.input.dtype)
    graph = tf.function(lambda x: folded(x, training=False)).get_concrete_function(spec).graph
    sources = {}
    for operation in graph.get_operations():
        if operation.type == "Conv2D":
            for part in operation.name.split("/"):
                sources.setdefault(part, _source(operation.inputs[0]))
    return {name: _reason(layer, sources.get(name)) for name, layer in calls.items()}


def _source(tensor):
    """The operation that computes a tensor, without those that only pass it on."""
    while tensor.op.type in ("Identity", "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor.op


def _own_reason(layer) -> tuple[str, str] | None:
    """Why a layer stays real whatever is before it, and what to do."""
    if not isinstance(layer, tf.keras.layers.Conv2D) or isinstance(
        layer, tf.keras.layers.DepthwiseConv2D | tf.keras.layers.Conv2DTranspose
    ):
        return (
            f"LCE has no binary form of {type(layer).__name__}",
            "use QuantConv2D, or keep the layer real",
        )
    if layer.groups > 1:
        return (
            f"it has {layer.groups} groups, which LCE's kernel does not compute",
            "use groups=1, or one QuantConv2D for each group",
        )
    precision = getattr(quantizer(layer, "input_quantizer"), "precision", 1)
    if precision != 1:
        return (
            f"its input has {precision} bits, LCE's has 1",
            "use a sign such as ste_sign as the input quantizer",
        )
    if signs_and_scales(layer) is None:
        return (
            "its quantized kernel is not one scale per output channel times +1 and -1",
            "use ste_sign, magnitude_aware_sign or ScaledSign as the kernel quantizer",
        )
    return None


def _reason(layer, source) -> tuple[str, str]:
    reason = _own_reason(layer)
    if reason is not None:
        return reason
    if source is not None and source.type in ("Pad", "PadV2", "MirrorPad"):
        return (
            "an explicit padding stands between the sign and the convolution",
            'use padding="same" (and pad_values=1 for ones), or pad before the sign',
        )
    if source is not None and source.type not in ("Select", "SelectV2", "Sign"):
        return (
            f"the sign of its input is missing: it takes what {source.type} gives",
            "give the layer an input quantizer such as ste_sign",
        )
    given = quantizer(layer, "input_quantizer")
    values = (-1, 1) if given is None else np.unique(given(tf.constant([-0.5, 0.5])))
    if tuple(values) != (-1, 1):
        return (
            f"its input is {' or '.join(f'{value:g}' for value in values)}, LCE's is -1 or 1",
            "use a sign such as ste_sign as the input quantizer",
        )
    return (
        "LCE's converter left it for a reason that is not known here",
        "compare it with a layer that was converted",
    )


def _summary(graph: Graph) -> dict[str, dict[str, int]]:
    summary = {}
    for operator in graph.operators:
        row = summary.setdefault(
            operator.kind, {"count": 0, "weight_bytes": 0, "binary_macs": 0, "real_macs": 0}
        )
        row["count"] += 1
        row["weight_bytes"] += graph.weight_bytes(operator)
        binary, real = macs(graph, operator)
        row["binary_macs"] += binary
        row["real_macs"] += real
    return dict(sorted(summary.items(), key=lambda item: -item[1]["count"]))


def macs(graph: Graph, operator: Operator) -> tuple[int, int]:
    """Binary and real multiply-accumulates: the weights, each used once for every output pixel."""
    binary = operator.kind == "LceBconv2d"
    if not binary and operator.kind not in _REAL:
        return 0, 0
    weights = graph.shape(operator.inputs[1])
    if binary:
        weights = (*weights[:-1], _channels(operator, weights[-1]))
    if operator.kind == "TRANSPOSE_CONV":
        pixels = graph.shape(operator.inputs[2])[1:3]
    else:
        pixels = graph.shape(operator.outputs[0])[1:-1]
    count = int(np.prod(weights, dtype=np.int64) * np.prod(pixels, dtype=np.int64))
    return (count, 0) if binary else (0, count)
