"""Loss surfaces of networks, and the path of a training on them (arXiv 1712.09913)."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from larq_adambnn.analysis import style
from larq_adambnn.analysis.figures import Data

__all__ = ["draw_surfaces", "filter_normalized", "loss_surface", "trajectory"]


def filter_normalized(weights: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """A random direction whose filters are as long as those of the weights.

    Gaussian, each output channel (last axis) scaled to the norm of the weights' same
    channel; 0 for vectors, which are biases and batch norm (arXiv 1712.09913, section 4).
    """
    generator = np.random.default_rng(seed)
    directions = []
    for weight in weights:
        direction = generator.standard_normal(weight.shape).astype(np.float32)
        if weight.ndim < 2:
            direction[:] = 0
        else:
            axes = tuple(range(weight.ndim - 1))
            own = np.sqrt(np.sum(np.square(direction), axis=axes))
            direction *= np.sqrt(np.sum(np.square(weight), axis=axes)) / np.maximum(own, 1e-12)
        directions.append(direction)
    return directions


def _losses(model, images, labels, directions, first, second) -> np.ndarray:
    """Cross-entropy at weights + a * directions[0] + b * directions[1], as (len(b), len(a))."""
    moved = [
        (variable, tf.identity(variable), tf.constant(d), tf.constant(e))
        for variable, d, e in zip(model.trainable_variables, *directions, strict=True)
        if np.any(d) or np.any(e)
    ]

    @tf.function
    def loss(a, b):
        for variable, weight, d, e in moved:
            variable.assign(weight + a * d + b * e)
        logits = tf.cast(model(images, training=False), tf.float32)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    try:
        return np.array(
            [
                [
                    loss(tf.constant(a, tf.float32), tf.constant(b, tf.float32)).numpy()
                    for a in first
                ]
                for b in second
            ]
        )
    finally:
        for variable, weight, _, _ in moved:
            variable.assign(weight)


def loss_surface(
    model: tf.keras.Model,
    images,
    labels,
    *,
    resolution: int = 15,
    radius: float = 1.0,
    seed: int = 0,
) -> Data:
    """Loss around a network's weights along two filter-normalized random directions.

    Args:
        model: from images to logits; its latent weights are moved, batch norm keeps its
            running statistics.  It is left as it was.
        images, labels: (B, H, W, C) and (B,); the loss is their mean cross-entropy.
        resolution: points along each direction; the middle one of an odd number is the
            network itself.
        radius: the farthest point, where a direction is as long as the weights.
        seed: of the directions.

    Returns:
        `first` and `second`, the coordinates (resolution,), and `loss`, an array
        (resolution, resolution) with the second direction on axis 0.
    """
    weights = [variable.numpy() for variable in model.trainable_variables]
    directions = [filter_normalized(weights, 2 * seed + index) for index in range(2)]
    coordinates = np.linspace(-radius, radius, resolution)
    losses = _losses(model, images, labels, directions, coordinates, coordinates)
    return {"first": coordinates, "second": coordinates, "loss": losses}


def draw_surfaces(surfaces: Mapping[str, Data]) -> Figure:
    """Figure 1: surfaces side by side on one scale, as contours and in three dimensions."""
    figure = style.new_figure(4.2 * len(surfaces) + 0.6, 7.2)
    norm = _norm([surface["loss"] for surface in surfaces.values()])
    flat = []
    for index, (title, surface) in enumerate(surfaces.items(), start=1):
        axes = figure.add_subplot(2, len(surfaces), index)
        filled = _contour(axes, surface, norm)
        flat.append(axes)
        axes.plot(0, 0, "w*", markersize=11, markeredgecolor="black", label="trained weights")
        axes.set(
            title=title,
            xlabel="first direction (norms of the filters)",
            ylabel="second direction (norms of the filters)",
            aspect="equal",
        )
        axes.legend(loc="upper right", fontsize=8)
        solid = figure.add_subplot(2, len(surfaces), len(surfaces) + index, projection="3d")
        a, b = np.meshgrid(surface["first"], surface["second"])
        height = np.log10(np.clip(surface["loss"], norm.vmin, norm.vmax))
        solid.plot_surface(
            a,
            b,
            height,
            facecolors=matplotlib.colormaps[style.LOSS_MAP](norm(10**height)),
            rstride=1,
            cstride=1,
            shade=False,
            edgecolor="white",
            linewidth=0.2,
        )
        solid.set(
            xlabel="first direction",
            ylabel="second direction",
            zlabel="log10 of the loss",
            zlim=np.log10([norm.vmin, norm.vmax]),
            xticks=surface["first"][[0, len(a) // 2, -1]],
            yticks=surface["second"][[0, len(a) // 2, -1]],
        )
        solid.tick_params(labelsize=8)
        solid.set_box_aspect((1, 1, 0.8), zoom=0.85)
    _colorbar(figure, filled, flat)
    return figure


def _norm(losses: Sequence[np.ndarray]) -> LogNorm:
    """A logarithmic colour scale for the finite losses, over at most four decades."""
    values = np.concatenate([loss[np.isfinite(loss) & (loss > 0)] for loss in losses])
    high = float(values.max(initial=1e-3))
    low = max(float(values.min(initial=high)), high / 1e4)
    return LogNorm(low, max(high, low * 1.01))


def _contour(axes, surface: Data, norm: LogNorm):
    levels = np.geomspace(norm.vmin, norm.vmax, 21)
    losses = np.clip(surface["loss"], norm.vmin, norm.vmax)
    grid = surface["first"], surface["second"]
    axes.contour(*grid, losses, levels=levels[1:-1], colors="white", linewidths=0.4)
    return axes.contourf(*grid, losses, levels=levels, norm=norm, cmap=style.LOSS_MAP)


def trajectory(
    model: tf.keras.Model,
    states: Sequence[Sequence[np.ndarray]],
    images,
    labels,
    *,
    titles: Sequence[str] | None = None,
    resolution: int = 15,
) -> tuple[Data, Figure]:
    """Figure 1, continued: a training's path on the plane where it varies most.

    The plane goes through the last weights along the two principal components of the
    others' differences from them (arXiv 1712.09913, section 7).  The surface is that of
    the model as it is: its form and its batch-norm statistics.

    Args:
        model: from images to logits, with the last weights.
        states: values of `model.trainable_variables` in the order of the training, the
            last ones those of the model; at least three.
        images, labels: as in `loss_surface`.
        titles: a name of each state, by default its number; equal ones share a colour.
        resolution: points along each direction.

    Returns:
        Data as of `loss_surface` with `path`, an array (states, 2), and `explained`, the
        two components' share of the squared distances to the end; and the figure.

    Raises:
        ValueError: fewer than three states.
    """
    if len(states) < 3:
        raise ValueError(f"Expected at least 3 states. Received: {len(states)}")
    titles = titles or [str(number) for number in range(len(states))]
    offsets = np.stack([_flat(state) - _flat(states[-1]) for state in states])
    # The components from the small matrix of inner products, not from that of weights.
    values, vectors = np.linalg.eigh(offsets.astype(np.float64) @ offsets.T.astype(np.float64))
    values, vectors = np.maximum(values[::-1][:2], 0), vectors[:, ::-1][:, :2]
    scale = np.sqrt(np.maximum(values, 1e-30))
    components = (offsets.T @ vectors / scale).T.astype(np.float32)
    path = (vectors * scale).astype(np.float64)
    path -= path[-1]
    explained = values / max(float(np.sum(np.square(offsets, dtype=np.float64))), 1e-30)

    margin = 0.2 * np.maximum(np.ptp(path, axis=0), 0.05 * np.ptp(path))
    first, second = (
        np.linspace(path[:, i].min() - margin[i], path[:, i].max() + margin[i], resolution)
        for i in range(2)
    )
    shapes = [variable.shape for variable in model.trainable_variables]
    directions = [_unflat(component, shapes) for component in components]
    losses = _losses(model, images, labels, directions, first, second)
    data = {
        "first": first,
        "second": second,
        "loss": losses,
        "path": path,
        "explained": explained,
    }
    return data, _draw_trajectory(data, titles)


def _draw_trajectory(data: Data, titles: Sequence[str]) -> Figure:
    figure = style.new_figure(7, 5)
    axes = figure.add_subplot()
    filled = _contour(axes, data, _norm([data["loss"]]))
    path = data["path"]
    axes.plot(*path.T, color="white", lw=1.5)
    markers = ("s", "o", "^", "D")
    for index, title in enumerate(dict.fromkeys(titles)):
        points = path[[t == title for t in titles]]
        axes.plot(
            *points.T,
            markers[index % len(markers)],
            color=f"C{index}",
            markeredgecolor="white",
            markersize=8,
            label=title,
        )
    axes.plot(*path[-1], "w*", markersize=14, markeredgecolor="black", label="end")
    names = [
        f"component {index + 1} (L2 norm; {100 * share:.0f} % of the squared distance)"
        for index, share in enumerate(data["explained"])
    ]
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.legend(loc="upper right", fontsize=8)
    _colorbar(figure, filled, [axes])
    return figure


def _colorbar(figure: Figure, filled, axes) -> None:
    ticks = LogLocator(subs=(1, 2, 5))
    figure.colorbar(filled, ax=axes, label="cross-entropy (nats)", ticks=ticks, format="%g")


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays])


def _unflat(vector: np.ndarray, shapes) -> list[np.ndarray]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    parts = np.split(vector, ends)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
