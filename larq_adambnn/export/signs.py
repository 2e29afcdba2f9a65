"""Where a .tflite holds the signs that the layers of a Keras model take."""

import collections
import dataclasses

import tensorflow as tf

from larq_adambnn.export.doctor import binary_calls, call_inputs, converted
from larq_adambnn.export.tflite import Graph
from larq_adambnn.layers import is_binary
from larq_adambnn.walk import named_nodes

__all__ = ["Places", "find_signs"]


@dataclasses.dataclass(frozen=True)
class Places:
    """What is known of the signs in a .tflite.

    Attributes:
        tensors: the tensor with the packed signs that a layer takes, by the layer's name.
        not_found: layers that take signs, which the file does not have in a form known here.
        others: number of tensors of signs in the file that are no layer's of these.
        changed: binary layers whose kernel no LceBconv2d holds, although one of its size is
            left.
    """

    tensors: dict[str, int]
    not_found: tuple[str, ...]
    others: int
    changed: tuple[str, ...]


def find_signs(model: tf.keras.Model, graph: Graph) -> Places:
    """Finds the signs before the layers of a model, where operators read them.

    Those of converted layers are found by their kernel.  What is left, as in a network whose
    weights are real, is taken in the order of both graphs, for each size by itself, if there
    are equally many.  Where LCE has put a max pool after the sign, they are those after it.

    Args:
        model: a functional model.
        graph: what it was converted to.
    """
    operators = converted(model, graph)
    found = {name: graph.operators[index].inputs[0] for name, index in operators.items()}
    changed = _changed(model, graph, operators)

    left = collections.defaultdict(dict)  # tensors in their order, by size
    for operator in graph.operators:
        if operator.kind in ("LceBconv2d", "LceDequantize"):
            tensor = operator.inputs[0]
            if tensor not in found.values():
                left[graph.shape(tensor)[1:]][tensor] = None
    asked = collections.defaultdict(list)  # names of the layers that take one tensor, by size
    for names, size in _takers(model):
        if found.keys().isdisjoint(names):
            asked[size].append(names)
    others, not_found = 0, []
    for size in {*left, *asked}:
        if len(left[size]) == len(asked[size]):
            for names, tensor in zip(asked[size], left[size], strict=True):
                found.update(dict.fromkeys(names, tensor))
        else:
            others += len(left[size])
            not_found += [name for names in asked[size] for name in names]
    order = [name for name, _ in named_nodes(model)]
    return Places(found, tuple(sorted(not_found, key=order.index)), others, changed)


def _takers(model) -> list[tuple[list[str], tuple[int, ...]]]:
    """The layers that take the signs of one tensor, which LCE computes once; and their size."""
    takers, inputs = {}, call_inputs(model)
    for name, node in named_nodes(model):
        if is_binary(node.layer, "input_quantizer"):
            size = _packed_shape(node.keras_inputs[0].shape)
            takers.setdefault(inputs[name], ([], size))[0].append(name)
    return list(takers.values())


def _packed_shape(shape) -> tuple[int, ...]:
    return (*shape[1:-1], -(-shape[-1] // 32))


def _changed(model, graph: Graph, operators: dict[str, int]) -> tuple[str, ...]:
    """The layers whose kernel is not in the file, where an unknown one of its size is."""
    known = set(operators.values())
    sizes = collections.Counter(
        graph.shape(operator.inputs[1])
        for index, operator in enumerate(graph.operators)
        if operator.kind == "LceBconv2d" and index not in known
    )
    changed = []
    for name, node in binary_calls(model).items():
        shape = getattr(getattr(node.layer, "kernel", None), "shape", ())
        if name not in operators and len(shape) == 4:
            height, width, channels, filters = shape
            size = (filters, height, width, -(-channels // 32))
            if sizes[size]:
                sizes[size] -= 1
                changed.append(name)
    return tuple(changed)
