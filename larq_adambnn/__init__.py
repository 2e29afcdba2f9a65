"""Two-step training of binary networks (AdamBNN, ReActNet) for Keras and Larq.

Larq and Larq Compute Engine are built on Keras 2, so importing this package
selects it (``TF_USE_LEGACY_KERAS=1``).  Submodules load on first use.
"""

import importlib
import os
import sys

import wrapt

__version__ = "1.0.0"

_SUBMODULES = (
    "analysis",
    "backbone",
    "callbacks",
    "checkpoints",
    "data",
    "distillation",
    "errors",
    "export",
    "inference",
    "layers",
    "losses",
    "models",
    "optimizers",
    "quantizers",
    "runs",
)
__all__ = ["binarization", "binarize", *_SUBMODULES]

_ADVICE = (
    "larq_adambnn needs Keras 2, but Keras 3 is already loaded as tf.keras. Put "
    '`import os; os.environ["TF_USE_LEGACY_KERAS"] = "1"` (or `import larq_adambnn`) '
    "above the first use of tf.keras."
)


def _select_keras_2() -> None:
    """Makes ``tf.keras`` Keras 2; raises ImportError where it is too late for it."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    tf = sys.modules.get("tensorflow")
    if tf is None:
        return
    # A loader stands for tf.keras until it is first used; then it is the module itself.
    if getattr(vars(tf).get("keras"), "_tfll_initialized", True):
        if not tf.keras.Model.__module__.startswith("tf_keras"):
            raise ImportError(_ADVICE)
    elif any(name.startswith("tensorflow.keras") for name in sys.modules):
        raise ImportError(_ADVICE)
    else:
        # TensorFlow chose where `import tensorflow.keras.x` looks when it was
        # imported itself; Larq imports that way, so Keras 2 has to come first.
        spec = importlib.util.find_spec("tf_keras.api._v2.keras")
        tf.__path__.insert(0, os.path.dirname(os.path.dirname(spec.origin)))


_select_keras_2()


@wrapt.when_imported("tf_keras")
def _register(module) -> None:
    """Keras knows every class that it may find in a saved network, once it is there itself."""
    for name in ("larq", "larq_adambnn.losses", "larq_adambnn.optimizers"):
        importlib.import_module(name)


@wrapt.when_imported("larq")
def _register_layers(module) -> None:
    importlib.import_module("larq_adambnn.layers")


def __getattr__(name: str):
    if name in ("binarize", "binarization"):
        return getattr(importlib.import_module(f"{__name__}.layers"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
