"""Importing the package: Keras 2 is selected, or the error says what to do."""

import os
import subprocess
import sys

import pytest


def python(code):
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )


CHECK = (
    "import larq_adambnn.layers, larq; assert tf.keras.Model.__module__.startswith('tf_keras'); "
    "larq_adambnn.models.reactnet_a((32, 32, 3), 10, 0.1); print('works')"
)


@pytest.mark.parametrize(
    "imports",
    [
        "import larq_adambnn; import tensorflow as tf",
        "import tensorflow as tf; import larq_adambnn",
        "import tensorflow as tf; tf.constant(1) + 1; import larq_adambnn",
        "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'; import tensorflow as tf; "
        "tf.keras.Model; import larq_adambnn",
    ],
)
def test_keras_2_is_selected(imports):
    result = python(f"{imports}; {CHECK}")
    assert result.stdout.strip() == "works", result.stderr


@pytest.mark.parametrize(
    "touch",
    ["tf.keras.Model", "from tensorflow import keras; keras.layers", "tf.keras.layers.Dense(1)"],
)
def test_keras_3_already_loaded_is_a_clear_error(touch):
    result = python(f"import tensorflow as tf; {touch}; import larq_adambnn")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: larq_adambnn needs Keras 2")
    assert 'os.environ["TF_USE_LEGACY_KERAS"] = "1"' in last


def test_public_names():
    import larq_adambnn

    for name in larq_adambnn.__all__:
        assert getattr(larq_adambnn, name) is not None
    with pytest.raises(AttributeError):
        larq_adambnn.nosuchname  # noqa: B018


def test_importing_defines_no_flags_and_prints_nothing():
    result = python(
        "import larq_adambnn.runs.training, larq_adambnn.runs.config; from absl import flags; "
        "assert 'weight_decay' not in flags.FLAGS"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
