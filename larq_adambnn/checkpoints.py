"""PyTorch's checkpoints of the published networks, in and out.

A state_dict here is ``{PyTorch's name: NumPy array}``.  `load_state_dict` and
`to_state_dict` are each other's inverse, bit for bit, for models of the state_dict's
floating-point type.

What differs from PyTorch and cannot be hidden: its sign(0) is 0 and Larq's +1, and its
running variances have the factor n / (n - 1) that Keras leaves out in float64.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from larq_adambnn.files import replace_file
from larq_adambnn.layers import BinaryConv2D, Rotate180, RPReLU, Shift
from larq_adambnn.torch_files import import_torch, load_torch

__all__ = [
    "count_zeros",
    "load_state_dict",
    "load_torch",
    "save_torch",
    "to_state_dict",
]

# The PyTorch module of each layer; RPReLU is three of them.  * is the block: its number
# in reactnet_a, stage.index in the ResNets.
_MODULES = {
    "reactnet_a": {
        "stem_conv": "feature.0.conv1",
        "stem_bn": "feature.0.bn1",
        "block*_shift1": "feature.*.move11",
        "block*_conv3x3": "feature.*.binary_3x3",
        "block*_bn1": "feature.*.bn1",
        "block*_rprelu1": ("feature.*.move12", "feature.*.prelu1", "feature.*.move13"),
        "block*_shift2": "feature.*.move21",
        "block*_conv1x1": "feature.*.binary_pw",
        "block*_conv1x1a": "feature.*.binary_pw_down1",
        "block*_conv1x1b": "feature.*.binary_pw_down2",
        "block*_bn2": "feature.*.bn2",
        "block*_bn2a": "feature.*.bn2_1",
        "block*_bn2b": "feature.*.bn2_2",
        "block*_rprelu2": ("feature.*.move22", "feature.*.prelu2", "feature.*.move23"),
        "classifier": "fc",
    },
    "reactnet18": {
        "stem_conv": "conv1",
        "stem_bn": "bn1",
        "block*_shift": "layer*.move0",
        "block*_conv3x3": "layer*.binary_conv",
        "block*_bn": "layer*.bn1",
        "block*_downsample_conv": "layer*.downsample.1",
        "block*_downsample_bn": "layer*.downsample.2",
        "block*_rprelu": ("layer*.move1", "layer*.prelu", "layer*.move2"),
        "classifier": "fc",
    },
    "resnet34": {
        "stem_conv": "conv1",
        "stem_bn": "bn1",
        "block*_conv1": "layer*.conv1",
        "block*_bn1": "layer*.bn1",
        "block*_conv2": "layer*.conv2",
        "block*_bn2": "layer*.bn2",
        "block*_downsample_conv": "layer*.downsample.0",
        "block*_downsample_bn": "layer*.downsample.1",
        "classifier": "fc",
    },
}
_STAGES = {"reactnet18": (4, 4, 4, 4), "resnet34": (3, 4, 6, 3)}  # blocks of each

# The variables of each kind of layer with their names in the PyTorch module
_VARIABLES = {
    tf.keras.layers.BatchNormalization: {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    },
    tf.keras.layers.Conv2D: {"kernel": "weight"},
    tf.keras.layers.Dense: {"kernel": "weight", "bias": "bias"},
    Shift: {"shift": "bias"},
}
_COUNTER = "num_batches_tracked"
_LISTED = 5  # names in an error message


class _Parameter(NamedTuple):
    """A variable and the shape of its twin in PyTorch."""

    layer: tf.keras.layers.Layer
    variable: tf.Variable
    shape: tuple[int, ...]


def load_state_dict(model: tf.keras.Model, state_dict: Mapping[str, np.ndarray]) -> tf.keras.Model:
    """Gives a model the weights of a PyTorch state_dict; all of them, or none if one is wrong.

    Takes the naming of AdamBNN (4-D kernels named `weight`) and that of ReActNet's second
    step (kernels flattened to (N, 1), named `weights`).  The counters num_batches_tracked
    have no use here; the layers keep them, and the naming, as plain attributes for
    `to_state_dict`.  A state_dict of PyTorch before 0.4.1, which has no counters, will do.

    Args:
        model: a reactnet_a, reactnet18 or resnet34 of any width and number of classes.
        state_dict: arrays by PyTorch's names.

    Returns:
        The same model.

    Raises:
        ValueError: a name is missing or unexpected, a shape is wrong, a value is not finite,
            or the model pads otherwise than PyTorch does.
    """
    _check_padding(model)
    _check_sizes(model)
    parameters, counters = _parameters(model), _counters(model)
    flat = {
        name
        for name, parameter in parameters.items()
        if isinstance(parameter.layer, BinaryConv2D) and f"{name}s" in state_dict
    }
    names = {name: f"{name}s" if name in flat else name for name in parameters}
    if any(name in state_dict for name in counters):
        names |= {name: name for name in counters}
    arrays = {name: np.asarray(state_dict[key]) for name, key in names.items() if key in state_dict}
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    shapes |= {name: (int(np.prod(shapes[name])), 1) for name in flat}
    _check_names(model.name, names, shapes, arrays, state_dict)
    values = {name: _from_torch(model, arrays[name], parameters[name]) for name in parameters}
    infinite = [names[name] for name, value in values.items() if not np.isfinite(value).all()]
    if infinite:
        raise ValueError(
            f"Expected finite weights. Received: NaN or infinity in {_listed(infinite)}"
        )
    for name, parameter in parameters.items():
        parameter.variable.assign(values[name])
        if isinstance(parameter.layer, BinaryConv2D):
            parameter.layer.flat_in_torch = name in flat
    for name, layer in counters.items():
        layer.num_batches_tracked = int(arrays.get(name, 0))
    return model


def to_state_dict(
    model: tf.keras.Model, *, flat_kernels: bool | None = None
) -> dict[str, np.ndarray]:
    """The PyTorch state_dict of a model: the inverse of `load_state_dict`.

    The published code then computes what the model computes.  It has a stem of stride 2,
    which the ReActNets have from 64 pixels on.

    Args:
        model: a reactnet_a, reactnet18 or resnet34.
        flat_kernels: True writes the binary kernels as ReActNet's second step stores them,
            (N, 1) and named `weights`; False as AdamBNN does, 4-D and named `weight`; None
            as they were loaded, and as AdamBNN does if they were not.

    Returns:
        Arrays of the model's floating-point type; num_batches_tracked is what was loaded,
        or 0.

    Raises:
        ValueError: the model is none of those, or pads otherwise than PyTorch does.
    """
    _check_padding(model)
    state_dict = {}
    for name, parameter in _parameters(model).items():
        value = _to_torch(model, parameter)
        flat = getattr(parameter.layer, "flat_in_torch", False)
        if isinstance(parameter.layer, BinaryConv2D) and (
            flat if flat_kernels is None else flat_kernels
        ):
            name, value = f"{name}s", value.reshape(-1, 1)
        state_dict[name] = value
    for name, layer in _counters(model).items():
        state_dict[name] = np.array(getattr(layer, _COUNTER, 0), np.int64)
    return state_dict


def save_torch(
    model: tf.keras.Model, path: str | os.PathLike, *, flat_kernels: bool | None = None
) -> None:
    """Writes a .pth file that the published PyTorch code loads.

    The ReActNets' holds what the published training resumes from: the state_dict under
    "module." names, and the last epoch before the first.  A resnet34's is the bare
    state_dict, as torchvision's are.

    Raises:
        ImportError: torch is not installed.
        ValueError: as `to_state_dict`, whose `flat_kernels` this takes too.
    """
    torch = import_torch()
    state_dict = {
        name: torch.from_numpy(value)
        for name, value in to_state_dict(model, flat_kernels=flat_kernels).items()
    }
    content = state_dict
    if model.name != "resnet34":
        content = {
            "epoch": -1,
            "best_top1_acc": 0.0,
            "state_dict": {f"module.{name}": tensor for name, tensor in state_dict.items()},
        }
    with replace_file(pathlib.Path(path)) as temporary:
        torch.save(content, temporary)


def count_zeros(model: tf.keras.Model) -> tuple[int, int]:
    """(exact zeros, all weights) in the binary kernels of a model.

    At a zero PyTorch's sign is 0 and the one here +1, so that outputs differ a little.
    """
    kernels = [layer.kernel for layer in model.layers if isinstance(layer, BinaryConv2D)]
    zeros = sum(int(np.count_nonzero(kernel.numpy() == 0)) for kernel in kernels)
    return zeros, sum(kernel.shape.num_elements() for kernel in kernels)


def _modules(model) -> Iterable[tuple[tf.keras.layers.Layer, str | tuple[str, ...]]]:
    """Every layer that has variables, with the PyTorch modules that hold them."""
    if model.name not in _MODULES:
        raise ValueError(f"Expected one of {', '.join(_MODULES)}. Received: {model.name}")
    stages = _STAGES.get(model.name, ())
    places = [f"{stage}.{i}" for stage, n in enumerate(stages, start=1) for i in range(n)]
    for layer in model.layers:
        if not layer.variables:
            continue
        number = re.match(r"block(\d+)", layer.name)
        found = _MODULES[model.name][re.sub(r"^block\d+", "block*", layer.name)]
        if number:
            place = places[int(number[1]) - 1] if places else number[1]
            if isinstance(found, str):
                found = found.replace("*", place)
            else:
                found = tuple(module.replace("*", place) for module in found)
        yield layer, found


def _parameters(model) -> dict[str, _Parameter]:
    """Every variable of a model by its name in PyTorch."""
    parameters = {}
    for layer, modules in _modules(model):
        if isinstance(layer, RPReLU):
            before, slope, after = modules
            variables = {
                f"{before}.bias": layer.shift_in,
                f"{slope}.weight": layer.slope,
                f"{after}.bias": layer.shift_out,
            }
        else:
            names = next(names for kind, names in _VARIABLES.items() if isinstance(layer, kind))
            variables = {
                f"{modules}.{there}": getattr(layer, here) for here, there in names.items()
            }
        for name, variable in variables.items():
            shape = tuple(variable.shape)
            if len(shape) == 4:
                shape = tuple(shape[axis] for axis in (3, 2, 0, 1))
            elif len(shape) == 2:
                shape = shape[::-1]
            elif isinstance(layer, Shift | RPReLU) and name.endswith(".bias"):
                shape = (1, *shape, 1, 1)
            parameters[name] = _Parameter(layer, variable, shape)
    return parameters


def _counters(model) -> dict[str, tf.keras.layers.Layer]:
    """The batch norms by the names of their counters in PyTorch."""
    return {
        f"{module}.{_COUNTER}": layer
        for layer, module in _modules(model)
        if isinstance(layer, tf.keras.layers.BatchNormalization)
    }


def _reversed(model) -> bool:
    """Whether a model reverses its images, so that its kernels are PyTorch's, reversed."""
    return any(isinstance(layer, Rotate180) for layer in model.layers)


