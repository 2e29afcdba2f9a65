"""The paper's measurements as Keras callbacks, for any `model.fit` of Larq layers.

Each adds its total to the logs of the epoch and keeps the figures of every binary layer
in `by_layer`, {column: {layer: value}}, until it measures again.  What a resumed training needs
of them is kept as `state.Stateful` says.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from larq_adambnn import layers, optimizers
from larq_adambnn.arguments import array, expect, whole
from larq_adambnn.callbacks.state import Stateful, check_each_iteration

__all__ = [
    "ActivationSaturation",
    "CorrelationToInitialization",
    "FlipFlopRatio",
    "Gradients",
    "KernelMagnitude",
    "UpdateSize",
    "absolute_means",
    "binary_input",
    "binary_kernels",
    "latent_weights",
    "visit_binary_inputs",
]


def absolute_means(values: np.ndarray) -> np.ndarray:
    """CAM: the mean absolute value of each output channel (AdamBNN, section 4.1).

    Args:
        values: weights or their updates, output channels on the last axis.

    Returns:
        Array of one value a channel; its standard deviation is the SDAM.
    """
    return np.abs(values).mean(axis=tuple(range(values.ndim - 1)))


def binary_kernels(model: tf.keras.Model) -> dict[str, tf.Variable]:
    """The latent weights of every binary layer by the layer's name, in the network's order.

    The second kernel of a layer with two, and layers of the same name in nested models,
    get a number after the name.
    """
    found: dict[str, tf.Variable] = {}
    for layer, attribute in layers.binary_quantizers(model, layers.KERNELS):
        kernel = getattr(layer, layers.KERNELS[attribute], None)
        if kernel is not None:  # it is built
            found[_new_name(layer.name, found)] = kernel
    return found


def latent_weights(model: tf.keras.Model) -> tuple[np.ndarray, float]:
    """The latent weights of all binary layers, (N,), and the `layers.clip` of the first's."""
    kernels = [kernel.numpy().ravel() for kernel in binary_kernels(model).values()]
    if not kernels:
        return np.zeros(0), math.inf
    first = layers.binary_quantizers(model, layers.KERNELS)[0]
    return np.concatenate(kernels), layers.clip(*first)


def _new_name(name: str, taken) -> str:
    number, new = 2, name
    while new in taken:
        new = f"{name}_{number}"
        number += 1
    return new


def visit_binary_inputs(
    model: tf.keras.Model, images: tf.Tensor, visit: Callable[[str, tf.Tensor, float], None]
) -> None:
    """Runs a model in inference mode and shows every binary layer's input to a function.

    Args:
        model: any model of Larq layers, nested or subclassed ones too.
        images: batch (B, H, W, C) for it.
        visit: called with the layer's name, the real values (float32) that its input
            quantizer is about to get, or would if it were on, and its `layers.clip`.
    """
    watched: dict[str, tf.keras.layers.Layer] = {}
    for layer, _ in layers.binary_quantizers(model, ["input_quantizer"]):
        watched[_new_name(layer.name, watched)] = layer

    def watching(name, layer):
        call, clip = layer.call, layers.clip(layer, "input_quantizer")

        def watched_call(inputs, *args, **kwargs):
            visit(name, tf.cast(inputs, tf.float32), clip)
            return call(inputs, *args, **kwargs)

        return watched_call

    try:
        for name, layer in watched.items():
            # Past Keras's __setattr__, which would track the function.
            object.__setattr__(layer, "call", watching(name, layer))
        model(images, training=False)
    finally:
        for layer in watched.values():
            vars(layer).pop("call", None)


def binary_input(model: tf.keras.Model, images: tf.Tensor, layer: str) -> tuple[np.ndarray, float]:
    """One binary layer's input and its clip, as `visit_binary_inputs` sees them."""
    found = {}

    def keep(name, values, clip):
        if name == layer:
            found[name] = values.numpy(), clip

    visit_binary_inputs(model, images, keep)
    return found[layer]


def _size(variable) -> int:
    return variable.shape.num_elements()


