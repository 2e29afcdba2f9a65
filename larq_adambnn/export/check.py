"""The proof that a .tflite computes what the Keras model computes."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from larq_adambnn.export.doctor import bits
from larq_adambnn.export.interpreter import predictions, with_kernels
from larq_adambnn.export.signs import Places, find_signs
from larq_adambnn.export.tflite import Graph, with_outputs
from larq_adambnn.layers import quantizer
from larq_adambnn.walk import named_nodes, recall, walk

__all__ = ["Check", "check"]

_LEAST_IMAGES, _LEAST_PIXELS = 8, 2**16  # of a batch, whichever is more
_RANDOM_IMAGES = 20


@dataclasses.dataclass(frozen=True)
class _Limits:
    """What a .tflite of the same network must reach.

    Attributes:
        signs: share of equal signs before a layer.
        channel, pixel: share of the differing signs at each of them, every sign counted by how
            far from 0 Keras's value is: rounding changes only those of the smallest values.
            A change of all values by d of their deviation gives about d * d / 4.
        small: the magnitude of a channel, as a share of its layer's, below which it is
            rounding; an int8 tensor has one step for all its channels.
        logits: the difference of a class's logits, as a share of the logits' deviation.
    """

    signs: float
    channel: float
    pixel: float
    small: float
    logits: float


_REAL = _Limits(signs=0.999, channel=1e-4, pixel=1e-4, small=1e-3, logits=0.25)
_QUANTIZED = _Limits(signs=0.95, channel=1e-2, pixel=2e-3, small=1.0, logits=0.1)
_ROUNDING = 1e-5  # of a layer's values
_LOGITS_LIMIT = 1e-3  # of the largest logit, where all is real and every sign is compared
_AGREEMENT_LIMIT = 0.99  # of trained networks; the logits of others nearly tie
_FALL_LIMIT = 0.005  # of the top-1 accuracy of a quantized network, and so many standard errors
_ERRORS = 2.0
# So many more may differ than a share of them, so that one by itself is no failure
_FREE_SIGNS, _FREE_IMAGES = 2, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Keras against .tflite on the same images.

    Float32 rounding flips a few of the signs near 0, and each flip changes many inputs of
    the signs after it.  So that this does not hide an operator that computes something
    else, Keras is run twice: freely, and with the .tflite's own signs in the place of its.

    Attributes:
        images: number of images compared.
        largest_difference, mean_difference: of the logits, absolute; of all outputs.
        agreement: share of images with the same top-1 class, by the first output.
        signs: share of equal signs before each layer that takes signs, by name, where the
            layers before it were given the same signs; anything systematic shows here.
        channels: the same of the channel where it is least, each sign counted by how far
            from 0 Keras's value is.
        free_signs: share of equal signs, each running freely.
        same_signs_difference: largest difference of the logits given the same signs.
        all_signs: whether these are all signs in the .tflite.  If not, as in a network whose
            layers LCE left real, the logits may differ by what the others' flips change.
        not_compared: layers whose signs were not found in the file, by name.
        kernels: the kernels of the interpreter that it was run with: on all images with the
            first, on the first batch with the others, unless it had failed.
        keras_accuracy, tflite_accuracy: top-1 of the first output, where there are labels.
        failures: what misses its limit, a line each.
    """

    images: int
    largest_difference: float
    mean_difference: float
    agreement: float
    signs: dict[str, float]
    channels: dict[str, float] = dataclasses.field(default_factory=dict)
    free_signs: dict[str, float]
    same_signs_difference: float
    all_signs: bool
    not_compared: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    keras_accuracy: float | None
    tflite_accuracy: float | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures


