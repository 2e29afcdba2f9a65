"""Reading and changing .tflite files, without running them."""

import copy
import dataclasses
import functools
import warnings
from collections.abc import Sequence

import flatbuffers
import numpy as np
import tensorflow as tf

from larq_adambnn.padding import same_padding

__all__ = [
    "Graph",
    "Operator",
    "compact",
    "float_outputs",
    "named_outputs",
    "operators",
    "output_names",
    "single_operator",
    "unpadded",
    "with_outputs",
]

_SAME, _VALID = 0, 1  # TFLite's enum Padding


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator of a .tflite.

    Attributes:
        kind: its name in TFLite's schema, or its own if it is custom.
        inputs, outputs: indices of tensors; -1 stands for an input that is left out.
        options: of LCE's operators, their settings.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict


class Graph:
    """The operators and tensors of a .tflite with one subgraph.

    Raises:
        ValueError: the bytes are no valid TFLite model, or it has several subgraphs.
    """

    def __init__(self, tflite: bytes):
        _verify(tflite)
        schema = _schema()
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite, 0))
        graphs = self.model.subgraphs or []
        if len(graphs) != 1:
            raise ValueError(f"Expected a TFLite model of one graph. Received: {len(graphs)}")
        (self.graph,) = graphs
        try:
            self.inputs, self.outputs = list(self.graph.inputs), list(self.graph.outputs)
            self.operators = [self._operator(op) for op in self.graph.operators]
            self._check()
        except Exception as error:  # fields that are missing or of other meanings than they say
            raise ValueError(f"{_damaged(tflite)} ({type(error).__name__}: {error})") from error

    def _operator(self, op) -> Operator:
        return Operator(
            self._kind(op.opcodeIndex), tuple(op.inputs), tuple(op.outputs), _options(op)
        )

    def _check(self) -> None:
        """Raises an error where a number is none of a tensor or of a buffer."""
        used = [*self.inputs, *self.outputs]
        for operator in self.operators:
            used += [operator.outputs[0], *operator.outputs]
            used += [tensor for tensor in operator.inputs if tensor != -1]
        missing = [tensor for tensor in used if not 0 <= tensor < len(self.graph.tensors)]
        if missing:
            raise ValueError(f"no tensor {missing[0]}")
        for index, tensor in enumerate(self.graph.tensors):
            if not 0 <= tensor.buffer < len(self.model.buffers):
                raise ValueError(f"no buffer {tensor.buffer}")
            self.dtype(index)

    def shape(self, tensor: int) -> tuple[int, ...]:
        shape = self.graph.tensors[tensor].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def dtype(self, tensor: int) -> np.dtype:
        return np.dtype(_types()[self.graph.tensors[tensor].type])

    def scale(self, tensor: int) -> np.ndarray | None:
        """The scales of a quantized tensor: one, or one per channel; None if it has none."""
        quantization = self.graph.tensors[tensor].quantization
        scale = None if quantization is None else quantization.scale
        return None if scale is None or len(scale) == 0 else np.asarray(scale)

    def name(self, tensor: int) -> str:
        return (self.graph.tensors[tensor].name or b"").decode(errors="replace")

    def constant(self, tensor: int) -> np.ndarray | None:
        """The values of a constant tensor; None if it is none."""
        data = self._data(tensor)
        return None if data is None else data.view(self.dtype(tensor)).reshape(self.shape(tensor))

    def weight_bytes(self, operator: Operator) -> int:
        """Bytes of an operator's constants."""
        data = [self._data(tensor) for tensor in operator.inputs]
        return sum(len(values) for values in data if values is not None)

    def _data(self, tensor: int) -> np.ndarray | None:
        if tensor < 0:
            return None
        data = self.model.buffers[self.graph.tensors[tensor].buffer].data
        return None if data is None or len(data) == 0 else np.asarray(data)

    def _kind(self, index: int) -> str:
        code = self.model.operatorCodes[index]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = _names()[builtin]
        return code.customCode.decode(errors="replace") if name == "CUSTOM" else name

    def to_bytes(self) -> bytes:
        """The file with the changes made to `model`."""
        builder = _Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Writes what is equal once; offsets to it may be used again and again."""

    def __init__(self, size: int):
        super().__init__(size)
        self.written = {}

    def CreateNumpyVector(self, x):  # noqa: N802 (its name in flatbuffers)
        return self.once(
            (x.dtype.str, x.tobytes()), lambda: super(_Builder, self).CreateNumpyVector(x)
        )

    def once(self, key, write):
        if key not in self.written:
            self.written[key] = write()
        return self.written[key]


class _Shared:
    """A part of a model that has only numbers in it, to be written once for all equal ones."""

    def __init__(self, part):
        self._part = part

    def Pack(self, builder: _Builder) -> int:  # noqa: N802 (its name in the schema)
        key = (type(self._part), *vars(self._part).items())
        return builder.once(key, lambda: self._part.Pack(builder))


def operators(tflite: bytes) -> dict[str, int]:
    """Number of operators of each kind in a .tflite, the most frequent first.

    Raises:
        ValueError: the bytes are no TFLite model.
    """
    counts: dict[str, int] = {}
    for operator in Graph(tflite).operators:
        counts[operator.kind] = counts.get(operator.kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def compact(tflite: bytes) -> bytes:
    """The same network in a smaller file: 23 kB less for ReActNet-A.

    It leaves out a buffer for each tensor that is computed, and what only a person would
    read, except for the names of inputs, outputs and binary convolutions.
    """
    graph = Graph(tflite)
    names = {index: graph.name(index) for index in (*graph.inputs, *graph.outputs)}
    for op in graph.operators:
        if op.kind == "LceBconv2d":  # "model/layer/operation;model/..." of all that it does
            path = graph.name(op.outputs[0]).split(";")[0].split("/")
            names.setdefault(op.outputs[0], path[-2] if len(path) > 1 else path[0])
    kept = {0: 0}  # buffer 0 is the empty one
    for index, tensor in enumerate(graph.graph.tensors):
        tensor.name = names.get(index)
        tensor.hasRank = tensor.hasRank and not graph.shape(index)  # it is for scalars
        quantization = tensor.quantization
        if quantization is not None:
            quantization.min = quantization.max = None
            if graph.scale(index) is None:
                tensor.quantization = None
        if graph.constant(index) is None:
            tensor.buffer = 0
        tensor.buffer = kept.setdefault(tensor.buffer, len(kept))
    for entry in graph.model.metadata or []:
        entry.buffer = kept.setdefault(entry.buffer, len(kept))
    graph.model.buffers = [graph.model.buffers[index] for index in kept]
    for op in graph.graph.operators:
        if op.builtinOptions is not None and all(
            isinstance(value, int | float | bool) for value in vars(op.builtinOptions).values()
        ):
            op.builtinOptions = _Shared(op.builtinOptions)
    return graph.to_bytes()


def named_outputs(tflite: bytes, names: Sequence[str]) -> bytes:
    """The same file with its outputs in the order of a model, and named after those.

    The converter sorts them in another way; its signature tells which is which.

    Args:
        tflite: a file whose signature has the outputs output_0, output_1 and so on.
        names: theirs now, in this order.
    """
    graph = Graph(tflite)
    (signature,) = graph.model.signatureDefs
    entries = {entry.name: entry for entry in signature.outputs}
    graph.graph.outputs = []
    for number, name in enumerate(names):
        entry = entries[f"output_{number}".encode()]
        entry.name = name.encode()
        graph.graph.tensors[entry.tensorIndex].name = entry.name
        graph.graph.outputs.append(entry.tensorIndex)
    return graph.to_bytes()


def output_names(tflite: bytes) -> list[str]:
    """The names of a file's outputs in their order, which is that of its Keras model."""
    graph = Graph(tflite)
    return [graph.name(tensor) for tensor in graph.outputs]