def _binarization(model) -> list[bool]:
    """What is binary now, quantizer by quantizer."""
    return [layers.is_binary(*found) for found in layers.binary_quantizers(model)]


def _unpacked(bits: np.ndarray, shape: tf.TensorShape) -> np.ndarray:
    """The booleans of a shape that np.packbits made into bits."""
    return np.unpackbits(bits, count=shape.num_elements()).reshape(shape).astype(bool)


def _weighted_mean(by_layer: Mapping[str, float], kernels: Mapping[str, tf.Variable]) -> float:
    """Mean over layers, each counting with its number of weights."""
    sizes = {name: _size(kernel) for name, kernel in kernels.items()}
    return sum(by_layer[n] * sizes[n] for n in by_layer) / max(1, sum(sizes.values()))


class _Measurement(tf.keras.callbacks.Callback):
    """A callback with the figures of each layer of the last epoch it measured.

    An iteration is measured where its weights are: what is read from there is read once an epoch.
    """

    def __init__(self):
        super().__init__()
        self.by_layer: dict[str, dict[str, float]] = {}

    def _log(self, logs, column: str, by_layer: dict[str, float], total: float) -> None:
        self.by_layer[column] = by_layer
        if logs is not None:
            logs[column] = total


class _Signs:
    """Which binary weights of a model are at least 0, as tensors where its kernels are.

    They are no variables, of which each replica would have a copy.

    Attributes:
        kernels: the latent weights by layer.
    """

    def __init__(self, model: tf.keras.Model):
        self.kernels = binary_kernels(model)
        self.now = tf.function(self._now, autograph=False)
        self.compare = tf.function(self._compare, autograph=False)

    def _now(self) -> list[tf.Tensor]:
        return [kernel >= 0 for kernel in self.kernels.values()]

    def _compare(self, before: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The signs now, and how many of each layer are others than before (int64)."""
        now = self._now()
        # Not int32, whose sums TensorFlow takes to the processor.
        changes = [
            tf.reduce_sum(tf.cast(tf.not_equal(*pair), tf.int64))
            for pair in zip(before, now, strict=True)
        ]
        return now, tf.stack(changes) if changes else tf.zeros(0, tf.int64)


class FlipFlopRatio(_Measurement, Stateful):
    """Logs `ff_ratio`: the share of binary weights that change sign in an iteration.

    ``sum |sign(w_t+1) - sign(w_t)| / 2`` over all binary weights, divided by their
    number and averaged over the iterations of the epoch (AdamBNN, equation 5); in
    `by_layer` the same over the weights of one layer.  It reads the latent weights, so
    scaled signs count like plain ones and step 1 is measured too; sign(0) is +1.

    Raises:
        ValueError: at the start of `fit`, when the model runs several iterations at once
            (`steps_per_execution`), between which weights flip unseen.
    """

    def on_train_begin(self, logs=None):
        check_each_iteration(self)
        self._signs = _Signs(self.model)
        self._running = False
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._before = None

    def on_train_batch_begin(self, batch, logs=None):
        if self._before is None:  # other callbacks may set weights before
            self._before = self._signs.now()
        self._running = True

    def on_train_batch_end(self, batch, logs=None):
        self.settle()

    def settle(self):
        if not self._running:
            return
        self._running = False
        self._before, changes = self._signs.compare(self._before)
        self._flips += changes
        self._iterations += 1

    def on_epoch_end(self, epoch, logs=None):
        kernels = self._signs.kernels
        flips = dict(zip(kernels, self._flips.numpy().tolist(), strict=True))
        iterations = max(1, self._iterations)
        ratios = {n: flips[n] / (_size(k) * iterations) for n, k in kernels.items()}
        self._log(logs, "ff_ratio", ratios, _weighted_mean(ratios, kernels))

    def reset(self):
        self._flips = tf.zeros(len(self._signs.kernels), tf.int64)
        self._iterations = 0

    def get_state(self) -> dict[str, np.ndarray]:
        """The flips so far in the epoch."""
        counts = {"flips": self._flips.numpy(), "iterations": np.int64(self._iterations)}
        return {**super().get_state(), **counts}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        self._flips = tf.constant(state["flips"], tf.int64)
        self._iterations = int(state["iterations"])


class CorrelationToInitialization(_Measurement, Stateful):
    """Logs `c2i_ratio` and `c2i_step_ratio`: the share of binary weights with their old sign.

    ``1 - sum |sign(w) - sign(w_init)| / 2`` over the number of binary weights (AdamBNN,
    equation 6; the factor 1/2 that the paper prints contradicts its own table and is
    left out).  `c2i_ratio` is against the weights at the start of the training,
    `c2i_step_ratio` against those at the start of the paper's step, which is the epoch
    in which other things became binary.
    """

    def on_train_begin(self, logs=None):
        self._signs = _Signs(self.model)
        self._initial = dict.fromkeys(("run", "step"), self._signs.now())
        self._form = _binarization(self.model)
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._begun = False

    def on_train_batch_begin(self, batch, logs=None):
        if self._begun:
            return
        self._begun = True  # other callbacks may switch the model before the first batch
        form = _binarization(self.model)
        if form != self._form:
            self._form, self._initial["step"] = form, self._signs.now()

    def on_epoch_end(self, epoch, logs=None):
        kernels = self._signs.kernels
        for column, start in (("c2i_ratio", "run"), ("c2i_step_ratio", "step")):
            _, changes = self._signs.compare(self._initial[start])
            changes = dict(zip(kernels, changes.numpy().tolist(), strict=True))
            ratios = {name: 1 - changes[name] / _size(k) for name, k in kernels.items()}
            self._log(logs, column, ratios, _weighted_mean(ratios, kernels))

    def get_state(self) -> dict[str, np.ndarray]:
        """The signs at the start of the training and of the paper's step, as bits."""
        bits = {
            f"{start}/{index}": np.packbits(layer.numpy())
            for start, by_layer in self._initial.items()
            for index, layer in enumerate(by_layer)
        }
        return {**super().get_state(), **bits, "form": np.array(self._form)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        for start in self._initial:
            self._initial[start] = [
                tf.constant(_unpacked(state[f"{start}/{index}"], kernel.shape))
                for index, kernel in enumerate(self._signs.kernels.values())
            ]
        self._form = state["form"].tolist()


class ActivationSaturation(_Measurement):
    """Logs `saturation`: the share of the binary layers' inputs beyond their sign's clip.

    Where |x| is above it, 1 as published, the sign of the input has no gradient (AdamBNN, section
    4.1); see `layers.clip`.  The inputs are those of a fixed batch in inference mode, after the
    shift of an RSign; the total is over the inputs of all layers.

    Args:
        images: the batch, (B, H, W, C) as the model takes it.
        every: epochs from one measured to the next, beginning with epoch 0.

    Raises:
        ValueError: an argument is not what it should be.
    """

    def __init__(self, images, *, every: int = 1):
        super().__init__()
        expect("images", images, array("(B, H, W, C)"))
        expect("every", every, whole(1))
        self.images = tf.convert_to_tensor(images)
        self.every = every

    def on_train_begin(self, logs=None):
        self._form = None

    def on_epoch_end(self, epoch, logs=None):
        if epoch % self.every:
            return
        form = _binarization(self.model)
        if form != self._form:  # a traced function keeps the form it was traced in
            self._form, self._saturated = form, tf.function(self._count)
        saturated = {name: int(count) for name, count in self._saturated().items()}
        shares = {name: count / self._inputs[name] for name, count in saturated.items()}
        total = sum(saturated.values()) / max(1, sum(self._inputs.values()))
        self._log(logs, "saturation", shares, total)

    def _count(self) -> dict[str, tf.Tensor]:
        """The number of each layer's inputs beyond the clip."""
        saturated: dict[str, tf.Tensor] = {}
        self._inputs: dict[str, int] = {}

        def count(name, x, clip):
            outside = tf.math.count_nonzero(tf.abs(x) > clip)
            saturated[name] = saturated.get(name, 0) + outside
            self._inputs[name] = self._inputs.get(name, 0) + _size(x)

        visit_binary_inputs(self.model, self.images, count)
        return saturated


class KernelMagnitude(_Measurement):
    """Logs `cam` and `sdam` of the latent weights (AdamBNN, section 4.1).

    A channel's CAM is the mean absolute value of its weights, see `absolute_means`.  In
    `by_layer`, `cam` is the mean and `sdam` the standard deviation of a layer's CAMs;
    the totals are their means over the layers.
    """

    def on_train_begin(self, logs=None):
        self._kernels = binary_kernels(self.model)
        self._means = tf.function(self._measure, autograph=False)

    def _measure(self) -> list[tf.Tensor]:
        return [
            tf.reduce_mean(tf.abs(kernel), axis=list(range(kernel.shape.rank - 1)))
            for kernel in self._kernels.values()
        ]

    def on_epoch_end(self, epoch, logs=None):
        means = zip(self._kernels, (cams.numpy() for cams in self._means()), strict=True)
        means = dict(means)
        for column, statistic in (("cam", np.mean), ("sdam", np.std)):
            values = {name: float(statistic(cams)) for name, cams in means.items()}
            self._log(logs, column, values, sum(values.values()) / max(1, len(values)))


class UpdateSize(_Measurement, Stateful):
    """Logs `update_size`: the mean ``|w_t+1 - w_t|`` of the latent weights.

    Averaged over every so many iterations of the epoch, beginning with its first, and
    over all weights; in `by_layer` over those of one layer.

    Args:
        every: iterations from one measured to the next.

    Raises:
        ValueError: `every` is no positive number; at the start of `fit`, when the model runs
            several iterations at once (`steps_per_execution`).
    """

    def __init__(self, *, every: int = 10):
        super().__init__()
        expect("every", every, whole(1))
        self.every = every

    def on_train_begin(self, logs=None):
        check_each_iteration(self)
        self._kernels = binary_kernels(self.model)
        self._add = tf.function(self._measure, autograph=False)
        self._before = None
        super().on_train_begin(logs)

    def _measure(self, before, sums):
        pairs = zip(self._kernels.values(), before, strict=True)
        sizes = [tf.reduce_mean(tf.abs(new - old)) for new, old in pairs]
        return sums + tf.cast(tf.stack(sizes), tf.float64) if sizes else sums

    def on_train_batch_begin(self, batch, logs=None):
        if batch % self.every == 0:
            self._before = [tf.identity(kernel) for kernel in self._kernels.values()]

    def on_train_batch_end(self, batch, logs=None):
        self.settle()

    def settle(self):
        if self._before is not None:
            self._sums = self._add(self._before, self._sums)
            self._iterations += 1
            self._before = None

    def on_epoch_end(self, epoch, logs=None):
        sizes = dict(zip(self._kernels, self._sums.numpy().tolist(), strict=True))
        sizes = {name: size / max(1, self._iterations) for name, size in sizes.items()}
        self._log(logs, "update_size", sizes, _weighted_mean(sizes, self._kernels))

    def reset(self):
        self._sums = tf.zeros(len(self._kernels), tf.float64)
        self._iterations = 0

    def get_state(self) -> dict[str, np.ndarray]:
        """The update sizes so far in the epoch."""
        counts = {"sums": self._sums.numpy(), "iterations": np.int64(self._iterations)}
        return {**super().get_state(), **counts}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        self._sums = tf.constant(state["sums"], tf.float64)
        self._iterations = int(state["iterations"])


class Gradients(_Measurement, Stateful):
    """Logs `gradient_norm` and `dead_weights` of the latent weights.

    Both are of the loss's gradient as the optimizer gets it: summed over replicas,
    unscaled, before any weight decay.  `gradient_norm` is the root of the mean over
    the iterations of the epoch of its squared L2 norm.  `dead_weights` is the share of
    weights whose gradient is exactly 0 in every iteration of the epoch: those that stay
    outside the clip of their sign's gradient (|w| > 1 as published), or that only meet saturated
    activations.

    It watches the optimizer's updates from inside the traced training function.
    """

    def on_train_begin(self, logs=None):
        self._kernels = binary_kernels(self.model)
        kernels = self._kernels.values()
        self._index = {_key(kernel): index for index, kernel in enumerate(kernels)}
        self._squares = [tf.Variable(0.0, trainable=False) for _ in kernels]
        self._counts = [tf.Variable(0, dtype=tf.int64, trainable=False) for _ in kernels]
        self._alive = list(map(_flags_beside, kernels))
        self._watched = _watch_updates(self.model.optimizer, self._observe)
        layers.retrace(self.model)  # a function traced in an earlier fit would not see it
        super().on_train_begin(logs)

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        for restore in self._watched:
            restore()
        layers.retrace(self.model)

    def _observe(self, gradient, variable):
        index = self._index.get(_key(variable))
        if index is None:
            return
        gradient = tf.cast(gradient, tf.float32)
        self._squares[index].assign_add(2 * tf.nn.l2_loss(gradient))
        self._counts[index].assign_add(1)
        alive = self._alive[index]
        alive.assign(tf.logical_or(alive, tf.cast(gradient, tf.bool)))

    def on_epoch_end(self, epoch, logs=None):
        names = list(self._kernels)
        squares = [
            float(square.numpy()) / max(1, int(count.numpy()))
            for square, count in zip(self._squares, self._counts, strict=True)
        ]
        norms = {name: square**0.5 for name, square in zip(names, squares, strict=True)}
        self._log(logs, "gradient_norm", norms, sum(squares) ** 0.5)
        dead = [1 - np.count_nonzero(alive.numpy()) / _size(alive) for alive in self._alive]
        dead = dict(zip(names, dead, strict=True))
        self._log(logs, "dead_weights", dead, _weighted_mean(dead, self._kernels))

    def reset(self):
        for variable in (*self._squares, *self._counts, *self._alive):
            variable.assign(tf.zeros_like(variable))

    def get_state(self) -> dict[str, np.ndarray]:
        """The norms so far in the epoch, and which weights have had a gradient, as bits."""
        return {
            **super().get_state(),
            "squares": np.array([square.numpy() for square in self._squares], np.float32),
            "counts": np.array([count.numpy() for count in self._counts], np.int64),
            **{f"alive/{i}": np.packbits(alive.numpy()) for i, alive in enumerate(self._alive)},
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        for index, alive in enumerate(self._alive):
            self._squares[index].assign(state["squares"][index])
            self._counts[index].assign(state["counts"][index])
            alive.assign(_unpacked(state[f"alive/{index}"], alive.shape))


def _flags_beside(variable: tf.Variable) -> tf.Variable:
    """A flag for each value of a variable, on its first device alone."""
    with tf.device(variable.device):
        # A tf.Variable would have a copy on each device of a strategy.
        return ResourceVariable(tf.zeros(variable.shape, tf.bool), trainable=False)


def _key(variable) -> str:
    """The same for a variable and for its copy on the first of several devices.

    The copies on the others have keys of their own, so that their updates, which are the
    same, are not counted again.
    """
    return variable._unique_id


def _watch_updates(optimizer, observe: Callable) -> list[Callable[[], None]]:
    """Has a function called with the gradient and the variable of every update.

    Works with Keras's optimizers, its legacy ones and Larq's, which it changes in place.

    Returns:
        Functions that undo it.
    """
    optimizer = optimizers.inner(optimizer)
    undo = []
    for part in optimizers.parts(optimizer):
        name = "_resource_apply_dense" if optimizers.is_legacy(part) else "update_step"
        undo.append(_wrap(part, name, observe))
        if getattr(part, "jit_compile", False):  # its compiled updates outlive a fit
            part.jit_compile = False
            undo.append(lambda part=part: setattr(part, "jit_compile", True))
    return undo


def _wrap(instance, name: str, observe: Callable) -> Callable[[], None]:
    method = getattr(instance, name)
    method = getattr(method, "observes", method)  # an interrupted fit left its own behind

    def observed(gradient, variable, *args, **kwargs):
        observe(gradient, variable)
        return method(gradient, variable, *args, **kwargs)

    observed.observes = method
    setattr(instance, name, observed)
    return lambda: vars(instance).pop(name, None)
