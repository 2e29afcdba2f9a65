"""Training a run: build, compile, fit with the recipe's callbacks, resume, and finish."""

import gc
import sys
import time

import numpy as np
import tensorflow as tf

from larq_adambnn import callbacks, data, distillation, layers, losses, models, optimizers, report
from larq_adambnn.config import Config, UsageError, load_run
from larq_adambnn.data import Dataset
from larq_adambnn.resume import Checkpoint
from larq_adambnn.runs import COLUMNS, Run, open_run, replace_file

__all__ = ["build_student", "load_student", "train"]


def train(config: Config) -> None:
    """Trains the run of a config, or goes on with it, and exports and reports the result."""
    start = time.perf_counter()
    tf.keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    dataset = data.load(config)
    with open_run(config) as run:
        fit_run(config, run, dataset)
        if config.export:
            from larq_adambnn import export

            export.export_run(run, config, dataset)
        report.write(run, config)
        print()
        print(report.table(run, config, seconds=time.perf_counter() - start))


def fit_run(config: Config, run: Run, dataset: Dataset) -> None:
    """Trains every step of a run that is not finished yet."""
    epochs = (config.epochs,) * len(config.steps)
    if run.weights(len(epochs)).is_file():
        return
    teacher = _teacher(config, run, dataset) if config.loss != "cross_entropy" else None
    student = build_student(config, dataset)
    layers.binarize(student, *config.steps[0])
    model = distillation.Distiller(student, teacher)
    model.compile(optimizer=_optimizer(config), loss=_loss(config))

    recipe = _recipe(config, epochs)
    log = _Log(run, config, dataset, epochs)
    measurements = [callbacks.FlipFlopRatio(), callbacks.CorrelationToInitialization()]
    checkpoint = Checkpoint(run.checkpoints, dataset.steps_per_epoch, [*measurements, log])
    done = checkpoint.restore(model)
    first_epoch = done // dataset.steps_per_epoch
    if done:
        print(f"resuming after {first_epoch} of {sum(epochs)} epochs (step {done})", flush=True)
    model.fit(
        dataset.train(first_step=done),
        epochs=sum(epochs),
        initial_epoch=first_epoch,
        steps_per_epoch=dataset.steps_per_epoch,
        validation_data=dataset.evaluation("test"),
        callbacks=[*recipe, *measurements, log, checkpoint],
        verbose=1 if sys.stdout.isatty() else 0,
    )
    for path in run.checkpoints.glob("[0-9]*.npz"):
        path.unlink()  # the finished weights of each step stay
    del model, student, teacher
    tf.keras.backend.clear_session()
    gc.collect()


def build_student(config: Config, dataset: Dataset) -> tf.keras.Model:
    """The student of a config with its seeded initial weights."""
    tf.keras.utils.set_random_seed(config.seed)
    return models.build(
        config.model,
        input_shape=dataset.input_shape,
        num_classes=len(dataset.class_names),
        width=config.width,
        pad_values=config.pad_values,
    )


def load_student(run: Run, config: Config, dataset: Dataset, step: int = 0) -> tf.keras.Model:
    """The trained student of a run at the end of a step, by default its last.

    Raises:
        UsageError: that step is not finished, or its file cannot be read.
    """
    step = step or run.last_step()
    path = run.weights(step)
    if not path.is_file():
        raise UsageError(f"--run: expected a run with a finished step; {run.directory} has none")
    student = build_student(config, dataset)
    try:
        student.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--run: cannot read {path}: {reason}") from error
    return layers.binarize(student, *config.steps[step - 1])


def _optimizer(config: Config) -> tf.keras.optimizers.Optimizer:
    return optimizers.Adam(config.learning_rate, weight_decay=config.weight_decay[0])


def _loss(config: Config) -> tf.keras.losses.Loss:
    if config.loss == "cross_entropy":
        return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return losses.DistributionLoss()


