"""What changes from iteration to iteration, or from epoch to epoch: rates, decay, temperature."""

import math
from collections.abc import Mapping

import tensorflow as tf

from larq_adambnn import layers, optimizers
from larq_adambnn.arguments import (
    FLAG,
    Kind,
    either,
    expect,
    number,
    one_of,
    several,
    whole,
)
from larq_adambnn.callbacks.state import check_each_iteration
from larq_adambnn.quantizers import ScaledSign

__all__ = [
    "LinearDecay",
    "ProgressiveWeights",
    "RateSchedule",
    "WeightDecaySchedule",
    "share_of_rate",
]

_EPOCHS = whole(1)
_PERIODS = either(_EPOCHS, several(_EPOCHS, "several of them"))


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

    def __init__(self):
        super().__init__()
        self._supports_tf_logs = True  # as those of a `Stateful`

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
