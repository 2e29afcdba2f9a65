"""Short trainings with parts of a recipe.

As a program it trains with all parts on two replicas and prints as JSON how many arrays differ
where such a training was killed and resumed.
"""

import functools
import json
import os
import shutil
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import small
import tensorflow as tf

import larq_adambnn  # noqa: F401  (selects Keras 2)
from larq_adambnn import data
from larq_adambnn.runs import checkpoint, recipes, strategies, training
from larq_adambnn.runs.config import Config, parse
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.usage import flag_text
from larq_adambnn.weights import load

FLAGS = (
    "--model=reactnet18",
    "--image_size=32",
    "--crop=none",
    "--noflip",
    "--lighting=0",
    "--batch_size=16",
    "--epochs=1",
    "--learning_rate=2e-2",
    "--teacher=self",
    "--snapshots=0",
)
REPLICAS = ("--strategy=mirrored", "--devices=CPU:0,CPU:1")


@functools.cache
def pictures():
    """Dark and bright ones, for four iterations in an epoch."""
    labels = np.arange(64) % 2
    noise = np.random.default_rng(0).integers(0, 100, (64, 32, 32, 1))
    pixels = (noise + 150 * labels[:, None, None, None]).astype(np.uint8)
    examples = tf.data.Dataset.from_tensor_slices((pixels, labels))
    options = {"image_size": 32, "batch_size": 16, "crop": "none", "flip": False, "lighting": 0.0}
    return data.from_datasets(examples, examples, ("dark", "bright"), **options)


def teach(images):
    """Logits of the two classes."""
    brightness = 4 * tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2, 3))
    return tf.stack([-brightness, brightness], axis=-1)


def configure(folder, *flags) -> Config:
    """The settings of a run in a folder."""
    return parse([*FLAGS, *flags, f"--output_dir={folder}/unbroken"])


def train(config: Config) -> Run:
    with training._opened(config, tf.distribute.get_strategy()) as run:
        # One that is begun with its teacher's weights, has others beside it, or compares more
        # than logits, has to train them
        own = config.init_from or len(config.teacher) > 1 or config.attention
        training._fit(config, run, pictures(), [None if own else teach] * len(config.teacher))
    return run


def resume(config: Config, tolerance=0.0) -> tuple[Run, int]:
    """Trains a run, and another from a copy that was made in the middle of its last step.

    Args:
        config: of the run.
        tolerance: of the arrays' values, which are around 1 or below.

    Returns:
        The run, and in how many arrays the other differs at the end.
    """
    config = config.replace(checkpoint_iterations=1)
    resumed = config.replace(output_dir=f"{config.output_dir}/../resumed")
    killed_at = 4 * len(config.steps) - 2
    save = checkpoint.Checkpoint._save

    def save_and_copy(self):
        save(self)
        if self.iteration == killed_at and self.run.directory.name == "unbroken":
            shutil.copytree(self.run.directory, resumed.output_dir)

    checkpoint.Checkpoint._save = save_and_copy
    try:
        runs = [train(config), train(resumed)]
    finally:
        checkpoint.Checkpoint._save = save
    model = small.network((32, 32, 1), 2)
    one, other = (weights(run, model) for run in runs)
    return runs[0], sum(
        not np.allclose(a, b, rtol=0.0, atol=tolerance) for a, b in zip(one, other, strict=True)
    )


def weights(run: Run, model: tf.keras.Model) -> list[np.ndarray]:
    """The arrays at the end of each step; the model has the last ones."""
    found = []
    for step in range(1, run.last_step() + 1):
        load(model, run.weights(step))
        found += model.get_weights()
    return found


def flags_of(settings) -> list[str]:
    """They have few batches for the batch norms."""
    if "batch_norm_batches" in settings:
        settings = {**settings, "batch_norm_batches": 2}
    return [f"--{name}={flag_text(value)}" for name, value in settings.items()]


def together() -> list[list[str]]:
    """The flags of all parts, as few sets as do not contradict themselves."""
    sets: list[dict] = []
    for part in recipes.PARTS:
        for others in sets:
            both = {**others, **part.settings}
            compares = both.get("attention") and len(both.get("teacher", ())) > 1  # with one only
            if both == {**part.settings, **others} and not compares:
                others |= part.settings
                break
        else:
            sets.append({"order": "activations_first", **part.settings})
    return [flags_of(settings) for settings in sets]


def main() -> None:
    strategy = strategies.build(parse([*FLAGS, *REPLICAS, "--output_dir=none"]))
    small.use()
    tf.config.run_functions_eagerly(True)  # most of so short trainings would be tracing
    differences = []
    for flags in together():
        with tempfile.TemporaryDirectory() as folder, strategy.scope():
            # Eager replicas differ by rounding (1e-7); an update is as large as the rate, 2e-2.
            _, different = resume(configure(folder, *REPLICAS, *flags), tolerance=1e-6)
            differences.append(different)
    print(json.dumps(differences))


if __name__ == "__main__":
    main()