def _from_torch(model, value: np.ndarray, parameter: _Parameter) -> np.ndarray:
    """The value of a variable from its twin's."""
    variable = parameter.variable
    value = value.reshape(parameter.shape)
    if variable.shape.rank == 4:
        value = value.transpose(2, 3, 1, 0)
        value = value[::-1, ::-1] if _reversed(model) else value
    elif variable.shape.rank == 2:
        value = value.T
    with np.errstate(over="ignore"):  # a value that overflows is reported as infinite
        return value.reshape(variable.shape).astype(variable.dtype.name)


def _to_torch(model, parameter: _Parameter) -> np.ndarray:
    """The value of a variable's twin: the inverse of `_from_torch`."""
    value = parameter.variable.numpy()
    if value.ndim == 4:
        value = value[::-1, ::-1] if _reversed(model) else value
        value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2:
        value = value.T
    return np.ascontiguousarray(value).reshape(parameter.shape)


def _check_names(network, names, shapes, arrays, state_dict) -> None:
    """Raises ValueError unless the state_dict has exactly these names, shapes and types."""
    missing = [key for name, key in names.items() if name not in arrays]
    known = set(names.values())
    unexpected = [repr(str(key)[:80])[1:-1] for key in state_dict if key not in known]
    misshapen = []
    for name, array in arrays.items():
        shape = shapes.get(name, ())
        if array.shape != shape:
            misshapen.append(f"{names[name]} {array.shape} instead of {shape}")
        elif array.dtype.kind != ("f" if name in shapes else "i"):
            misshapen.append(f"{names[name]} of type {array.dtype}")
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_listed(items)}" for kind, items in problems.items() if items)
        raise ValueError(f"Expected the state_dict of this {network}. Received: {found}")


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def _check_padding(model) -> None:
    if any(getattr(layer, "pad_values", 0) for layer in model.layers):
        raise ValueError(
            "Expected a network that pads with zeros, as PyTorch's does. Received: pad_values=1"
        )


def _check_sizes(model) -> None:
    """Raises ValueError if the reversed images would not be padded as PyTorch pads them."""
    for layer in model.layers if _reversed(model) else ():
        if max(getattr(layer, "strides", (1,))) == 1:
            continue
        height, width = layer.input_shape[1:3]
        if height % 2 or width % 2:
            raise ValueError(
                "Expected even sizes before every stride of 2, such as image sizes that are "
                "multiples of 32: at odd ones PyTorch's average pool drops a row that the "
                "convolution beside it keeps, and the published network fails. "
                f"Received: {height} x {width} at {layer.name}"
            )
