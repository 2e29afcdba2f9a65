"""Reading .tflite files: their operators, without running them."""

import collections

__all__ = ["operators"]


def operators(tflite: bytes) -> dict[str, int]:
    """Number of operators of each kind in a .tflite, custom ones by their own name.

    Raises:
        ValueError: the bytes are no TFLite model.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    if tflite[4:8] != b"TFL3":
        raise ValueError("Expected a TFLite model (identifier TFL3 at byte 4)")
    model = schema.Model.GetRootAs(tflite, 0)
    names = {
        number: name for name, number in vars(schema.BuiltinOperator).items() if name[0] != "_"
    }
    codes = []
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        codes.append(code.CustomCode().decode() if names[builtin] == "CUSTOM" else names[builtin])
    graph = model.Subgraphs(0)
    counts = collections.Counter(
        codes[graph.Operators(index).OpcodeIndex()] for index in range(graph.OperatorsLength())
    )
    return dict(counts.most_common())
