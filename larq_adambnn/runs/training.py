"""Training a run: build, compile, fit with the recipe's callbacks, resume, and finish."""

import contextlib
import dataclasses
import gc
import itertools
import pathlib
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

from larq_adambnn import (
    backbone,
    callbacks,
    distillation,
    layers,
    losses,
    optimizers,
    weights,
)
from larq_adambnn.data import Dataset
from larq_adambnn.data.dataset import explained
from larq_adambnn.errors import UsageError
from larq_adambnn.files import explain
from larq_adambnn.runs import (
    advice,
    agreement,
    datasets,
    examination,
    exporting,
    recording,
    report,
    strategies,
    teachers,
)
from larq_adambnn.runs.checkpoint import Checkpoint
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import COLUMNS, Run, open_run, wait_for
from larq_adambnn.runs.pace import Bar, Pace
from larq_adambnn.runs.students import (
    build,
    check_begin,
    check_initial,
    initial_student,
    load_student,
)

__all__ = ["check", "compiled", "given_teachers", "run_callbacks", "train"]


def train(config: Config, dataset: Dataset | None = None) -> None:
    """Trains the run of a config, or goes on with it, and exports and reports the result.

    Args:
        config: all settings of the run.
        dataset: by default the one that the config names; one of your own (see
            `data.from_datasets`) has its own image size, augmentation, batch size and seed,
            which have to be the config's.

    Raises:
        UsageError: the settings cannot work, or what stopped the training, in one line.
    """
    start = time.perf_counter()
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = strategies.build(config)
    with strategies.explained():
        strategies.agree(strategy, agreement.flags(config))
        with strategies.together(strategy):
            dataset = check(config, strategy, dataset)
            notes = strategies.card_notes(config.strategy)
            notes += advice.notes(config, dataset, strategy.num_replicas_in_sync)
        strategies.agree(strategy, agreement.data(config, dataset))
    with strategy.scope(), strategies.explained():  # before there is a directory
        finished = _finished(config, Run(config.output_dir), strategy)
        given = () if finished else given_teachers(config, dataset)
    with _opened(config, strategy) as run:
        if not finished and strategies.is_chief(strategy):
            used = strategies.devices(strategy)
            print(f"devices: {used}", flush=True)
            run.add_devices(used)
        with strategy.scope(), strategies.explained():
            _fit(config, run, dataset, given, notes)
        if not strategies.is_chief(strategy):
            return
        try:
            examination.examine(run, config, dataset)
            if _exported(config) and not exporting.is_current(run):
                exporting.export_run(run, config, dataset)
        finally:  # the training is worth its report in any case
            report.write(run, config)
            print()
            print(report.table(run, config, seconds=time.perf_counter() - start))


def check(
    config: Config, strategy: tf.distribute.Strategy, dataset: Dataset | None = None
) -> Dataset:
    """The data set of a training that can begin, as far as that is known without a directory.

    Args:
        config, dataset: as for `train`.
        strategy: what it is trained by.

    Raises:
        UsageError: it cannot.
    """
    if _exported(config):
        exporting.check_installed()
    strategies.check_batch(config, strategy)
    teachers.check(config)
    check_initial(config, dataset)
    dataset = datasets.load(config) if dataset is None else _own(dataset, config)
    check_begin(config, dataset)
    if _exported(config):
        exporting.check_network(config, dataset)
    return dataset


def _exported(config: Config) -> bool:
    return config.export and config.steps[-1] == (True, True)


@contextlib.contextmanager
def _opened(config: Config, strategy: tf.distribute.Strategy):
    """The run of a config, which the chief takes."""
    run = Run(config.output_dir)
    with contextlib.ExitStack() as stack:
        with strategies.explained():
            strategies.agree(strategy, agreement.directory(run))
            with strategies.together(strategy):
                if strategies.is_chief(strategy):
                    run = stack.enter_context(open_run(config))
            with strategies.together(strategy):
                wait_for(run)
        yield run


def _finished(config: Config, run: Run, strategy: tf.distribute.Strategy) -> bool:
    """Whether a run has its last weights, as the chief sees it."""
    finished = weights.is_whole(run.weights(len(config.steps)))
    return bool(strategies.from_chief(strategy, "finished" if finished else ""))