def unpadded(tflite: bytes) -> bytes:
    """The same network, in which no operator says that it pads where it adds nothing.

    XNNPACK computes a "same" convolution or pool wrongly whose kernel is smaller than its
    stride.
    """
    graph = Graph(tflite)
    for raw, operator in zip(graph.graph.operators, graph.operators, strict=True):
        options = raw.builtinOptions
        if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            sizes = graph.shape(operator.inputs[1])[1:3]
            dilations = options.dilationHFactor, options.dilationWFactor
            spans = [(size - 1) * d + 1 for size, d in zip(sizes, dilations, strict=True)]
        elif operator.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
            spans = options.filterHeight, options.filterWidth
        else:
            continue
        images = graph.shape(operator.inputs[0])[1:3]
        strides = options.strideH, options.strideW
        if not any(map(any, map(same_padding, images, spans, strides))):
            options.padding = _VALID
    return graph.to_bytes()


def with_outputs(tflite: bytes, tensors: list[int]) -> bytes:
    """The same file that gives further tensors after its outputs."""
    graph = Graph(tflite)
    graph.graph.outputs = [*graph.outputs, *tensors]
    graph.model.signatureDefs = None  # they name the former outputs
    return graph.to_bytes()


def single_operator(tflite: bytes, index: int, count: int) -> bytes:
    """A file that holds one operator of another several times, on the same input."""
    graph = Graph(tflite)
    (op,) = graph.graph.operators[index : index + 1]
    copies = [op]
    for _ in range(count - 1):
        clone = copy.copy(op)
        clone.outputs = []
        for tensor in op.outputs:
            clone.outputs.append(len(graph.graph.tensors))
            graph.graph.tensors.append(copy.copy(graph.graph.tensors[tensor]))
        copies.append(clone)
    graph.graph.operators = copies
    graph.graph.inputs = [t for t in op.inputs if t >= 0 and graph._data(t) is None]
    graph.graph.outputs = list(op.outputs)
    graph.model.signatureDefs = None
    return graph.to_bytes()


