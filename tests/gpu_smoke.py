"""A few training iterations on a GPU against the processor's: `python tests/gpu_smoke.py`.

It takes some minutes, writes nothing, and prints a report to send with a question or a result.
Without a GPU it says so, and compares the processor with itself, whose convolutions in float16 take
most of the time then: a minute or two, and more where other programs run.
"""

import os
import pathlib
import platform
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import tensorflow as tf

import larq_adambnn  # noqa: F401  (selects Keras 2)
from larq_adambnn import callbacks, layers, losses, models, optimizers
from larq_adambnn.distillation import Distiller
from larq_adambnn.runs import config, strategies

STEPS, BATCH = 4, 16
# What is trained on the card: precision, --tf32, --jit_compile, and the largest difference of a
# loss from the processor's in float64, as a share.  Signs that rounding flips are within it.
ROWS = {
    "float64": ("float64", False, False, 1e-7),
    "float32": ("float32", False, False, 5e-2),
    "float32, XLA": ("float32", False, True, 5e-2),
    "float32, TF32": ("float32", True, False, 0.1),
    "bfloat16": ("mixed_bfloat16", False, False, 0.2),
    "float16": ("mixed_float16", False, False, 0.2),
    "float16, XLA": ("mixed_float16", False, True, 0.2),
}


def reactnet():
    return models.build("reactnet18", input_shape=(32, 32, 3), num_classes=10, width=0.25)


class Losses(tf.keras.callbacks.Callback):
    """The loss of each iteration, and the seconds of all but the first."""

    def on_train_begin(self, logs=None):
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        before = sum(self.values)
        self.values.append(logs["loss"] * (batch + 1) - before)  # the metric is a running mean
        if batch == 0:
            self._start = time.perf_counter()
        self.seconds = time.perf_counter() - self._start


def train(device, precision, jit_compile, build):
    """(losses, flip-flop ratio, images a second) of some iterations of step 2 on a device."""
    rng = np.random.default_rng(0)
    dtype = "float64" if precision == "float64" else "float32"
    tf.keras.backend.set_floatx(dtype)
    tf.keras.mixed_precision.set_global_policy(precision)
    tf.keras.utils.set_random_seed(0)
    try:
        with tf.distribute.OneDeviceStrategy(device).scope():
            student = build()
            shape = (STEPS * BATCH, *student.input_shape[1:])
            images = rng.normal(size=shape).astype(dtype)
            teacher = rng.normal(size=(shape[-1], 10)).astype(dtype)
            # The same numbers in every precision
            drawn = np.random.default_rng(1)
            student.set_weights(
                [
                    drawn.normal(scale=0.1, size=w.shape) if w.ndim > 1 else w
                    for w in student.get_weights()
                ]
            )
            layers.binarize(student, True, True)
            model = Distiller(student, lambda x: 5 * tf.reduce_mean(x, axis=(1, 2)) @ teacher)
            optimizer = optimizers.Adam(1e-3, weight_decay=5e-6)
            if precision == "mixed_float16":
                optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
            model.compile(optimizer, losses.DistributionLoss(), jit_compile=jit_compile)
            found, flips = Losses(), callbacks.FlipFlopRatio()
            model.fit(
                tf.data.Dataset.from_tensor_slices((images, np.arange(len(images)) % 10))
                .batch(BATCH)
                .repeat(),
                steps_per_epoch=STEPS,
                callbacks=[flips, found],
                verbose=0,
            )
    finally:
        tf.keras.mixed_precision.set_global_policy(None)
        tf.keras.backend.set_floatx("float32")
    ratio = sum(flips.by_layer["ff_ratio"].values())
    return np.array(found.values), ratio, (STEPS - 1) * BATCH / found.seconds


def environment() -> list[str]:
    """The machine and its versions, a line each."""
    try:
        cards = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60)
        driver = "\n".join(cards.stdout.splitlines()[:20])
    except (OSError, subprocess.TimeoutExpired) as error:
        driver = f"no nvidia-smi ({type(error).__name__})"
    built = tf.sysconfig.get_build_info()
    return [
        f"Python {platform.python_version()}, {platform.platform()}",
        f"TensorFlow {tf.__version__}, built for CUDA {built.get('cuda_version', 'none')} and "
        f"cuDNN {built.get('cudnn_version', 'none')}",
        f"devices: {strategies.devices(tf.distribute.get_strategy())}",
        *strategies.card_notes("one"),
        driver,
    ]


def main(rows=tuple(ROWS), build=reactnet) -> int:
    """Prints the report; 0 if the device trains as the processor does."""
    strategies.prepare(config.parse(["--mode=summary"]))
    card = bool(tf.config.list_physical_devices("GPU"))
    device = "GPU:0" if card else "CPU:0"
    print(f"{pathlib.Path(__file__).name}: {STEPS} iterations of {BATCH} images\n")
    print("\n".join(environment()), flush=True)
    if not card:
        print("TensorFlow sees no GPU: the processor is compared with itself")
    expected, flips, _ = train("CPU:0", "float64", False, build)
    print(f"\nlosses of the processor: {' '.join(f'{x:.9f}' for x in expected)}\n")
    print("| on the device | largest difference of a loss | allowed | flips | images/s | |")
    print("|---|--:|--:|--:|--:|---|")
    failed = 0
    for name in rows:
        precision, tf32, jit_compile, allowed = ROWS[name]
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        try:
            values, ratio, speed = train(device, precision, jit_compile, build)
            difference = np.max(np.abs(values / expected - 1))
            good = difference <= allowed and (precision != "float64" or ratio == flips)
            result = f"{difference:.2g} | {allowed:g} | {ratio / flips:.4f} | {speed:.0f}"
        except Exception as error:  # what one precision cannot do says nothing of the others
            good, result = False, f"{type(error).__name__}: {str(error).splitlines()[0]} | | |"
        print(f"| {name} | {result} | {'good' if good else 'WRONG'} |", flush=True)
        failed += not good
    tf.config.experimental.enable_tensor_float_32_execution(False)
    print(f"\n{failed} of {len(rows)} are wrong" if failed else "\nall are good")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
