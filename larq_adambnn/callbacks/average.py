"""Averaged weights."""

import contextlib
import math
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from larq_adambnn import batch_norm, layers, optimizers
from larq_adambnn.arguments import (
    expect,
    number,
)
from larq_adambnn.callbacks.state import Stateful, check_each_iteration

__all__ = ["AverageWeights"]


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
        self._kept, self._count = [], None
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
        if self._count is not None and self._count.numpy() > 0:
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
