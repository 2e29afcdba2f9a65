"""The paper's measurements, figures and studies; figures load matplotlib on first use."""

import importlib

_MODULES = {
    "activation_histograms": "figures",
    "curves": "figures",
    "kernel_values": "figures",
    "learning_rates": "figures",
    "weight_histograms": "figures",
    "weight_peaks": "figures",
    "draw_surfaces": "surfaces",
    "filter_normalized": "surfaces",
    "loss_surface": "surfaces",
    "trajectory": "surfaces",
    "toy_surface": "toy",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
