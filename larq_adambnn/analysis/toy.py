"""The paper's smallest network: two nodes, whose loss can be drawn whole."""

import larq as lq
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from larq_adambnn import optimizers
from larq_adambnn.analysis import style
from larq_adambnn.analysis.figures import Data

__all__ = ["toy_surface"]

_START = (-1.6, -1.3)
_EDGE = 2.5
_SAMPLES = 64
_SPREAD = (2.0, 0.5)  # standard deviations of the two inputs: one saturates its node


def _soft_sign(x: np.ndarray) -> np.ndarray:
    """The function whose derivative is that of `lq.quantizers.ApproxSign`."""
    return np.where(np.abs(x) < 1, 2 * x - x * np.abs(x), np.sign(x))


def toy_surface(
    *,
    resolution: int = 101,
    iterations: int = 150,
    sgd_rate: float = 0.05,
    adam_rate: float = 0.05,
    seed: int = 0,
) -> tuple[Data, Figure]:
    """Figure 6: the loss of two binary nodes, and the paths of SGD and Adam on it.

    Each node has one input and one weight and gives ``sign(w * x)``; the network is the
    mean of the two, its target that with both weights positive, the loss the mean
    squared error over 64 samples.  The true surface knows only the weights' signs; the
    approximated one has the sign replaced by the function whose derivative is the
    sign's gradient in training, 2 - 2|x| inside [-1, 1].  Training is as everywhere:
    signs forward, that gradient backward.  The first node's inputs are four times as
    large as the second's, so its node is saturated on most samples.

    Args:
        resolution: points along each weight.
        iterations: updates of each optimizer, from the same start.
        sgd_rate, adam_rate: learning rates; SGD has a momentum of 0.9.
        seed: of the samples.

    Returns:
        `weights` (resolution,), `true` and `approximated` (resolution, resolution) with
        the second weight on axis 0, and of each optimizer the path (iterations + 1, 2) and
        the loss on it; and the figure.
    """
    inputs = np.random.default_rng(seed).standard_normal((_SAMPLES, 2)) * _SPREAD
    target = np.sign(inputs).mean(axis=1)
    weights = np.linspace(-_EDGE, _EDGE, resolution)
    nodes = weights[:, np.newaxis] * inputs.T[:, np.newaxis]  # (node, weight, sample)

    def losses(activate):
        first, second = activate(nodes)
        mean = (first[np.newaxis] + second[:, np.newaxis]) / 2  # (second, first, sample)
        return np.mean(np.square(mean - target), axis=-1)

    data = {
        "weights": weights,
        "true": losses(np.sign),
        "approximated": losses(_soft_sign),
    }
    for name, optimizer in (
        ("sgd", optimizers.SGD(sgd_rate)),
        ("adam", optimizers.Adam(adam_rate)),
    ):
        data[name], data[f"{name} loss"] = _path(optimizer, inputs, target, iterations)
    return data, _draw(data, {"sgd": sgd_rate, "adam": adam_rate})


def _path(optimizer, inputs, target, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights before each update and after the last, their losses)."""
    sign = lq.quantizers.ApproxSign()
    inputs, target = tf.constant(inputs, tf.float32), tf.constant(target, tf.float32)
    weights = tf.Variable(_START)
    path, losses = [], []
    for iteration in range(iterations + 1):
        with tf.GradientTape() as tape:
            output = tf.reduce_mean(sign(weights * inputs), axis=1)
            loss = tf.reduce_mean(tf.square(output - target))
        path.append(weights.numpy())
        losses.append(float(loss))
        if iteration < iterations:
            optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
    return np.array(path), np.array(losses)


def _draw(data: Data, rates: dict[str, float]) -> Figure:
    figure = style.new_figure(12, 4)
    levels = MaxNLocator(20).tick_values(0, max(data["true"].max(), data["approximated"].max()))
    colors = style.colors(rates)
    surfaces = []
    for index, (name, title) in enumerate(
        (("true", "true loss"), ("approximated", "loss of the approximated gradient")), start=1
    ):
        axes = figure.add_subplot(1, 3, index)
        weights = data["weights"]
        filled = axes.contourf(weights, weights, data[name], levels=levels, cmap=style.LOSS_MAP)
        for optimizer, rate in rates.items():
            axes.plot(
                *data[optimizer].T,
                ".-",
                color=colors[optimizer],
                markersize=3,
                lw=1,
                label=f"{optimizer}, rate {rate:g}",
            )
        axes.plot(*_START, "wo", markeredgecolor="black", label="start")
        axes.set(
            title=title,
            xlabel="weight of node 1",
            ylabel="weight of node 2",
            xlim=(-_EDGE, _EDGE),
            ylim=(-_EDGE, _EDGE),
        )
        axes.legend(loc="lower right", fontsize=8)
        surfaces.append(axes)
    figure.colorbar(filled, ax=surfaces, label="mean squared error", ticks=levels[::4])
    axes = figure.add_subplot(1, 3, 3)
    for optimizer in rates:
        axes.plot(data[f"{optimizer} loss"], color=colors[optimizer], label=optimizer)
    axes.set(title="true loss on the paths", xlabel="update", ylabel="mean squared error")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