def float_outputs(tflite: bytes) -> tuple[bytes, list[str]]:
    """Lets the binary convolutions that cannot give int8 give float32, to be quantized after.

    LCE computes the edges of a binary convolution that pads with zeros in float32 alone;
    its converter writes int8 outputs all the same, which its interpreter then refuses.

    Returns:
        The changed file, and the names of the outputs that are float32 now.
    """
    graph = Graph(tflite)
    schema, model, names = _schema(), graph.model, []
    changed = []
    for op, operator in zip(graph.graph.operators, graph.operators, strict=True):
        changed.append(op)
        if not _pads_zeros(graph, operator) or graph.dtype(operator.outputs[0]) != np.int8:
            continue
        output = graph.graph.tensors[operator.outputs[0]]
        names.append(graph.name(operator.outputs[0]))
        real = schema.TensorT()
        real.shape, real.type, real.hasRank = output.shape, schema.TensorType.FLOAT32, True
        real.name, real.buffer = output.name, 0
        quantize = schema.OperatorT()
        quantize.opcodeIndex = _opcode(model, schema.BuiltinOperator.QUANTIZE)
        quantize.inputs, quantize.outputs = [len(graph.graph.tensors)], [operator.outputs[0]]
        op.outputs = [len(graph.graph.tensors)]
        graph.graph.tensors.append(real)
        changed.append(quantize)
    graph.graph.operators = changed
    return (graph.to_bytes() if names else tflite), names


def _pads_zeros(graph: Graph, operator: Operator) -> bool:
    options = operator.options
    return (
        operator.kind == "LceBconv2d"
        and options["padding"] == _SAME
        and options["pad_values"] == 0
        and graph.shape(operator.inputs[1])[1:3] != (1, 1)
    )


def _opcode(model, builtin: int) -> int:
    """The index of a built-in operator in the model's table, which it is added to if missing."""
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            return index
    code = _schema().OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _damaged(tflite: bytes) -> str:
    return f"Expected a TFLite model. Received: {len(tflite):,} bytes, truncated or damaged"


def _verify(tflite: bytes) -> None:
    """Raises ValueError unless every offset in the file is inside it."""
    if tflite[4:8] != b"TFL3":
        raise ValueError(
            f"Expected a TFLite model. Received: {len(tflite):,} bytes without its mark TFL3 at "
            "byte 4"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its deprecation
            tf.lite.Interpreter(model_content=tflite)
    except ValueError as error:
        raise ValueError(_damaged(tflite)) from error


def _options(op) -> dict:
    from flatbuffers import flexbuffers

    if op.customOptions is None or len(op.customOptions) == 0:
        return {}
    return flexbuffers.Loads(bytes(bytearray(op.customOptions)))


def _schema():
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


@functools.cache
def _names() -> dict[int, str]:
    codes = vars(_schema().BuiltinOperator)
    return {number: name for name, number in codes.items() if name[0] != "_"}


@functools.cache
def _types() -> dict[int, str]:
    """NumPy's names of the schema's types."""
    types = {
        number: name.lower()
        for name, number in vars(_schema().TensorType).items()
        if name[0] != "_"
    }
    return {number: {"string": "object"}.get(name, name) for number, name in types.items()}