def _own(dataset: Dataset, config: Config) -> Dataset:
    """A data set that was given to `train`, if it has the settings of the config."""
    expected = datasets.settings(config)
    for name, theirs in dataclasses.asdict(dataset.settings).items():
        own = getattr(expected, name)
        if name != "augment" and own != theirs:
            raise UsageError(
                f"--{name}: expected {theirs!r}, as the given data set has; received {own!r}"
            )
    dataset.check_batch()
    return dataset


def _fit(config: Config, run: Run, dataset: Dataset, given=(), notes=()) -> None:
    """Trains every step of a run that is not finished yet, in the strategy in scope.

    The weights of the last step are written last: a run that has them has everything else.

    Args:
        config, run, dataset: what is trained.
        given: a function for each of --teacher, None for one that is trained first.
        notes: lines to print once the run is this process's.
    """
    strategy = tf.distribute.get_strategy()
    chief = strategies.is_chief(strategy)
    fingerprint = teachers.fingerprint(config)
    with strategies.together(strategy):
        if chief:
            datasets.remember(dataset, config, run, fingerprint)
    epochs = (config.epochs,) * len(config.steps)
    if _finished(config, run, strategy):
        return
    for note in notes if chief else ():
        print(f"note: {note}", file=sys.stderr)
    final = run.weights(len(epochs))
    if final.is_file():
        print(f"{final} is damaged; it is made again from the last checkpoint", file=sys.stderr)
    teacher = None if config.loss == "cross_entropy" else _teacher(config, run, dataset, given)
    model = compiled(config, dataset, teacher)
    *others, checkpoint = run_callbacks(config, run, dataset, epochs)
    log = next(callback for callback in others if isinstance(callback, _Log))
    done = checkpoint.restore(model)
    first_epoch = done // dataset.iterations_per_epoch
    if config.reload_best and first_epoch and done <= epochs[0] * dataset.iterations_per_epoch:
        weights.check(run.weights(1, best=True))
    if done:
        print(
            f"resuming after {first_epoch} of {sum(epochs)} epochs (iteration {done})", flush=True
        )
    batches = strategies.distribute(strategy, dataset, first_iteration=done)
    bar = sys.stdout.isatty() and chief
    shown = [Bar() if bar else Pace(epochs, config.batch_size)] if chief else []
    with _explained(checkpoint):
        model.fit(
            **batches,
            epochs=sum(epochs),
            initial_epoch=first_epoch,
            steps_per_epoch=dataset.iterations_per_epoch,
            validation_freq=recording.evaluated(epochs, config.validate_every),
            callbacks=[*others, *shown, checkpoint],
            verbose=1 if bar else 0,
        )
        log.save_weights(final)
    strategies.wait_for_all(strategy)  # the files that the chief wrote are there now
    del model, teacher
    gc.collect()


def run_callbacks(
    config: Config, run: Run, dataset: Dataset, epochs: tuple[int, ...]
) -> list[tf.keras.callbacks.Callback]:
    """Everything that a run adds to a fit: recipe, measurements, log; last its Checkpoint."""
    average = []
    if config.ema or config.batch_norm_batches:
        count = config.batch_norm_batches
        batches = dataset.train().take(count) if count else None
        average = [callbacks.AverageWeights(config.ema, batches=batches)]
    first_teacher = []
    if config.step2_teacher == "step1":
        with strategies.precision(config.precision):
            copy = build(config, dataset.preparation.channels, len(dataset.class_names))
        # What is reloaded was averaged when it was saved.
        kept = None if config.reload_best else next(iter(average), None)
        first_teacher = [
            callbacks.FirstStepTeacher(epochs[0], copy, first=config.steps[0], average=kept)
        ]
    log = _Log(run, config, dataset, epochs, *average)
    recorder = recording.Recorder(run, config, dataset, epochs)
    stateful = [*first_teacher, *average, *recorder.measurements, log]
    checkpoint = Checkpoint(
        run, dataset.iterations_per_epoch, stateful, every=config.checkpoint_iterations
    )
    return [*_recipe(config, run, epochs), *stateful, recorder, checkpoint]


