"""The paper's recipe as Keras callbacks, for any `model.fit`."""

import contextlib
import math
import os
import weakref
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from larq_adambnn import batch_norm, layers, optimizers, weights
from larq_adambnn.arguments import (
    FLAG,
    PATH,
    Kind,
    either,
    expect,
    instance,
    number,
    one_of,
    optional,
    several,
    whole,
)
from larq_adambnn.callbacks.state import Stateful, check_each_iteration
from larq_adambnn.distillation import Distiller
from larq_adambnn.quantizers import ScaledSign

__all__ = [
    "AverageWeights",
    "FirstStepTeacher",
    "LinearDecay",
    "ProgressiveWeights",
    "RateSchedule",
    "TwoStepSwitch",
    "WeightDecaySchedule",
    "share_of_rate",
]


_EPOCHS = whole(1)
_PERIODS = either(_EPOCHS, several(_EPOCHS, "several of them"))
_FORM = several(FLAG, "(activations, weights), each True or False", length=2)


def _require(model: tf.keras.Model, attribute: str) -> None:
    """Raises ValueError unless the model's optimizer has a hyperparameter."""
    optimizer = optimizers.inner(model.optimizer)
    if not hasattr(optimizer, attribute):
        raise ValueError(
            f"Expected an optimizer with `{attribute}`. Received: {type(optimizer).__name__}"
        )


def _set_weight_decay(model: tf.keras.Model, value: float) -> None:
    """Sets the weight decay of the model's optimizer, variable or plain number."""
    optimizer = optimizers.inner(model.optimizer)
    current = optimizer.weight_decay
    if isinstance(current, tf.Variable):
        current.assign(value)
    elif current != value:
        optimizer.weight_decay = value
        layers.retrace(model)  # the old number is part of the traced function


_in_first_step = weakref.WeakSet()  # models that were trained in it, in this process


