"""What an iteration computes and moves, and how fast this machine does either at best."""

import time
from collections.abc import Callable, Collection, Iterator

import tensorflow as tf
from tensorflow.python.ops.handle_data_util import get_resource_handle_data

from larq_adambnn.kernels import winograd

__all__ = ["limits", "work"]

_ROUNDS = 5
_SIDE, _LARGE = 4096, 2**26  # of the matrices that are multiplied; values of the tensor that moves
# What neither computes nor moves values
_FREE = (
    *("Const", "Identity", "IdentityN", "NoOp", "Placeholder", "Reshape", "Shape", "ShapeN"),
    *("ExpandDims", "Squeeze", "StopGradient", "ReadVariableOp", "AssignVariableOp"),
)
# Products of matrices, and what says whether the first one is transposed
_TRANSPOSED = {"MatMul": "transpose_a", "BatchMatMulV2": "adj_x", "BatchMatMulV3": "adj_x"}
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_COMPILED = "_XlaMustCompile"  # attribute of those that XLA compiles


def work(graph: tf.Graph, ran: Collection[str] | None = None) -> tuple[float, float]:
    """FLOPs of the convolutions and matrix products in a graph, and bytes of all else.

    An operator is taken to read each of its inputs and to write each of its outputs once, and an
    optimizer's to read and to write its variables.  Numbers and booleans count, integers do not.
    Winograd's convolutions count with the products that they consist of, and those alone, and what
    XLA compiles as one operator.

    Args:
        graph: of a traced function. What has no static shape and what is in a branch is left out.
        ran: names of the operators that are executed, since some are computed once when the graph
            is optimized; only they move bytes. None takes all.
    """
    flops = size = 0.0
    for name, operator in _operators(graph):
        if (found := _flops(operator)) is not None:
            flops += found
        elif winograd.SCOPE not in name.split("/") and (
            ran is None or name in ran or operator.type in _CALLS
        ):
            inputs = {tensor.ref(): tensor for tensor in operator.inputs}
            size += sum(map(_bytes, [*inputs.values(), *operator.outputs]))
    return flops, size


def _operators(graph: tf.Graph, scope: str = "") -> Iterator[tuple[str, tf.Operation]]:
    """The operators with the names that they have where functions are put into the graph."""
    for operator in graph.get_operations():
        name = scope + operator.name
        if operator.type in _CALLS and not operator.node_def.attr[_COMPILED].b:
            called = graph._get_function(operator.get_attr("f").name).graph
            yield from _operators(called, f"{name}/")
        elif operator.type not in _FREE:
            yield name, operator


def _flops(operator: tf.Operation) -> int | None:
    """Two for each product of two numbers; None of other operators."""
    kind = operator.type.replace("DepthwiseConv2dNative", "Conv2D")
    if transposed := _TRANSPOSED.get(kind):
        inner = operator.inputs[0].shape[-2 if operator.get_attr(transposed) else -1]
        return 2 * (inner or 0) * _values(operator.outputs[0])
    if kind == "Conv2D":
        kernel, outputs = operator.inputs[1], operator.outputs[0]
    elif kind == "Conv2DBackpropInput":
        kernel, outputs = operator.inputs[1:3]
    elif kind == "Conv2DBackpropFilter":
        kernel, outputs = operator.outputs[0], operator.inputs[2]
    else:
        return None
    shape = kernel.shape[: 3 if kind == operator.type else 2]
    products = shape.num_elements() or 0  # in an output
    return 2 * products * _values(outputs)


def _values(tensor: tf.Tensor) -> int:
    return tensor.shape.num_elements() or 0


def _bytes(tensor: tf.Tensor) -> int:
    if tensor.dtype == tf.resource:  # a variable, which is read and written, or none
        return sum(
            2
            * (tf.TensorShape(variable.shape).num_elements() or 0)
            * tf.as_dtype(variable.dtype).size
            for variable in get_resource_handle_data(tensor).shape_and_type
        )
    counts = tensor.dtype.is_floating or tensor.dtype.is_bool
    return _values(tensor) * tensor.dtype.size if counts else 0


def limits(dtype: tf.DType) -> tuple[float, float]:
    """FLOPs a second of a product of two large matrices, bytes a second that an addition moves.

    Args:
        dtype: of the matrices and of the large tensor.
    """
    matrix = tf.ones((_SIDE, _SIDE), dtype)
    large = tf.ones((_LARGE,), dtype)
    product = _fastest(lambda: tf.linalg.matmul(matrix, matrix)[0, 0])
    addition = _fastest(lambda: (large + 1)[0])
    return 2 * _SIDE**3 / product, 2 * _LARGE * dtype.size / addition


def _fastest(function: Callable[[], tf.Tensor]) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        function().numpy()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
