"""Networks of the user's own, by the function that builds them."""

import importlib
import os
import sys

import tensorflow as tf

from larq_adambnn.models.common import logits_of

__all__ = ["own"]


def own(name: str, input_shape: tuple[int, int, int], num_classes: int) -> tf.keras.Model:
    """The network of a function, named as "package.module:function", with logits as its output.

    The module is imported as Python would in the working directory, and nothing else is.

    Args:
        name: the function takes `input_shape` and `num_classes`, in this order, and returns a
            functional or sequential tf.keras.Model of Larq and Keras layers.
        input_shape: (height, width, channels).
        num_classes: number of logits.

    Raises:
        ValueError: there is no such module or function, it fails, or what it returns is no such
            model.
    """
    build = _function(name)
    try:
        model = build(input_shape, num_classes)
    except Exception as error:
        raise ValueError(
            f"Expected {name}(input_shape={input_shape}, num_classes={num_classes}) to return a "
            f"network. Received: {_told(error)}"
        ) from error
    if not isinstance(model, tf.keras.Model):
        raise ValueError(
            f"Expected {name} to return a tf.keras.Model of Keras 2. Received: "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    try:
        shapes = model.input_shape, model.output_shape
        functional = bool(model.outputs)
    except (AttributeError, RuntimeError):  # subclassed, or without an input
        shapes, functional = (None, None), False
    if not functional:
        raise ValueError(
            f"Expected {name} to return a functional model, or a sequential one with a "
            f"tf.keras.Input. Received: {type(model).__name__}"
        )
    if shapes != ((None, *input_shape), (None, num_classes)):
        raise ValueError(
            f"Expected {name} to return a network from {(None, *input_shape)} to "
            f"{(None, num_classes)}. Received: one from {shapes[0]} to {shapes[1]}"
        )
    return logits_of(model)


def _function(name: str):
    """The function that "package.module:function" names."""
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # after what is installed, which it must not hide
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"Expected {module_name} of {name} to be a module that Python finds and imports, here "
            f"in {folder} too. Received: {_told(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"Expected a function {function_name} in {module.__file__ or module_name}. "
            "Received: " + ("none" if function is None else repr(function))
        )
    return function


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
