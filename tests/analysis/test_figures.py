"""The paper's figures: their data against NumPy, and their looks."""

import itertools
import re

import numpy as np
import pytest
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend

import larq_adambnn
from larq_adambnn import analysis, layers


def build():
    images = x = tf.keras.Input((6, 6, 2))
    x = tf.keras.layers.Conv2D(4, 3, use_bias=False)(x)
    x = layers.BinaryConv2D(5, 3, name="binary")(x)
    x = tf.keras.layers.BatchNormalization()(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(images, tf.keras.layers.Dense(3)(x))


def data():
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(16, 6, 6, 2)).astype(np.float32),
        generator.integers(0, 3, 16),
    )


def cross_entropy(model, images, labels):
    """In NumPy, from the model's logits."""
    logits = model(images, training=False).numpy().astype(float)
    logits -= logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), labels].mean()


def trainable(model):
    return [variable.numpy() for variable in model.trainable_variables]


def set_trainable(model, values):
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)


def assert_legible(figure):
    """Every panel has named axes, and no title, name or legend lies over another."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = []
    for axes in figure.axes:
        bar = axes.get_label() == "<colorbar>"
        assert axes.get_ylabel() and (axes.get_xlabel() or bar)
        assert not (axes.get_title() == "" and bar and not axes.get_ylabel())
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            if text.get_text():
                boxes.append((text.get_text(), text.get_window_extent(renderer)))
        ticks = [t for t in axes.get_xticklabels(which="both") if t.get_text()]
        if not hasattr(axes, "zaxis"):
            drawn = sorted((t.get_window_extent(renderer) for t in ticks), key=lambda box: box.x0)
            assert not any(a.x1 > b.x0 for a, b in itertools.pairwise(drawn)), ticks
    boxes += [("legend", legend.get_window_extent(renderer)) for legend in figure.legends]
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (first, second)
    whole = figure.bbox
    for name, box in boxes:
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, name
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, name
    labelled = [a for a in figure.axes if a.get_legend_handles_labels()[1]]
    assert figure.legends or all(isinstance(a.get_legend(), Legend) for a in labelled)


def test_a_line_goes_on_over_epochs_without_a_value():
    data, figure = analysis.curves({"a": np.array([[np.nan, 2.0, np.nan, 4.0]] * 2)})
    (line, *_), (band,) = figure.axes[0].lines, figure.axes[0].collections
    assert line.get_xydata().tolist() == [[2, 2], [4, 4]]
    assert np.isfinite(band.get_paths()[0].vertices).all()
    np.testing.assert_array_equal(data["a"], [np.nan, 2, np.nan, 4])


def test_directions_have_the_norms_of_the_filters():
    weights = trainable(build())
    directions = analysis.filter_normalized(weights, seed=0)
    for weight, direction in zip(weights, directions, strict=True):
        if weight.ndim < 2:
            assert not direction.any()
            continue
        for channel in range(weight.shape[-1]):
            own = np.linalg.norm(direction[..., channel])
            assert own == pytest.approx(np.linalg.norm(weight[..., channel]), rel=1e-5)
    again = analysis.filter_normalized(weights, seed=0)
    other = analysis.filter_normalized(weights, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(directions, again, strict=True))
    assert not np.array_equal(directions[0], other[0])


@pytest.mark.parametrize("binary", [True, False])
def test_loss_surface_is_the_loss_at_moved_weights(binary):
    model, (images, labels) = build(), data()
    larq_adambnn.binarize(model, binary, binary)
    weights = trainable(model)
    surface = analysis.loss_surface(model, images, labels, resolution=3, radius=0.5, seed=4)
    for weight, after in zip(weights, trainable(model), strict=True):
        np.testing.assert_array_equal(after, weight)
    assert surface["loss"].shape == (3, 3)
    np.testing.assert_array_equal(surface["first"], [-0.5, 0, 0.5])
    directions = [analysis.filter_normalized(weights, seed) for seed in (8, 9)]
    for row, column in itertools.product(range(3), repeat=2):
        a, b = surface["first"][column], surface["second"][row]
        moved = [
            w + np.float32(a) * d + np.float32(b) * e
            for w, d, e in zip(weights, *directions, strict=True)
        ]
        set_trainable(model, moved)
        expected = cross_entropy(model, images, labels)
        # float32 against float64; a weight that crosses 0 by rounding would show as 1e-2
        assert surface["loss"][row, column] == pytest.approx(expected, rel=1e-4)
    assert len(np.unique(surface["loss"])) > 1
    assert_legible(analysis.draw_surfaces({"binary network": surface}))
    assert_legible(analysis.draw_surfaces({"real-valued network": surface, "binary": surface}))


def test_trajectory_is_on_the_principal_components():
    model, (images, labels) = build(), data()
    generator = np.random.default_rng(1)
    end = trainable(model)
    states = [
        [w + scale * generator.normal(size=w.shape).astype(np.float32) for w in end]
        for scale in (0.3, 0.2, 0.1)
    ] + [end]
    titles = ["start", "step 1", "step 2", "step 2"]
    found, figure = analysis.trajectory(model, states, images, labels, titles=titles, resolution=5)
    flat = np.array([np.concatenate([np.ravel(w) for w in state]) for state in states], float)
    offsets = flat - flat[-1]
    left, singular, components = np.linalg.svd(offsets, full_matrices=False)
    np.testing.assert_allclose(np.abs(found["path"]), np.abs(left * singular)[:, :2], atol=1e-4)
    shares = singular**2 / np.sum(singular**2)
    np.testing.assert_allclose(found["explained"], shares[:2], rtol=1e-4)
    assert np.all(found["path"].min(axis=0) > [found["first"][0], found["second"][0]])
    assert np.all(found["path"].max(axis=0) < [found["first"][-1], found["second"][-1]])
    # The loss in a corner, from the components (their signs are free).
    signs = np.sign(found["path"][0]) * np.sign((left * singular)[0, :2])
    corner = flat[-1] + found["first"][0] * signs[0] * components[0]
    corner += found["second"][-1] * signs[1] * components[1]
    ends = np.cumsum([w.size for w in end])[:-1]
    set_trainable(
        model, [v.reshape(w.shape) for v, w in zip(np.split(corner, ends), end, strict=True)]
    )
    expected = cross_entropy(model, images, labels)
    assert found["loss"][-1, 0] == pytest.approx(expected, rel=1e-3)
    assert_legible(figure)


def test_trajectory_needs_three_states():
    model = build()
    with pytest.raises(ValueError, match=re.escape("Expected at least 3 states. Received: 2")):
        analysis.trajectory(model, [trainable(model)] * 2, *data())


def test_toy_surface_and_its_paths():
    found, figure = analysis.toy_surface(resolution=41, iterations=12)
    assert_legible(figure)
    inputs = np.random.default_rng(0).standard_normal((64, 2)) * (2.0, 0.5)
    target = np.sign(inputs).mean(axis=1)

    def loss(weights, activate):
        return np.mean(np.square(activate(weights * inputs).mean(axis=1) - target))

    def soft(x):  # the integral of 2 - 2|x| inside [-1, 1]
        return np.where(np.abs(x) <= 1, np.sign(x) * (2 * np.abs(x) - x**2), np.sign(x))

    for row, column in ((0, 0), (0, 40), (40, 0), (40, 40), (13, 27), (22, 18)):
        point = np.array([found["weights"][column], found["weights"][row]])
        assert found["true"][row, column] == pytest.approx(loss(point, np.sign))
        assert found["approximated"][row, column] == pytest.approx(loss(point, soft))
    assert found["true"][30, 30] == 0 < found["true"][10, 30]

    def gradient(weights):
        nodes = weights * inputs
        error = 2 * (np.sign(nodes).mean(axis=1) - target) / 2
        slope = np.where(np.abs(nodes) < 1, 2 - 2 * np.abs(nodes), 0)
        return np.mean(error[:, np.newaxis] * slope * inputs, axis=0)

    sgd = adam = np.array([-1.6, -1.3])
    velocity = first = second = np.zeros(2)
    for step in range(13):
        np.testing.assert_allclose(found["sgd"][step], sgd, atol=1e-5)
        np.testing.assert_allclose(found["adam"][step], adam, atol=1e-5)
        assert found["sgd loss"][step] == pytest.approx(loss(sgd, np.sign))
        velocity = 0.9 * velocity + gradient(sgd)
        sgd = sgd - 0.05 * velocity
        g = gradient(adam)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        bias = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        adam = adam - 0.05 * (first / bias[0]) / (np.sqrt(second / bias[1]) + 1e-8)


def test_activation_histograms():
    values = np.concatenate([np.linspace(-0.9, 0.9, 60), np.full(30, 1.5), np.full(10, -9.0)])
    found, figure = analysis.activation_histograms({"first": values, "last": values / 10})
    assert found["first (saturated)"] == pytest.approx(0.4)
    assert found["last (saturated)"] == 0
    width = np.diff(found["edges"])
    assert np.sum(found["first"] * width) == pytest.approx(1)
    outside = np.abs(found["edges"][:-1] + width / 2) > 1
    assert np.sum((found["first"] * width)[outside]) == pytest.approx(0.4)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["gradient: 60.0 %", "saturated: 40.0 %"]
    assert_legible(figure)
    clips = {"first": 2.5, "last": np.inf}
    found, _ = analysis.activation_histograms({"first": values, "last": values}, clips=clips)
    assert found["first (saturated)"] == pytest.approx(0.1)
    assert found["last (saturated)"] == 0


@pytest.mark.parametrize("figure", [analysis.activation_histograms, analysis.weight_histograms])
def test_the_axis_shows_what_lies_beyond_a_wide_clip(figure):
    values = np.linspace(-6, 6, 1201)
    found, _ = figure({"wide": values, "none": values}, clips={"wide": 5.0, "none": np.inf})
    edges = found["edges"]
    assert edges[-1] == pytest.approx(6)
    outside = np.abs(edges[:-1] + edges[1:]) / 2 > 5
    assert np.sum((found["wide"] * np.diff(edges))[outside]) == pytest.approx(1 / 6, abs=0.02)


def test_kernel_values_have_the_means_of_their_channels():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)) * 1e-5
    found, figure = analysis.kernel_values({"epoch 1": kernel, "epoch 2": 2 * kernel})
    expected = [np.abs(kernel[..., channel]).mean() for channel in range(6)]
    np.testing.assert_allclose(found["epoch 1 (CAM)"], expected)
    assert f"SDAM {np.std(expected):.2e}" in figure.axes[0].get_title()
    assert_legible(figure)


def test_peaks_of_weights():
    generator = np.random.default_rng(0)
    one = generator.normal(0, 0.2, 20000)
    three = np.concatenate([one, *(generator.normal(p, 0.1, 9000) for p in (-1, 1))])
    np.testing.assert_allclose(analysis.weight_peaks(one), [0], atol=0.06)
    np.testing.assert_allclose(analysis.weight_peaks(three), [-1, 0, 1], atol=0.06)
    found, figure = analysis.weight_histograms({"one": one, "three": three, "far": one + 9})
    np.testing.assert_array_equal(found["three (peaks)"], analysis.weight_peaks(three))
    assert np.sum(found["far"] * np.diff(found["edges"])) == pytest.approx(1)
    assert f"{100 * np.mean(np.abs(three) > 1):.2f} %" in figure.axes[1].get_title()
    assert found["edges"][-1] == 1.5
    assert_legible(figure)
    clips = {"one": 0.5, "three": np.inf}
    _, figure = analysis.weight_histograms({"one": one, "three": three}, clips=clips)
    share = f"{100 * np.mean(np.abs(one) > 0.5):.2f} % beyond the clip at ±0.5"
    assert [axes.get_title().split("\n")[1] for axes in figure.axes] == [share, "no clip"]
    found, figure = analysis.weight_histograms({"narrow": one / 10})
    assert found["edges"][-1] == pytest.approx(1.2 * np.quantile(np.abs(one / 10), 0.999))
    assert figure.axes[0].get_xlim()[1] < 0.1  # the clip at 1 does not squeeze it
    assert_legible(figure)


def test_curves_of_means_and_spreads():
    several = np.array([[1.0, 2, 3], [3, 4, 5]])
    found, figure = analysis.curves({"adam": several, "sgd": [4.0, 5, 6]}, boundaries=[1])
    np.testing.assert_array_equal(found["adam"], [2, 3, 4])
    np.testing.assert_allclose(found["adam (standard deviation)"], 2**0.5)
    assert "sgd (standard deviation)" not in found
    axes = figure.axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["adam", "sgd", "step 2 begins"]
    assert_legible(figure)


def test_learning_rates_in_their_order():
    found, figure = analysis.learning_rates({"adam": {1e-2: [70.0, 72], 1e-3: [80.0, 80]}})
    np.testing.assert_allclose(found["adam"], [[1e-3, 1e-2], [80, 71], [0, 2**0.5]])
    assert figure.axes[0].get_xscale() == "log"
    assert_legible(figure)
    for rates in ((1.25e-3, 2.5e-3), (1e-5, 0.5), (1e-3,)):
        assert_legible(analysis.learning_rates({"sgd": {rate: [70.0] for rate in rates}})[1])


def test_an_optimizer_has_the_same_colour_in_every_figure():
    _, first = analysis.curves({"sgd": [1.0, 2], "adam": [1.0, 2]})
    _, second = analysis.curves({"adam": [1.0, 2], "rmsprop": [1.0, 2], "sgd": [1.0, 2]})
    colors = [
        {line.get_label(): line.get_color() for line in figure.axes[0].lines}
        for figure in (first, second)
    ]
    assert colors[0]["adam"] == colors[1]["adam"] != colors[0]["sgd"] == colors[1]["sgd"]


def test_surfaces_of_a_network_whose_layers_branch_on_tensors():
    class Positive(tf.keras.layers.Layer):
        def call(self, inputs):
            if tf.reduce_sum(inputs) < 0:
                inputs = -inputs
            return inputs

    images = tf.keras.Input((2,))
    logits = tf.keras.layers.Dense(2, kernel_initializer="identity")(Positive()(images))
    model = tf.keras.Model(images, logits)
    found = analysis.loss_surface(model, np.array([[-3.0, 1.0]], np.float32), [0], resolution=3)
    assert found["loss"][1, 1] == pytest.approx(np.log1p(np.exp(-4)), rel=1e-5)