def given_teachers(config: Config, dataset: Dataset) -> list:
    """A function of images for each of --teacher, None for one that is trained here.

    Raises:
        UsageError: one of them cannot teach the network.
    """
    names = [] if config.loss == "cross_entropy" else config.teacher
    if "self" in names:
        teachers.check_attention(config, dataset)
    return [None if name == "self" else teachers.load(config, dataset, name) for name in names]


def _teacher(config: Config, run: Run, dataset: Dataset, given):
    """All teachers as one function; those that are not given are trained first."""
    numbers = itertools.count(1)
    return distillation.together(
        [teach or _own_teacher(config, run, dataset, next(numbers)) for teach in given]
    )


def _own_teacher(config: Config, run: Run, dataset: Dataset, number: int):
    """One of --teacher=self, as `teachers.freeze` gives it."""
    own = teachers.own_config(config, str(run.teacher(number)), number)
    unmixed = dataset
    if dataset.settings.mixes:
        settings = dataclasses.replace(dataset.settings, mixup=0.0, cutmix=0.0)
        unmixed = dataclasses.replace(dataset, settings=settings)
    run.check()  # before its directory is made again
    with _opened(own, tf.distribute.get_strategy()) as teacher:
        if strategies.is_chief(tf.distribute.get_strategy()):
            print(f"{run.teacher(number).name}: the real-valued network, on the labels", flush=True)
        _fit(own, teacher, unmixed)
        return teachers.freeze(config, load_student(teacher, own, dataset), dataset)


def compiled(config: Config, dataset: Dataset, teacher) -> distillation.Distiller:
    """The student and its teacher (see `Distiller`), in the form of the first step."""
    with strategies.precision(config.precision):
        student = initial_student(config, dataset)
        layers.binarize(student, *config.steps[0])
        model = distillation.Distiller(
            student,
            teacher,
            label_weight=config.label_weight if config.loss == "weighted_sum" else 0.0,
            label_smoothing=config.label_smoothing,
            attention=config.attention,
            microbatches=config.microbatches,
        )
        model.compile(
            optimizer=_optimizer(config, student),
            loss=_loss(config),
            jit_compile=config.jit_compile,
        )
    return model


def _optimizer(config: Config, student: tf.keras.Model) -> tf.keras.optimizers.Optimizer:
    build, options = {
        "adam": (optimizers.Adam, {}),
        "adamw": (optimizers.Adam, {"decoupled": True}),
        "amsgrad": (optimizers.Adam, {"amsgrad": True}),
        "sgd": (optimizers.SGD, {"momentum": 0.9}),
        "rmsprop": (optimizers.RMSprop, {}),
        "diode": (optimizers.Diode, _diode(config)),
    }[config.optimizer]
    if config.backbone_rate != 1:
        options["rates"] = backbone.rates(student, config.backbone_rate)
    if config.clip_norm:
        options["global_clipnorm"] = config.clip_norm
    for name in ("gradient_floor", "silent_decay", "silent_iterations"):
        options[name] = getattr(config, name)
    return build(config.learning_rate, weight_decay=config.weight_decay[0], **options)


def _diode(config: Config) -> dict:
    """The options of a Diode whose kernels have 1 at most, and stay within --weight_clip."""
    momentum, memory = config.diode_momenta
    size = min(1.0, config.weight_clip) / config.learning_rate
    return {"momentum": momentum, "memory": memory, "size": size}


def _loss(config: Config) -> tf.keras.losses.Loss:
    if config.loss == "cross_entropy":
        return losses.CrossEntropy(config.label_smoothing)
    return losses.DistributionLoss()


def _recipe(config: Config, run: Run, epochs: tuple[int, ...]) -> list[tf.keras.callbacks.Callback]:
    """The callbacks that make the paper's training out of a fit."""
    recipe = [
        callbacks.RateSchedule(
            config.learning_rate,
            epochs,
            shape=config.schedule,
            warmup=config.warmup,
            by_epoch=config.published_schedule,
        )
    ]
    decays = {0: config.weight_decay[0]}
    if len(epochs) == 2:
        decays[epochs[0]] = config.weight_decay[1]
        first, second = config.steps
        best = str(run.weights(1, best=True)) if config.reload_best else None
        recipe.append(callbacks.TwoStepSwitch(epochs[0], first=first, second=second, reload=best))
    if config.order == "progressive":
        recipe.append(callbacks.ProgressiveWeights(epochs[0]))
    return [*recipe, callbacks.WeightDecaySchedule(decays)]


