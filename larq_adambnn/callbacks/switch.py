"""From step 1 to step 2 inside one fit."""

import contextlib
import os
import weakref
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from larq_adambnn import layers, optimizers, weights
from larq_adambnn.arguments import (
    FLAG,
    PATH,
    expect,
    instance,
    optional,
    several,
    whole,
)
from larq_adambnn.callbacks.average import AverageWeights
from larq_adambnn.callbacks.state import Stateful
from larq_adambnn.distillation import Distiller

__all__ = ["FirstStepTeacher", "TwoStepSwitch"]

_EPOCHS = whole(1)
_FORM = several(FLAG, "(activations, weights), each True or False", length=2)

_in_first_step = weakref.WeakSet()  # models that were trained in it, in this process


class TwoStepSwitch(Stateful):
    """Goes from step 1 to step 2 inside one `fit` (AdamBNN, section 4.3).

    Before epoch 0 it sets what is binary in step 1.  Before `epoch` it sets what is
    binary in step 2, and resets the optimizer: moments and iteration count, not the
    learning rate.  A `fit` that starts or resumes later finds the right form too, and
    is not reset twice.  The `attention` of a `Distiller` is for step 1 alone, as in
    Real-to-Binary (arXiv 2003.11535, section 4.2).

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
        if isinstance(self.model, Distiller):  # before it is traced for that form
            self.model.matches_attention = bool(self.model.attention) and epoch < self.epoch
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

    For a `Distiller`; it comes after the `TwoStepSwitch` and the `AverageWeights` in the list.
    A later `fit` with it that begins in step 2 goes on with the same teacher; without its state,
    such as with a new one, the teacher takes the weights of that moment.

    Args:
        epoch: first epoch of step 2, as the switch has it.
        copy: the student's network, built once more; it takes the student's weights then.
        first: (activations, weights) that are binary in step 1.
        average: what step 1 is evaluated with; the teacher takes these averages and batch norms.
            None takes the student's own weights, such as those that the switch reloads.

    Raises:
        ValueError: an argument is not what it should be; or, when it is used, the fitted model is
            no Distiller, or `average` is none of the callbacks of the fit.
    """

    def __init__(
        self,
        epoch: int,
        copy: tf.keras.Model,
        *,
        first: tuple[bool, bool] = (True, False),
        average: AverageWeights | None = None,
    ):
        super().__init__()
        expect("epoch", epoch, _EPOCHS)
        expect("copy", copy, instance(tf.keras.Model, "a Keras model"))
        expect("first", first, _FORM)
        expect("average", average, optional(instance(AverageWeights, "an AverageWeights")))
        self.epoch = epoch
        self.first, self.average = tuple(first), average
        self.copy = layers.binarize(copy, *first)
        self._begun = False

    def on_train_begin(self, logs=None):
        expect("model", self.model, instance(Distiller, "a Distiller"))
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if epoch < self.epoch:
            self._begun = False
            self.model.substitute(None)  # after an earlier fit
            return
        if not self._begun:
            self._take()
            self._begun = True
        self.model.substitute(lambda images: self.copy(images, training=False))

    def _take(self) -> None:
        """Copies the weights with which step 1 is evaluated."""
        if self.average is not None and self.average.model is not self.model:
            raise ValueError(
                "Expected average to be one of the callbacks of the fit. Received: another"
            )
        student, form = self.model.student, layers.binarization(self.model)
        layers.binarize(student, *self.first)  # batch norms computed anew are those of step 1
        with self.average.swapped() if self.average else contextlib.nullcontext():
            self.copy.set_weights(student.get_weights())
        layers.binarize(student, *form)

    def get_state(self) -> dict[str, np.ndarray]:
        """The weights of the teacher, and whether it teaches."""
        copied = {str(i): array for i, array in enumerate(self.copy.get_weights())}
        return {**super().get_state(), **copied, "begun": np.bool_(self._begun)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begun = bool(state["begun"])
        self.copy.set_weights([state[str(i)] for i in range(len(self.copy.weights))])
