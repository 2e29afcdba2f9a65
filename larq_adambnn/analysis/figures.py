"""The paper's figures of accuracies, activations, weights and updates.

Each function returns what it drew, as a dictionary of arrays, and a matplotlib figure.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from larq_adambnn.analysis import style
from larq_adambnn.callbacks.measurements import absolute_means

__all__ = [
    "activation_histograms",
    "curves",
    "kernel_values",
    "learning_rates",
    "weight_histograms",
    "weight_peaks",
]

Data = dict[str, np.ndarray]


def curves(
    series: Mapping[str, np.ndarray],
    *,
    label: str = "test accuracy (%)",
    boundaries: Sequence[int] = (),
) -> tuple[Data, Figure]:
    """Figure 2: a quantity of several trainings over their epochs.

    Args:
        series: for each name an array (epochs,), or (runs, epochs) whose mean is
            drawn with a band of one standard deviation. A line goes on over what is NaN.
        label: of the vertical axis, with its unit.
        boundaries: epochs (counted from 1) after which a step of the training ends.
    """
    figure = style.new_figure(7, 4)
    axes = figure.add_subplot()
    data = {}
    for name, color in style.colors(series).items():
        values = np.atleast_2d(np.asarray(series[name], float))
        epochs = np.arange(1, values.shape[1] + 1)
        data[name] = mean = values.mean(axis=0)
        known = ~np.isnan(mean)
        marker = "o" if known.sum() == 1 else None  # a line of one point does not show
        axes.plot(epochs[known], mean[known], color=color, marker=marker, label=name)
        if len(values) > 1:
            spread = values.std(axis=0, ddof=1)
            data[f"{name} (standard deviation)"] = spread
            low, high = (mean - spread)[known], (mean + spread)[known]
            axes.fill_between(epochs[known], low, high, color=color, alpha=0.2, lw=0)
    for boundary in boundaries:
        axes.axvline(boundary + 0.5, color="grey", linestyle="--", label="step 2 begins")
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    return data, figure


def activation_histograms(
    inputs: Mapping[str, np.ndarray],
    *,
    clips: Mapping[str, float] | None = None,
    limit: float = 3.0,
) -> tuple[Data, Figure]:
    """Figure 3: the inputs of a binary convolution, and the share that is saturated.

    Args:
        inputs: for each title the real values before the sign, of any shape.
        clips: for each title the absolute value from which on the sign has no gradient, see
            `layers.clip`; 1 as published.
        limit: the horizontal axis ends at this absolute value, or at 1.2 times the largest finite
            clip where that is more; the outermost bins hold what lies beyond.
    """
    limit = _beyond(clips, limit)
    edges = np.linspace(-limit, limit, 61)
    centers = (edges[:-1] + edges[1:]) / 2
    figure, panels = _panels(len(inputs), 3.4, 2.9)
    data = {"edges": edges}
    for axes, (title, values) in zip(panels, inputs.items(), strict=True):
        values = np.asarray(values).ravel()
        density, _ = np.histogram(np.clip(values, -limit, limit), edges, density=True)
        clip = (clips or {}).get(title, 1.0)
        saturated = np.mean(np.abs(values) > clip)
        data[title], data[f"{title} (saturated)"] = density, saturated
        outside = np.abs(centers) > clip
        width = edges[1] - edges[0]
        axes.bar(
            centers[~outside],
            density[~outside],
            width,
            color=style.WEIGHTS,
            label=f"gradient: {100 * (1 - saturated):.1f} %",
        )
        axes.bar(
            centers[outside],
            density[outside],
            width,
            color=style.SATURATED,
            label=f"saturated: {100 * saturated:.1f} %",
        )
        axes.set(title=title, xlabel="input of the sign (no unit)", ylabel="density")
        axes.margins(y=0.35)
        axes.legend(loc="upper center", fontsize=8)
    return data, figure


def kernel_values(
    kernels: Mapping[str, np.ndarray], *, label: str = "latent weight (no unit)"
) -> tuple[Data, Figure]:
    """Figures 4 and 5: values of a kernel by output channel, with CAM and SDAM.

    Args:
        kernels: for each title weights or their updates, output channels last.
        label: of the vertical axis.
    """
    figure, panels = _panels(len(kernels), 4.2, 3.0)
    data = {}
    for axes, (title, kernel) in zip(panels, kernels.items(), strict=True):
        means = absolute_means(kernel)
        data[title], data[f"{title} (CAM)"] = kernel, means
        channels = np.arange(len(means))
        values = kernel.reshape(-1, len(means))
        axes.plot(
            np.repeat(channels[np.newaxis], len(values), axis=0).ravel(),
            values.ravel(),
            ".",
            color=style.WEIGHTS,
            alpha=0.35,
            markersize=3,
            label="values",
        )
        axes.plot(channels, means, "_", color=style.CAM, markersize=9, mew=2, label="CAM")
        axes.set(title=f"{title}\nSDAM {np.std(means):.2e}", xlabel="output channel", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes.grid(alpha=0.3)
        handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return data, figure


def weight_peaks(weights: np.ndarray, *, limit: float = 1.5) -> np.ndarray:
    """Where the distribution of weights has its peaks, in ascending order.

    The paper finds three, near -1, 0 and 1, in networks that are trained well and one
    in others.  A peak rises above the valleys beside it by at least 2 % of the highest,
    in a histogram of 121 bins smoothed over some.
    """
    import scipy.ndimage
    import scipy.signal

    counts, edges = np.histogram(np.ravel(weights), np.linspace(-limit, limit, 122))
    smooth = scipy.ndimage.gaussian_filter1d(counts.astype(float), 2.0)
    peaks, _ = scipy.signal.find_peaks(smooth, prominence=0.02 * smooth.max())
    return (edges[peaks] + edges[peaks + 1]) / 2


def _beyond(clips: Mapping[str, float] | None, limit: float) -> float:
    """The end of an axis that shows what lies beyond each clip that is finite."""
    finite = [1.2 * clip for clip in (clips or {}).values() if np.isfinite(clip)]
    return max([limit, *finite])


def weight_histograms(
    weights: Mapping[str, np.ndarray],
    *,
    clips: Mapping[str, float] | None = None,
    limit: float = 1.5,
) -> tuple[Data, Figure]:
    """Figure 7: the latent weights at the end, whose peaks tell how training went.

    Args:
        weights: for each title the latent weights of a network, of any shape.
        clips: for each title the absolute value from which on a weight has no gradient, see
            `layers.clip`; 1 as published.
        limit: the horizontal axis ends at this absolute value, or at 1.2 times the largest finite
            clip where that is more, or before it where only one weight in a thousand is larger;
            the outermost bins hold what lies beyond.
    """
    limit = _beyond(clips, limit)
    common = max(float(np.quantile(np.abs(values), 0.999)) for values in weights.values())
    edge = min(limit, 1.2 * common) or limit
    edges = np.linspace(-edge, edge, 122)
    figure, panels = _panels(len(weights), 3.8, 2.9)
    data = {"edges": edges}
    for axes, (title, values) in zip(panels, weights.items(), strict=True):
        values = np.ravel(values)
        density, _ = np.histogram(np.clip(values, -edge, edge), edges, density=True)
        peaks = weight_peaks(values, limit=limit)
        data[title], data[f"{title} (peaks)"] = density, peaks
        axes.stairs(density, edges, fill=True, color=style.WEIGHTS)
        for number, peak in enumerate(peaks):
            axes.axvline(peak, color="black", linestyle=":", lw=1, label=None if number else "peak")
        clip = (clips or {}).get(title, 1.0)
        for number, line in enumerate((-clip, clip) if edge > clip else ()):
            axes.axvline(
                line, color=style.SATURATED, lw=1, label=None if number else "clip of the gradient"
            )
        beyond = f"{100 * np.mean(np.abs(values) > clip):.2f} % beyond the clip at ±{clip:g}"
        axes.set(
            title=f"{title}\n{'no clip' if np.isinf(clip) else beyond}",
            xlabel="latent weight (no unit)",
            ylabel="density",
        )
        axes.xaxis.get_major_locator().set_params(nbins=5)
        handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return data, figure


def learning_rates(
    accuracies: Mapping[str, Mapping[float, Sequence[float]]],
    *,
    label: str = "test accuracy (%)",
) -> tuple[Data, Figure]:
    """Figure 8: accuracy against the initial learning rate.

    Args:
        accuracies: {optimizer: {learning rate: accuracies, one a seed}}.
        label: of the vertical axis, with its unit.
    """
    figure = style.new_figure(7, 4)
    axes = figure.add_subplot(xscale="log")
    data = {}
    every = [rate for by_rate in accuracies.values() for rate in by_rate]
    for name, color in style.colors(accuracies).items():
        rates = np.array(sorted(accuracies[name]))
        values = [np.asarray(accuracies[name][rate], float) for rate in rates]
        mean = np.array([value.mean() for value in values])
        spread = np.array([value.std(ddof=1) if len(value) > 1 else 0.0 for value in values])
        data[name] = np.stack([rates, mean, spread])
        axes.errorbar(rates, mean, spread, marker="o", capsize=3, color=color, label=name)
    axes.set(xlabel="initial learning rate", ylabel=label)
    wide = max(every) > 1000 * min(every)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend(
        title="mean and standard deviation" if any(d[2].any() for d in data.values()) else None
    )
    return data, figure


def _panels(count: int, width: float, height: float):
    """A figure with so many panels of a size in inches, at most two in a row."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = style.new_figure(columns * width, rows * height + 0.4)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