def check(
    model: tf.keras.Model,
    tflite: bytes,
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    quantized: bool = False,
    processes: int = 1,
) -> Check:
    """Compares a model and its .tflite, in all their outputs and at every sign.

    With labels the network counts as trained, and the top-1 classes must agree.

    Args:
        model: the float32 network as it was before it was folded.
        tflite: the bytes of the file; its outputs are in the order of `model.outputs`.
        images: preprocessed, (B, H, W, C); by default a few normally distributed ones.
        labels: integers (B,), the classes of the first output.
        quantized: the file has int8 operators, so that other limits hold: fewer signs agree,
            the logits differ by more, and the accuracy may fall by half a point and two of
            the standard errors that so few images have.
        processes: see `predictions`.

    Raises:
        ValueError: the file is no TFLite model, takes other images or gives other outputs.
    """
    if images is None:
        shape = (_RANDOM_IMAGES, *model.input_shape[1:])
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    graph = Graph(tflite)
    _check_outputs(model, graph)
    places = find_signs(model, graph)
    probe = with_outputs(tflite, list(places.tensors.values()))
    size = max(_LEAST_IMAGES, _LEAST_PIXELS // int(np.prod(images.shape[1:-1])))
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    limits = _QUANTIZED if quantized else _REAL
    failures = [f"the filters in the file are not the kernel of {n}" for n in places.changed]
    if places.not_found and not places.tensors:
        failures.append(
            f"none of the signs before {len(places.not_found)} layers could be compared"
        )

    first, run_with = None, []
    for kernels, network in with_kernels(probe):
        some = batches[:1] if run_with else batches
        found = _compare(model, places, some, predictions(network, some, processes=processes))
        lines = found.failures(model, graph, places, limits, exact=not quantized)
        if run_with:
            failures += [f"with {kernels}: {line}" for line in lines]
        else:
            first = found
            failures += lines + _class_failures(first, labels, quantized)
        run_with.append(kernels)
        if failures:
            break  # the other kernels would only repeat them
    differences = [np.abs(k - t) for k, t in zip(first.keras, first.tflite, strict=True)]
    keras, own = (outputs[0].argmax(-1) for outputs in (first.keras, first.tflite))
    return Check(
        images=len(images),
        largest_difference=max(float(d.max()) for d in differences),
        mean_difference=float(np.mean([d.mean() for d in differences])),
        agreement=float(np.mean(keras == own)),
        signs={name: signs.share for name, signs in first.signs.items()},
        channels={name: signs.worst_channel(limits) for name, signs in first.signs.items()},
        free_signs={name: signs.free_share for name, signs in first.signs.items()},
        same_signs_difference=first.same_signs_difference(),
        all_signs=not (places.others or places.not_found),
        not_compared=places.not_found,
        kernels=tuple(run_with),
        keras_accuracy=None if labels is None else float(np.mean(keras == labels)),
        tflite_accuracy=None if labels is None else float(np.mean(own == labels)),
        failures=tuple(failures),
    )


def _check_outputs(model, graph: Graph) -> None:
    expected = [tensor.shape[1:] for tensor in model.outputs]
    received = [graph.shape(tensor)[1:] for tensor in graph.outputs]
    if len(expected) != len(received) or not all(
        map(tf.TensorShape.is_compatible_with, expected, received)
    ):
        shapes = ", ".join(str(tuple(shape)) for shape in expected)
        others = ", ".join(map(str, received))
        raise ValueError(f"Expected outputs of {shapes}, as Keras has. Received: {others}")


class _Signs:
    """Counts of the signs before one layer."""

    def __init__(self):
        self.count = self.equal = self.free_equal = 0
        self.magnitude = self.by_channel = self.by_pixel = 0.0

    def look(self, values: np.ndarray, negative: np.ndarray, expected: np.ndarray) -> None:
        """Adds a batch.

        Args:
            values: Keras's (B, ..., C), given the same signs before.
            negative: whether the signs of these values are negative.
            expected: the same of the .tflite.
        """
        sizes = np.abs(values)
        # What is 0 but for rounding, such as a sum of as many s as -s, has either sign
        nearly_zero = (sizes > 0) & (sizes < _ROUNDING * sizes.mean())
        wrong = (negative != expected) & ~nearly_zero
        weight = np.where(wrong, sizes, 0.0).astype(np.float64)
        self.count += wrong.size
        self.equal += wrong.size - np.count_nonzero(wrong)
        self.magnitude += _by_channel(sizes)
        self.by_channel += _by_channel(weight)
        self.by_pixel += weight.sum((0, -1))

    @property
    def share(self) -> float:
        return self.equal / self.count

    @property
    def free_share(self) -> float:
        return self.free_equal / self.count

    def weights(self, limits: _Limits) -> tuple[np.ndarray, np.ndarray]:
        """Differing signs at each channel and each pixel, counted by their distance from 0."""
        channels = self.count / self.magnitude.size
        mean = self.magnitude.sum() / self.count or 1.0
        scale = np.maximum(self.magnitude / channels, limits.small * mean)
        return self.by_channel / np.where(scale > 0, scale, 1.0), self.by_pixel / mean

    def worst_channel(self, limits: _Limits) -> float:
        by_channel, _ = self.weights(limits)
        return 1.0 - float(by_channel.max()) * by_channel.size / self.count

    def failures(self, name: str, limits: _Limits, step: float) -> list[str]:
        """What misses its limit.

        A pixel may be the same in all images, as in a corner.  Of its channels, one may be
        wrong by `step`, the largest of the int8 tensors that the values are computed from.
        """
        lines = []
        differing = self.count - self.equal
        if differing > _allowed(1 - limits.signs, self.count):
            lines.append(
                f"{100 * self.share:.2f} % of the signs before {name} agree; expected "
                f"{100 * limits.signs:g} %"
            )
        for what, weights in zip(("channel", "pixel"), self.weights(limits), strict=True):
            of_each = self.count / max(weights.size, 1)
            worst = np.unravel_index(np.argmax(weights), weights.shape)
            limit = getattr(limits, what)
            if what == "pixel" and step:
                limit = max(limit, step * self.count / (self.magnitude.sum() * self.magnitude.size))
            if weights[worst] > _allowed(limit, of_each):
                place = f" at {what} {', '.join(map(str, worst))}" if worst else ""
                lines.append(
                    f"{100 * (1 - weights[worst] / of_each):.2f} % of the signs{place} before "
                    f"{name} agree, counted by their distance from 0; expected "
                    f"{100 * (1 - limit):.4g} %"
                )
        return lines


def _allowed(share: float, count: float) -> float:
    """How many signs may differ."""
    return share * count + _FREE_SIGNS


def _by_channel(values: np.ndarray) -> np.ndarray:
    return values.sum(tuple(range(values.ndim - 1)), dtype=np.float64)


def _rounding(graph: Graph, signs: int) -> float:
    """The largest step of the int8 tensors that signs are computed from; 0 if there is none."""
    made = {tensor: operator for operator in graph.operators for tensor in operator.outputs}
    left, seen = [signs], set()
    while left:
        tensor = left.pop()
        if tensor in made and tensor not in seen:
            seen.add(tensor)
            if made[tensor].kind != "LceBconv2d":  # which begins anew, with signs
                left += made[tensor].inputs
    scales = [graph.scale(tensor) for tensor in seen if graph.dtype(tensor) == np.int8]
    return max((float(scale.max()) for scale in scales if scale is not None), default=0.0)


@dataclasses.dataclass
class _Comparison:
    """Outputs of Keras running freely, of Keras given the .tflite's signs, and of the .tflite."""

    keras: list[np.ndarray]
    forced: list[np.ndarray]
    tflite: list[np.ndarray]
    signs: dict[str, _Signs]

    def same_signs_difference(self) -> float:
        pairs = zip(self.forced, self.tflite, strict=True)
        return max(float(np.abs(forced - own).max()) for forced, own in pairs)

    def failures(
        self, model, graph: Graph, places: Places, limits: _Limits, *, exact: bool
    ) -> list[str]:
        lines = []
        for name, signs in self.signs.items():
            lines += signs.failures(name, limits, _rounding(graph, places.tensors[name]))
        several = len(self.keras) > 1
        exact = exact and not (places.others or places.not_found)
        for number, keras in enumerate(self.keras):
            outputs = self.forced[number], self.tflite[number]
            name = f" of {model.output_names[number]}" if several else ""
            step = _step(graph, graph.outputs[number])
            lines += _output_failures(keras, *outputs, name, step, limits, exact)
        return lines


def _output_failures(
    keras: np.ndarray,
    forced: np.ndarray,
    tflite: np.ndarray,
    name: str,
    step: float,
    limits: _Limits,
    exact: bool,
) -> list[str]:
    if not (np.isfinite(keras).all() and np.isfinite(tflite).all()):
        return [f"the logits{name} are not all finite"]
    difference, largest = np.abs(forced - tflite), np.abs(keras).max()
    least = _LOGITS_LIMIT * largest
    if exact:
        if difference.max() <= least:
            return []
        return [
            f"given the same signs, the logits{name} differ by {difference.max():.2g}; expected "
            f"at most {_LOGITS_LIMIT} of the largest, {largest:.2g}"
        ]
    classes = _by_channel(difference) * keras.shape[-1] / keras.size
    worst, limit = int(classes.argmax()), limits.logits * keras.std() + step + least
    if classes[worst] <= limit:
        return []
    return [
        f"given the same signs, logit {worst}{name} differs by {classes[worst]:.2g} on average; "
        f"expected at most {limit:.2g}, {limits.logits:g} of the logits' deviation"
    ]


def _step(graph: Graph, tensor: int) -> float:
    """Between two values that an output can have; 0 of a real one."""
    for operator in graph.operators:
        if operator.kind == "DEQUANTIZE" and tensor in operator.outputs:
            tensor = operator.inputs[0]
    scale = graph.scale(tensor)
    return 0.0 if scale is None else float(scale.max())


def _class_failures(found: _Comparison, labels, quantized: bool) -> list[str]:
    if labels is None:
        return []
    keras, own = found.keras[0].argmax(-1), found.tflite[0].argmax(-1)
    before, after = np.count_nonzero(keras == labels), np.count_nonzero(own == labels)
    count = keras.size
    # Chance alone moves a difference of numbers by the root of how many images change
    changed = np.count_nonzero((keras == labels) != (own == labels))
    allowed = _FALL_LIMIT * count + _FREE_IMAGES + _ERRORS * changed**0.5
    if quantized and before - after > allowed:
        return [
            f"the top-1 accuracy falls from {100 * before / count:.2f} % to "
            f"{100 * after / count:.2f} %; expected by at most {100 * allowed / count:.2f} points"
        ]
    same = np.count_nonzero(keras == own)
    if not quantized and count - same > (1 - _AGREEMENT_LIMIT) * count + _FREE_IMAGES:
        return [
            f"the top-1 class is the same on {100 * same / count:.2f} % of the images; expected "
            f"{100 * _AGREEMENT_LIMIT:.0f} %"
        ]
    return []


def _compare(
    model: tf.keras.Model,
    places: Places,
    batches: Iterable[np.ndarray],
    results: Iterable[list[np.ndarray]],
) -> _Comparison:
    """Keras against what a .tflite gave: its outputs, and the packed signs at the places."""
    channels = {name: n.keras_inputs[0].shape[-1] for name, n in named_nodes(model)}
    signs = {name: _Signs() for name in places.tensors}
    outputs = []
    for batch, of_batch in zip(batches, results, strict=True):
        own, packed = of_batch[: len(model.outputs)], of_batch[len(model.outputs) :]
        expected = {
            name: bits(words, channels[name]) for name, words in zip(signs, packed, strict=True)
        }

        def free(name, values, negative, expected=expected):
            signs[name].free_equal += np.count_nonzero(negative == expected[name])

        def forced(name, values, negative, expected=expected):
            signs[name].look(values, negative, expected[name])
            return expected[name]

        outputs.append((_run(model, batch, signs, free), _run(model, batch, signs, forced), own))
    keras, given, own = (
        [np.concatenate(parts) for parts in zip(*of_all, strict=True)]
        for of_all in zip(*outputs, strict=True)
    )
    return _Comparison(keras, given, own, signs)


def _run(model, images: np.ndarray, names, look: Callable) -> list[np.ndarray]:
    """The outputs of a functional model.

    Args:
        model: the model.
        images: (B, H, W, C).
        names: layers that take signs.
        look: called at each of them with its name, the values whose signs it takes, and
            whether those signs are negative; gives the same of other signs to use instead,
            or None.
    """
    calls = iter(named_nodes(model))
    signed = {}  # what was given to layers that only take the sign

    def call(node, tensors):
        layer = node.layer
        name, _ = next(calls)
        if _is_sign(layer):
            signed[id(node.outputs)] = tensors[0]
        if name in names:
            sign = quantizer(layer, "input_quantizer")
            values = signed.get(id(node.keras_inputs[0]), tensors[0])
            signs = tensors[0] if sign is None else sign(tensors[0])
            others = look(name, values.numpy(), signs.numpy() < 0)
            if others is not None:
                tensors = [tf.where(others, -1.0, 1.0)]
        return tf.nest.flatten(recall(layer, node, tensors))

    found = walk(model, [tf.constant(images, tf.float32)], call)
    return [output.numpy() for output in found]


def _is_sign(layer) -> bool:
    """Whether a layer does nothing but take the sign."""
    activation = getattr(layer, "activation", layer)
    return not layer.weights and getattr(activation, "precision", None) == 1