@contextlib.contextmanager
def _explained(checkpoint: Checkpoint):
    """Turns what can stop a training into one line that says what to do."""
    try:
        with explained():
            yield
    except tf.errors.InvalidArgumentError as error:
        if "loss is not finite" not in str(error):
            raise
        raise UsageError(
            f"training: expected a finite loss; received another at iteration "
            f"{checkpoint.iteration + 1}. {checkpoint.last()} A lower --learning_rate may help"
        ) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise UsageError(f"--output_dir: {explain(error)}. {checkpoint.last()}") from error


class _Log(tf.keras.callbacks.Callback):
    """Writes metrics.csv, TensorBoard and the weights of each finished step."""

    def __init__(self, run, config, dataset, epochs, average=None):
        super().__init__()
        self.run, self.config, self.dataset, self.epochs = run, config, dataset, epochs
        self.average = average
        self._earlier = 0.0  # seconds of this epoch before it was resumed

    def on_train_begin(self, logs=None):
        self._chief = strategies.is_chief(tf.distribute.get_strategy())
        self._rows = self._curves = None
        self._start = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        if self._rows is None:  # rows after the checkpoint that was resumed are made again
            self._rows = self.run.read_metrics()[:epoch]
            self._curves = recording.Curves(self.run) if self._chief else None
            if self._curves is not None:
                self._curves.begin(self.config)
        self._earlier = 0.0
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        step, in_step = recording.position(epoch, self.epochs)
        row = self._row(logs, step, in_step)
        accuracies = [r.get("val_accuracy", -1.0) for r in self._rows if r["step"] == step]
        best = row.get("val_accuracy", -1.0) > max(accuracies, default=-1.0)
        self._rows.append(row)
        if self._chief:
            self.run.write_metrics(self._rows)
            self._curves.write(epoch, row)
            self._print(row)
        if best and (step == len(self.epochs) or self.config.reload_best):
            about = {name: row[name] for name in ("epoch", "val_accuracy")}
            self.save_weights(self.run.weights(step, best=True), **about)
        if in_step == self.epochs[step - 1] and step < len(self.epochs):
            self.save_weights(self.run.weights(step))

    def on_train_end(self, logs=None):
        if self._curves is not None:
            self._curves.end()
            self._curves.close()

    def _row(self, logs, step: int, in_step: int) -> dict[str, float]:
        seconds = self._seconds()
        images = self.dataset.iterations_per_epoch * self.config.batch_size
        row = {
            **logs,
            "step": step,
            "epoch": in_step,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 2),
        }
        return {name: row[name] for name in COLUMNS if name in row}

    def _print(self, row: dict[str, float]) -> None:
        binary = any(self.config.steps[row["step"] - 1])
        parts = [
            f"{'step ' + str(row['step']) if binary else 'real-valued'}",
            f"epoch {row['epoch']}/{self.epochs[row['step'] - 1]}",
        ]
        for prefix, split in (("", ""), ("val_", f"{self.config.split} ")):
            if f"{prefix}loss" in row:
                parts += [
                    f"{split}loss {row[f'{prefix}loss']:.4f}",
                    f"{split}accuracy {100 * row[f'{prefix}accuracy']:.2f} %",
                ]
        print(*parts, f"{row['seconds']:.1f} s", sep="  ", flush=True)

    def save_weights(self, path: pathlib.Path, **about: float) -> None:
        """Saves the student (see `weights.save`); all workers read, the chief writes."""
        averaged = self.average.swapped() if self.average else contextlib.nullcontext()
        with averaged, contextlib.ExitStack() as stack:
            if self._chief:
                target = stack.enter_context(self.run.replace(path))
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                target = pathlib.Path(folder, path.name)
            weights.save(self.model.student, target, **about)

    def _seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._start

    def get_state(self) -> dict[str, np.ndarray]:
        return {"seconds": np.float64(self._seconds())}

    def set_state(self, state) -> None:
        self._earlier = float(state["seconds"])
