"""Ten iterations of the small network in float64, on one device or several.

Prints the losses, the validation columns and the accuracy as JSON.  Arguments: one, mirrored
(two logical CPU devices) or worker (one of the processes in TF_CONFIG).
"""

import dataclasses
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import small
import tensorflow as tf

import larq_adambnn  # noqa: F401  (selects Keras 2)
from larq_adambnn import attention, data, inference, layers, losses, models, optimizers
from larq_adambnn.distillation import Distiller
from larq_adambnn.runs import config, strategies

ITERATIONS, BATCH = 10, 16
TEST_IMAGES = 37  # the second of two replicas has none of the last batch


def random_images(count, seed):
    """Examples whose labels cannot be learnt, so that nothing is right by far."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 1), np.uint8)
    return tf.data.Dataset.from_tensor_slices((images, rng.integers(0, 10, count)))


def main(kind: str) -> None:
    flags = {"one": [], "mirrored": ["--strategy=mirrored", "--devices=CPU:0,CPU:1"]}.get(
        kind, ["--strategy=multi_worker"]
    )
    settings = config.parse(["--mode=summary", f"--batch_size={BATCH}", *flags])
    strategy = strategies.build(settings)
    dataset = data.from_datasets(
        random_images(ITERATIONS * BATCH, seed=0),
        random_images(TEST_IMAGES, seed=1),
        [str(label) for label in range(10)],
        image_size=32,
        batch_size=BATCH,
        augment=False,
        shuffle=0,
    )
    tf.keras.backend.set_floatx("float64")
    small.use()
    with strategy.scope():
        tf.keras.utils.set_random_seed(0)
        shape = {"input_shape": (32, 32, 1), "num_classes": 10}
        student = models.build("reactnet18", **shape, sync_batch_norm=True)
        teacher = models.build("reactnet18", **shape)
        layers.binarize(student, True, True)
        seen = attention.opened(teacher)
        model = Distiller(student, lambda images: seen(images, training=False), attention=3.0)
        model.compile(optimizers.Adam(1.25e-3, 5e-6), losses.DistributionLoss())

    found, before = [], 0.0

    class Losses(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            nonlocal before
            total = logs["loss"] * (batch + 1)  # the metric is a running mean
            found.append(total - before)
            before = total

    history = model.fit(
        **strategies.distribute(strategy, dataset, first_iteration=0),
        steps_per_epoch=ITERATIONS,
        callbacks=[Losses()],
        verbose=0,
    ).history
    validation = {name: value for name, (value,) in history.items() if name.startswith("val_")}
    accuracy = inference.evaluate(student, dataset, batch_size=BATCH)
    plain = evaluated_in_float32(strategy, dataset)
    print(
        json.dumps(
            {"losses": found, **validation, **dataclasses.asdict(accuracy), "float32": plain}
        )
    )


def evaluated_in_float32(strategy, dataset) -> list[float]:
    """Loss and accuracies by what fit and --mode=evaluate do; TensorFlow fuses operations then."""
    tf.keras.backend.set_floatx("float32")
    with strategy.scope():
        tf.keras.utils.set_random_seed(0)
        shape = {"input_shape": (32, 32, 1), "num_classes": 10}
        student, teacher = (models.build("reactnet18", **shape) for _ in range(2))
        model = Distiller(student, lambda images: teacher(images, training=False))
        model.compile(optimizers.Adam(), losses.DistributionLoss())
    given = strategies.distribute(strategy, dataset, first_iteration=0)
    loss, *_ = model.evaluate(given["validation_data"], steps=given["validation_steps"], verbose=0)
    return [loss, inference.evaluate(student, dataset, batch_size=BATCH).top1]


if __name__ == "__main__":
    main(sys.argv[1])
