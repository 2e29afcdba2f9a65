"""Ten training steps of the small network in float64, on one device or several.

Prints the losses as JSON.  Arguments: one, mirrored (two logical CPU devices) or worker
(one of the processes in TF_CONFIG).
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import small
import tensorflow as tf

import larq_adambnn  # noqa: F401  (selects Keras 2)
from larq_adambnn import layers, losses, models, optimizers
from larq_adambnn.distillation import Distiller
from larq_adambnn.runs import config, strategies

STEPS, BATCH = 10, 16


def batches(part, parts):
    """Batches of images and labels, or one worker's equal part of each."""
    size = BATCH // parts

    def generate():
        for step in range(STEPS):
            rng = np.random.default_rng(step)
            images = rng.normal(size=(BATCH, 32, 32, 1))
            labels = rng.integers(0, 10, BATCH)
            yield images[part * size :][:size], labels[part * size :][:size]

    signature = (
        tf.TensorSpec((size, 32, 32, 1), tf.float64),
        tf.TensorSpec((size,), tf.int64),
    )
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def main(kind: str) -> None:
    flags = {"one": [], "mirrored": ["--strategy=mirrored", "--devices=CPU:0,CPU:1"]}.get(
        kind, ["--strategy=multi_worker"]
    )
    settings = config.parse(["--mode=summary", f"--batch_size={BATCH}", *flags])
    strategy = strategies.build(settings)
    tf.keras.backend.set_floatx("float64")
    small.use()
    with strategy.scope():
        tf.keras.utils.set_random_seed(0)
        shape = {"input_shape": (32, 32, 1), "num_classes": 10}
        student = models.build("reactnet18", **shape, sync_batch_norm=True)
        teacher = models.build("reactnet18", **shape)
        layers.binarize(student, True, True)
        model = Distiller(student, lambda images: teacher(images, training=False))
        model.compile(optimizers.Adam(1.25e-3, 5e-6), losses.DistributionLoss())

    def parts(context):
        # Mirrored: one pipeline whose batches go to the replicas in turn.
        if context.num_input_pipelines > 1:
            return batches(context.input_pipeline_id, context.num_input_pipelines)
        return batches(0, 1).unbatch().batch(BATCH // context.num_replicas_in_sync)

    found, before = [], 0.0

    class Losses(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            nonlocal before
            total = logs["loss"] * (batch + 1)  # the metric is a running mean
            found.append(total - before)
            before = total

    model.fit(
        strategy.distribute_datasets_from_function(parts),
        steps_per_epoch=STEPS,
        callbacks=[Losses()],
        verbose=0,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
