"""What arguments may be, and the one line that says so when another came."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "FLAG",
    "PATH",
    "TEXT",
    "Kind",
    "array",
    "check_fields",
    "either",
    "expect",
    "field",
    "function",
    "instance",
    "names",
    "number",
    "one_of",
    "optional",
    "required",
    "several",
    "whole",
]

_LONGEST = 100  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an argument may be.

    Attributes:
        expected: in words that follow "to be".
        fits: whether a value is that; of any type.
    """

    expected: str
    fits: Callable[[Any], bool]


def expect(name: str, value: Any, kind: Kind) -> None:
    """Raises ValueError, in one line, unless an argument is what it may be."""
    if not kind.fits(value):
        raise ValueError(f"Expected {name} to be {kind.expected}. Received: {name}={_shown(value)}")


def field(default: Any, kind: Kind) -> Any:
    """A field of a dataclass that `check_fields` checks."""
    return dataclasses.field(default=default, metadata={"kind": kind})


def required(kind: Kind) -> Any:
    """A field without a default, which `check_fields` checks."""
    return dataclasses.field(metadata={"kind": kind})


def check_fields(instance: Any) -> None:
    """Raises ValueError unless every `field` and `required` of a dataclass is what it may be."""
    for declared in dataclasses.fields(instance):
        if "kind" in declared.metadata:
            expect(declared.name, getattr(instance, declared.name), declared.metadata["kind"])


def _shown(value: Any) -> str:
    """A value in one short line: arrays and tensors by their shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dtype = getattr(value.dtype, "name", value.dtype)
        return f"<{type(value).__name__} of {dtype} {tuple(value.shape)}>"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _bounds(lower, upper, above, below) -> tuple[str, Callable[[Any], bool]]:
    """The words of a range, and whether a number is in it."""
    words = [
        f"{word} {bound}"
        for word, bound in (
            ("of at least", lower),
            ("above", above),
            ("below", below),
            ("of at most", upper),
        )
        if bound is not None
    ]
    text = f"from {lower} to {upper}" if None not in (lower, upper) else " and ".join(words)
    return f" {text}".rstrip(), lambda value: (
        (lower is None or value >= lower)
        and (upper is None or value <= upper)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def whole(lower: int | None = None, upper: int | None = None) -> Kind:
    """A whole number, of Python or NumPy, within inclusive bounds."""
    text, inside = _bounds(lower, upper, None, None)
    return Kind(f"a whole number{text}", lambda v: _is_number(v, (int, np.integer)) and inside(v))


def number(
    lower: float | None = None,
    upper: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """A finite number; `above` and `below` are exclusive bounds."""
    text, inside = _bounds(lower, upper, above, below)
    kinds = (int, float, np.integer, np.floating)
    return Kind(f"a finite number{text}", lambda v: _is_number(v, kinds) and inside(v))


def one_of(*choices: str | float) -> Kind:
    """One of a few texts or numbers."""
    kinds = (str, int, float, np.number)
    return Kind(
        f"one of {', '.join(map(str, choices))}",
        lambda v: isinstance(v, kinds) and not isinstance(v, bool) and v in choices,
    )


def optional(kind: Kind) -> Kind:
    """What a kind is, or None."""
    return Kind(f"{kind.expected} or None", lambda v: v is None or kind.fits(v))


def either(*kinds: Kind) -> Kind:
    """What one of some kinds is."""
    return Kind(
        " or ".join(kind.expected for kind in kinds), lambda v: any(k.fits(v) for k in kinds)
    )


def instance(kinds: type | tuple[type, ...], expected: str) -> Kind:
    """An object of a type."""
    return Kind(expected, lambda v: isinstance(v, kinds))


def several(kind: Kind, expected: str, *, length: int | None = None) -> Kind:
    """A list or tuple, not empty unless its length says so, of one kind."""

    def fits(value):
        return (
            isinstance(value, list | tuple)
            and len(value) == (length or max(1, len(value)))
            and all(map(kind.fits, value))
        )

    return Kind(expected, fits)


def names(*, distinct: bool = False) -> Kind:
    """Texts in a list or tuple, at least one."""

    def fits(value):
        texts = several(TEXT, "").fits(value)
        return texts and (not distinct or len(set(value)) == len(value))

    return Kind(f"{'different ' if distinct else ''}names in a list or tuple, at least one", fits)


def array(shape: str) -> Kind:
    """An array or tensor of numbers, not empty, of as many axes as "(B, H, W, C)" names."""

    def fits(value):
        dtype = getattr(value, "dtype", None)
        return (
            dtype is not None
            and np.dtype(getattr(dtype, "as_numpy_dtype", dtype)).kind in "biuf"
            and len(value.shape) == shape.count(",") + 1
            and 0 not in tuple(value.shape)
        )

    return Kind(f"an array {shape} of numbers, not empty", fits)


FLAG = Kind("True or False", lambda v: isinstance(v, bool | np.bool_))
TEXT = Kind("text", lambda v: isinstance(v, str))
PATH = Kind("a path", lambda v: isinstance(v, str | os.PathLike))
function = Kind("a function", callable)