def _recipe(config: Config, epochs: tuple[int, ...]) -> list[tf.keras.callbacks.Callback]:
    """The callbacks that make the paper's training out of a fit."""
    recipe = [callbacks.LinearDecay(config.learning_rate, epochs)]
    if len(epochs) == 2:
        decays = {0: config.weight_decay[0], epochs[0]: config.weight_decay[1]}
        first, second = config.steps
        recipe.append(callbacks.TwoStepSwitch(epochs[0], first=first, second=second))
    else:
        decays = {0: config.weight_decay[0]}
    return [*recipe, callbacks.WeightDecaySchedule(decays)]


def _teacher(config: Config, run: Run, dataset: Dataset):
    """The frozen function from images to logits that a config names."""
    if config.teacher == "self":
        directory = run.directory / "teacher"
        teacher_config = config.replace(
            order="real_valued",
            loss="cross_entropy",
            teacher="",
            epochs=config.teacher_epochs or config.epochs,
            weight_decay=(config.weight_decay[0],) * 2,
            output_dir=str(directory),
            export=False,
        )
        with open_run(teacher_config) as teacher_run:
            print(f"teacher: the real-valued {config.model}", flush=True)
            fit_run(teacher_config, teacher_run, dataset)
    else:
        directory = config.teacher
        teacher_config = load_run(directory)
    teacher_run = Run(directory)
    model = load_student(teacher_run, teacher_config, dataset)
    model.trainable = False

    def teach(images):
        return model(images, training=False)

    return teach


class _Log(tf.keras.callbacks.Callback):
    """Writes metrics.csv, TensorBoard and the weights of each finished step."""

    def __init__(self, run: Run, config: Config, dataset: Dataset, epochs: tuple[int, ...]):
        super().__init__()
        self.run, self.config, self.dataset, self.epochs = run, config, dataset, epochs
        self._earlier = 0.0  # seconds of this epoch before it was resumed

    def on_train_begin(self, logs=None):
        self._rows = None
        self._writer = tf.summary.create_file_writer(str(self.run.tensorboard))

    def on_epoch_begin(self, epoch, logs=None):
        if self._rows is None:  # rows after the checkpoint that was resumed are made again
            self._rows = self.run.read_metrics()[:epoch]
        self._earlier = 0.0
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = self._seconds()
        index, in_step = self._position(epoch)
        row = {
            **logs,
            "step": index + 1,
            "epoch": in_step + 1,
            "seconds": round(seconds, 3),
            "images_per_second": round(
                self.dataset.steps_per_epoch * self.config.batch_size / seconds, 2
            ),
        }
        row = {name: row[name] for name in row if name in COLUMNS}
        self._rows.append(row)
        self.run.write_metrics(self._rows)
        with self._writer.as_default(step=epoch):
            for name, value in row.items():
                tf.summary.scalar(name, value)
        self._writer.flush()
        print(
            f"step {row['step']}  epoch {in_step + 1}/{self.epochs[index]}  "
            f"loss {row['loss']:.4f}  accuracy {100 * row['accuracy']:.2f} %  "
            f"test loss {row['val_loss']:.4f}  test accuracy {100 * row['val_accuracy']:.2f} %  "
            f"{seconds:.1f} s",
            flush=True,
        )
        if in_step + 1 == self.epochs[index]:
            with replace_file(self.run.weights(row["step"])) as path:
                self.model.student.save_weights(path, save_format="h5")

    def on_train_end(self, logs=None):
        self._writer.close()

    def _position(self, epoch: int) -> tuple[int, int]:
        """(index of the step, epoch in it), both from 0."""
        index = 0
        while epoch >= self.epochs[index]:
            epoch -= self.epochs[index]
            index += 1
        return index, epoch

    def _seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._start

    def get_state(self) -> dict[str, np.ndarray]:
        return {"seconds": np.float64(self._seconds())}

    def set_state(self, state) -> None:
        self._earlier = float(state["seconds"])