class TwoStepSwitch(Stateful):
    """Goes from step 1 to step 2 inside one `fit` (AdamBNN, section 4.3).

    Before epoch 0 it sets what is binary in step 1.  Before `epoch` it sets what is
    binary in step 2, and resets the optimizer: moments and iteration count, not the
    learning rate.  A `fit` that starts or resumes later finds the right form too, and
    is not reset twice.

    Args:
        epoch: first epoch of step 2, counted from 0.
        first, second: (activations, weights) that are binary in each step.
        reload: file of weights to load at the switch, such as step 1's best as a
            `ModelCheckpoint` saved them; None goes on with those of the last epoch.

    Raises:
        ValueError: an argument is not what it should be; or, when it is used, the model is not
            binary in both, see `binarize`.
        FileNotFoundError: at the switch, when `reload` does not exist.
        UsageError: then too, when it is damaged, of another network or not finite.
    """

    def __init__(
        self,
        epoch: int,
        *,
        first: tuple[bool, bool] = (True, False),
        second: tuple[bool, bool] = (True, True),
        reload: str | os.PathLike | None = None,
    ):
        super().__init__()
        expect("epoch", epoch, _EPOCHS)
        expect("first", first, _FORM)
        expect("second", second, _FORM)
        expect("reload", reload, optional(PATH))
        self.epoch = epoch
        self.first, self.second = tuple(first), tuple(second)
        self.reload = None if reload is None else os.fspath(reload)

    def on_train_begin(self, logs=None):
        # Variables that a function makes while it is traced have it traced twice, and those
        # that a restored checkpoint still waits for would be filled after the reset.
        with self.model.distribute_strategy.scope():
            optimizers.build(self.model.optimizer, self.model.trainable_variables)
        self._switched = False
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        form = self.first if epoch < self.epoch else self.second
        layers.binarize(self.model, *form)
        if epoch < self.epoch:
            _in_first_step.add(self.model)
        if epoch != self.epoch or self._switched:
            return
        self._switched = True
        # What resumed the training may know nothing of callbacks.  Within an epoch the count
        # is then that of step 2, which is less than the iterations of one epoch.
        count = optimizers.iterations(self.model.optimizer)
        if self.model in _in_first_step or count >= (self.params.get("steps") or 1):
            _in_first_step.discard(self.model)
            if self.reload is not None:
                weights.load(getattr(self.model, "student", self.model), self.reload)
            with self.model.distribute_strategy.scope():
                optimizers.reset(self.model.optimizer, self.model.trainable_variables)

    def get_state(self) -> dict[str, np.ndarray]:
        """Whether the switch is done."""
        return {**super().get_state(), "switched": np.bool_(self._switched)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        self._switched = bool(state["switched"])


class FirstStepTeacher(Stateful):
    """Has the network at the end of step 1 teach step 2 (arXiv 2003.11535, section 4.2).

    For a `Distiller`; it comes after the `TwoStepSwitch` in the list.

    Args:
        epoch: first epoch of step 2, as the switch has it.
        copy: the student's network, built once more; it takes the student's weights then.
        first: (activations, weights) that are binary in step 1.

    Raises:
        ValueError: an argument is not what it should be, or the fitted model is no Distiller.
    """

    def __init__(
        self, epoch: int, copy: tf.keras.Model, *, first: tuple[bool, bool] = (True, False)
    ):
        super().__init__()
        expect("epoch", epoch, _EPOCHS)
        expect("copy", copy, instance(tf.keras.Model, "a Keras model"))
        expect("first", first, _FORM)
        self.epoch = epoch
        self.copy = layers.binarize(copy, *first)

    def on_train_begin(self, logs=None):
        expect("model", self.model, instance(Distiller, "a Distiller"))
        self._begun = False
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if epoch < self.epoch:
            return
        if not self._begun:
            self._begun = True
            self.copy.set_weights(self.model.student.get_weights())
        self.model.taught_by(lambda images: self.copy(images, training=False))

    def get_state(self) -> dict[str, np.ndarray]:
        """The weights of the teacher, and whether it teaches."""
        copied = {str(i): array for i, array in enumerate(self.copy.get_weights())}
        return {**super().get_state(), **copied, "begun": np.bool_(self._begun)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begun = bool(state["begun"])
        self.copy.set_weights([state[str(i)] for i in range(len(self.copy.weights))])


def _is_schedule(values) -> bool:
    return (
        isinstance(values, Mapping)
        and 0 in values
        and all(map(whole(0).fits, values))
        and all(map(number().fits, values.values()))
    )


_SCHEDULE = Kind("{epoch from 0 on: finite number}, with epoch 0 among them", _is_schedule)


class WeightDecaySchedule(tf.keras.callbacks.Callback):
    """Sets the optimizer's `weight_decay` at given epochs.

    Args:
        values: {epoch: weight decay}, each in force from its epoch on; epoch 0 must
            be among them.  The paper's is ``{0: 5e-6, epochs_of_step_1: 0.0}``.

    Raises:
        ValueError: `values` is not what it should be; at the start of `fit`, when the
            optimizer has no `weight_decay`, such as Keras's legacy ones.
    """

    def __init__(self, values: Mapping[int, float]):
        super().__init__()
        expect("values", values, _SCHEDULE)
        self.values = dict(sorted(values.items()))

    def on_train_begin(self, logs=None):
        _require(self.model, "weight_decay")

    def on_epoch_begin(self, epoch, logs=None):
        start = max(e for e in self.values if e <= epoch)
        _set_weight_decay(self.model, self.values[start])

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            start = max(e for e in self.values if e <= epoch)
            logs["weight_decay"] = self.values[start]


_SHAPES = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # arXiv 1608.03983
}


def share_of_rate(
    iteration: int, iterations: int, shape: str = "linear", warmup: float = 0.0
) -> float:
    """What share of the learning rate an iteration of a training has.

    It rises by the same amount at each iteration of the warm-up, the last of which has all
    of it, and falls to 0 in the rest.

    Args:
        iteration: from 0 to `iterations`, at which the training has ended.
        iterations: in the training.
        shape: of the fall, linear or cosine.
        warmup: share of the iterations that are the warm-up.
    """
    rising = warmup * iterations
    if iteration < rising:
        return min(1.0, (iteration + 1) / rising)
    return _SHAPES[shape]((iteration - rising) / (iterations - rising))


class _Schedule(tf.keras.callbacks.Callback):
    """Sets a variable to the `value` of each iteration.

    A subclass gives `_start` the variable in its `on_train_begin`.
    """

    by_epoch = False  # one value for all iterations of an epoch

    def _start(self, variable: tf.Variable) -> None:
        if not self.by_epoch and not self.params.get("steps"):
            raise ValueError("Expected a known number of iterations in an epoch. Received: None")
        if not self.by_epoch:
            check_each_iteration(self)
        self._variable = variable
        self._steps = self.params.get("steps") or 1
        # A value that came from the host at each iteration would have to wait for the device.
        self._values = tf.Variable(tf.zeros([self._steps], variable.dtype), trainable=False)
        each = self.model.distribute_strategy.experimental_local_results
        self._of_replicas = list(zip(each(variable), each(self._values), strict=True))

    def on_epoch_begin(self, epoch, logs=None):
        start = epoch * self._steps
        self._values.assign([self.value(start + i, self._steps) for i in range(self._steps)])

    def on_train_batch_begin(self, batch, logs=None):
        for variable, values in self._of_replicas:  # each has its own, so that nothing is copied
            with tf.device(variable.device):
                variable.assign(values.read_value()[0 if self.by_epoch else batch])


class RateSchedule(_Schedule):
    """Sets the learning rate of each iteration, anew in each period, such as a step of the paper.

    It is `share_of_rate` of the `learning_rate`.

    Args:
        learning_rate: highest rate of each period.
        epochs: length of each consecutive period in epochs; one number is one period.
            After the last the rate is 0.
        shape: how the rate falls to 0, linear or cosine.
        warmup: share of each period in which it rises first.
        by_epoch: all iterations of an epoch have the rate that follows its last one.

    Raises:
        ValueError: an argument is not what it should be; at the start of `fit`, when the
            optimizer has no learning rate of its own or one that is a schedule, or (unless
            `by_epoch`) the number of iterations in an epoch is unknown or several run at once
            (`steps_per_execution`).
    """

    def __init__(
        self,
        learning_rate: float,
        epochs: int | tuple[int, ...],
        *,
        shape: str = "cosine",
        warmup: float = 0.0,
        by_epoch: bool = False,
    ):
        super().__init__()
        self._supports_tf_logs = True  # as those of a `Stateful`
        expect("learning_rate", learning_rate, number(above=0))
        expect("epochs", epochs, _PERIODS)
        expect("shape", shape, one_of(*_SHAPES))
        expect("warmup", warmup, number(0, below=1))
        expect("by_epoch", by_epoch, FLAG)
        self.learning_rate = learning_rate
        self.epochs = tuple(epochs) if isinstance(epochs, list | tuple) else (epochs,)
        self.shape, self.warmup, self.by_epoch = shape, warmup, by_epoch

    def on_train_begin(self, logs=None):
        _require(self.model, "learning_rate")
        optimizer = optimizers.inner(self.model.optimizer)
        schedule = optimizers.settings(optimizer).get("learning_rate")
        name = type(self).__name__
        if isinstance(schedule, dict):  # as Keras writes one down
            raise ValueError(
                f"Expected an optimizer whose learning rate is a number, which {name} sets. "
                f"Received: {type(optimizer).__name__} with the schedule {schedule['class_name']}"
            )
        self._start(optimizer.learning_rate)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = float(self._variable.numpy())

    def value(self, iteration: int, steps: int) -> float:
        """Learning rate of an iteration of the training, of which an epoch has `steps`."""
        for length in self.epochs:
            if iteration < length * steps:
                if self.by_epoch:
                    iteration = (iteration // steps + 1) * steps
                share = share_of_rate(iteration, length * steps, self.shape, self.warmup)
                return self.learning_rate * share
            iteration -= length * steps
        return 0.0


class LinearDecay(RateSchedule):
    """Lowers the learning rate linearly to 0, anew in each period, such as a step of the paper.

    Iteration t (from 0) of the T in one period runs at ``learning_rate * (1 - t / T)``.
    With `published` the rate is that of the published code, constant within an epoch:
    epoch e of E runs at ``learning_rate * (1 - (e + 1) / E)``, the last one at 0.

    Args:
        learning_rate, epochs: as in `RateSchedule`.
        published: decay by epochs as the published code does.

    Raises:
        ValueError: as `RateSchedule`.
    """

    def __init__(
        self, learning_rate: float, epochs: int | tuple[int, ...], *, published: bool = False
    ):
        expect("published", published, FLAG)
        super().__init__(learning_rate, epochs, shape="linear", by_epoch=published)


class ProgressiveWeights(_Schedule):
    """Has the weights become binary in the course of one step (BNext, arXiv 2211.12933).

    The kernels that are used are ``w / T`` clipped to [-s, s], see `quantizers.scaled_sign`.
    The temperature T falls by the same factor at each iteration, and is 0 after the given
    share of the training: the rest of it, every evaluation and what is saved have the sign.

    Args:
        epochs: of the training.
        share: of its iterations, in which the weights are not binary yet.
        first, last: temperature at the first and at the last of these, in units of the mean
            absolute weight of each output channel.

    Raises:
        ValueError: an argument is not what it should be; at the start of `fit`, when the model
            has no kernel with a `ScaledSign` or the number of iterations in an epoch is unknown.
    """

    def __init__(self, epochs: int, *, share: float = 0.6, first: float = 2.0, last: float = 0.02):
        super().__init__()
        expect("epochs", epochs, _EPOCHS)
        expect("share", share, number(0, 1))
        expect("first", first, number(above=0))
        expect("last", last, number(above=0))
        self.epochs, self.share, self.first, self.last = epochs, share, first, last

    def on_train_begin(self, logs=None):
        found = [
            layers.quantizer(layer, attribute)
            for layer, attribute in layers.binary_quantizers(self.model, layers.KERNELS)
        ]
        self._signs = [sign for sign in found if isinstance(sign, ScaledSign)]
        if not self._signs:
            raise ValueError(
                f"Expected a model with binary kernels by a ScaledSign. Received: {self.model.name}"
            )
        self._start(tf.Variable(0.0, trainable=False, name="temperature"))
        self._set(self._variable.read_value)

    def on_test_begin(self, logs=None):
        self._trained_at = self._variable.numpy()
        self._variable.assign(0.0)

    def on_test_end(self, logs=None):
        self._variable.assign(self._trained_at)

    def on_train_end(self, logs=None):
        self._set(None)

    def _set(self, temperature) -> None:
        for sign in self._signs:
            sign.temperature = temperature
        layers.retrace(self.model)  # a traced function keeps the form it was traced in

    def value(self, iteration: int, steps: int) -> float:
        """Temperature at an iteration of the training, of which an epoch has `steps`."""
        warm = self.share * self.epochs * steps
        if iteration >= warm:
            return 0.0
        return self.first * (self.last / self.first) ** (iteration / max(1, warm - 1))


class AverageWeights(Stateful):
    """Evaluates with an exponential average of the weights, and batch norms that fit it.

    After iteration t (from 1) the average is the mean of the weights after each iteration so
    far, of which the one s iterations ago counts ``momentum**s``: the first iteration is not
    favoured, as in Adam's moments.  It begins anew when the optimizer does, such as at the
    switch to step 2.  The statistics of the batch norms are averaged too or, with `batches`,
    computed anew for each evaluation.  Training goes on with the weights themselves; `swapped`
    lets other code use the average.

    Args:
        momentum: from 0 on and below 1, such as 0.999; with 0 it is the weights themselves.
        batches: images (B, H, W, C), or tuples that begin with them, for
            `reestimate_batch_norm`; they are read again and again, as a tf.data.Dataset can be.

    Raises:
        ValueError: the momentum is out of range; at the start of `fit`, when the model runs
            several iterations at once (`steps_per_execution`).
    """

    def __init__(self, momentum: float, *, batches: Iterable | None = None):
        super().__init__()
        expect("momentum", momentum, number(0, below=1))
        self.momentum = momentum
        self.batches = batches
        self._weights, self._averages = [], []
        self._kept, self._count = [], 0
        self._form = self._estimate = None

    def on_train_begin(self, logs=None):
        check_each_iteration(self)
        self.on_test_end()  # which an interrupted evaluation did not come to
        self._weights, self._averages = [], []
        if self.momentum:
            averaged = [] if self.batches is not None else batch_norm.statistics(self.model)
            self._weights = [*self.model.trainable_variables, *averaged]
        self._averages = [tf.Variable(w.read_value(), trainable=False) for w in self._weights]
        self._count = tf.Variable(0, dtype=tf.int64, trainable=False)  # of iterations in it

        @tf.function(autograph=False)
        def update():
            count = tf.cast(self._count.assign_add(1), tf.float64)
            share = (1 - self.momentum) / -tf.math.expm1(count * math.log(self.momentum))
            for average, weight in zip(self._averages, self._weights, strict=True):
                average.assign_add(tf.cast(share, average.dtype) * (weight - average))

        self._update = update
        self._form = self._estimate = None
        self._running = False
        super().on_train_begin(logs)

    def reset(self):
        self._first = True  # the next iteration is the first of its epoch here

    def on_train_batch_begin(self, batch, logs=None):
        if self._first and optimizers.iterations(self.model.optimizer) == 0:
            self._count.assign(0)
        self._first = False
        self._running = True

    def on_train_batch_end(self, batch, logs=None):
        self.settle()

    def settle(self):
        if self._running:
            self._running = False
            if self.momentum:
                self._update()

    def on_test_begin(self, logs=None):
        statistics = [] if self.batches is None else batch_norm.statistics(self.model)
        changed = [*self._weights, *statistics]
        self._kept = [(variable, variable.numpy()) for variable in changed]
        if self._count.numpy() > 0:
            for weight, average in zip(self._weights, self._averages, strict=True):
                weight.assign(average.numpy())
        if self.batches is not None:
            form = layers.binarization(self.model)
            if form != self._form:  # a traced function keeps the form it was traced in
                self._form, self._estimate = form, batch_norm.estimator(self.model)
            self._estimate(self.batches)

    def on_test_end(self, logs=None):
        for variable, value in self._kept:
            variable.assign(value)
        self._kept = []

    @contextlib.contextmanager
    def swapped(self):
        """Within it the model has the averaged weights."""
        self.on_test_begin()
        try:
            yield
        finally:
            self.on_test_end()

    def get_state(self) -> dict[str, np.ndarray]:
        """The averages, and how many iterations they are of."""
        averages = {str(i): average.numpy() for i, average in enumerate(self._averages)}
        return {**super().get_state(), **averages, "count": self._count.numpy()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        self._count.assign(state["count"])
        for i, average in enumerate(self._averages):
            average.assign(state[str(i)])
