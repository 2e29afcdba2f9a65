"""How every figure looks: sizes, one colour or colour map for each meaning, saving."""

import pathlib

from matplotlib.figure import Figure

__all__ = ["LOSS_MAP", "colors", "new_figure", "save"]

LOSS_MAP = "viridis"  # losses, wherever they are a surface
WEIGHTS = "tab:blue"  # single weights, updates and activations
CAM = "tab:red"
SATURATED = "tab:orange"
_OPTIMIZERS = {
    "adam": "tab:blue",
    "sgd": "tab:red",
    "rmsprop": "tab:green",
    "amsgrad": "tab:purple",
    "adamw": "tab:cyan",
}
_OTHERS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:gray")


def colors(names) -> dict[str, str]:
    """A colour for each curve; an optimizer has the same in every figure."""
    if all(name in _OPTIMIZERS for name in names):
        return {name: _OPTIMIZERS[name] for name in names}
    return {name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(names)}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, laid out so that no texts overlap."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a PNG."""
    figure.savefig(path, dpi=150, format="png")
