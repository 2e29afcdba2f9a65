"""The proof that a .tflite computes what the Keras model computes."""

import collections
import dataclasses

import numpy as np
import tensorflow as tf

from larq_adambnn.export.doctor import bits, packed_signs
from larq_adambnn.export.interpreter import predictions
from larq_adambnn.export.tflite import Graph, with_outputs
from larq_adambnn.layers import quantizer
from larq_adambnn.walk import named_nodes, recall, walk

__all__ = ["Check", "check"]

# What a .tflite of the same network must reach
SIGNS_LIMIT = 0.999
LOGITS_LIMIT = 1e-3  # of the largest logit
AGREEMENT_LIMIT = 0.99  # of trained networks; the logits of others nearly tie
# The same for a quantized network, whose every sum is rounded before its sign
QUANTIZED_SIGNS_LIMIT = 0.95
FALL_LIMIT = 0.005  # of the top-1 accuracy
_LEAST_IMAGES, _LEAST_PIXELS = 8, 2**16  # of a batch, whichever is more
_RANDOM_IMAGES = 20


@dataclasses.dataclass(frozen=True)
class Check:
    """Keras against .tflite on the same images.

    Float32 rounding flips a few of the signs near 0, and each flip changes many inputs of
    the signs after it.  So that this does not hide an operator that computes something
    else, Keras is run twice: freely, and with the .tflite's own signs in the place of its.

    Attributes:
        images: number of images compared.
        largest_difference, mean_difference: of the logits, absolute.
        agreement: share of images with the same top-1 class.
        signs: share of equal signs before each layer that takes signs, by name, where the
            layers before it were given the same signs; anything systematic shows here.
        free_signs: the same, each running freely.
        same_signs_difference: largest difference of the logits given the same signs.
        all_signs: whether these are all signs in the .tflite.  If not, as in a network whose
            layers LCE left real, the logits may differ by what the others' flips change.
        keras_accuracy, tflite_accuracy: top-1, where there are labels.
        failures: what misses its limit, a line each.
    """

    images: int
    largest_difference: float
    mean_difference: float
    agreement: float
    signs: dict[str, float]
    free_signs: dict[str, float]
    same_signs_difference: float
    all_signs: bool
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
    """Compares a model and its .tflite, in their logits and at every sign.

    With labels the network counts as trained, and the top-1 classes must agree.

    Args:
        model: the float32 network as it was before it was folded.
        tflite: the bytes of the file.
        images: preprocessed, (B, H, W, C); by default a few normally distributed ones.
        labels: integers (B,).
        quantized: the file has int8 operators, so that other limits hold: fewer signs agree,
            and the accuracy may fall by half a point.
        processes: see `predictions`.

    Raises:
        ValueError: the file is no TFLite model or takes other images.
    """
    if images is None:
        shape = (_RANDOM_IMAGES, *model.input_shape[1:])
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    graph = Graph(tflite)
    places, all_signs = packed_signs(model, graph)
    channels = {name: n.keras_inputs[0].shape[-1] for name, n in named_nodes(model)}
    probe = with_outputs(tflite, list(places.values()))
    size = max(_LEAST_IMAGES, _LEAST_PIXELS // (images.shape[1] * images.shape[2]))
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    logits, free, same = [], collections.Counter(), collections.Counter()
    sizes = collections.Counter()
    results = predictions(probe, batches, processes=processes)
    for batch, (tflite_logits, *words) in zip(batches, results, strict=True):
        negative = {
            name: bits(packed, channels[name]) for name, packed in zip(places, words, strict=True)
        }
        keras_logits, own = _run(model, batch, places)
        forced_logits, forced = _run(model, batch, places, negative)
        logits.append((keras_logits, forced_logits, tflite_logits))
        for name, expected in negative.items():
            sizes[name] += expected.size
            free[name] += np.count_nonzero(own[name] == expected)
            same[name] += np.count_nonzero(forced[name] == expected)
    return _result(
        *(np.concatenate(parts) for parts in zip(*logits, strict=True)),
        labels,
        {name: float(same[name] / sizes[name]) for name in places},
        {name: float(free[name] / sizes[name]) for name in places},
        all_signs,
        quantized,
    )


def _run(model, images: np.ndarray, names, negative=None) -> tuple[np.ndarray, dict]:
    """Logits, and by layer whether the signs before it are negative.

    Args:
        model: a functional model.
        images: (B, H, W, C).
        names: the layers whose signs are asked for.
        negative: signs to use instead, by layer; what is returned are the model's own.
    """
    own = {}
    calls = iter(named_nodes(model))

    def call(node, tensors):
        layer = node.layer
        name, _ = next(calls)
        if name in names:
            sign = quantizer(layer, "input_quantizer")
            values = tensors[0] if sign is None else sign(tensors[0])
            own[name] = values.numpy() < 0
            if negative is not None:
                tensors = [tf.where(negative[name], -1.0, 1.0)]
        return tf.nest.flatten(recall(layer, node, tensors))

    (logits,) = walk(model, [tf.constant(images, tf.float32)], call)
    return logits.numpy(), own


def _result(keras, forced, tflite, labels, signs, free_signs, all_signs, quantized) -> Check:
    difference, same_signs = np.abs(keras - tflite), np.abs(forced - tflite)
    agreement = float(np.mean(keras.argmax(-1) == tflite.argmax(-1)))
    accuracies = (None, None)
    if labels is not None:
        accuracies = tuple(float(np.mean(x.argmax(-1) == labels)) for x in (keras, tflite))
    failures = []

    def expect(condition, line):
        if not condition:
            failures.append(line)

    expect(np.isfinite(keras).all() and np.isfinite(tflite).all(), "the logits are not all finite")
    limit = QUANTIZED_SIGNS_LIMIT if quantized else SIGNS_LIMIT
    for name, share in signs.items():
        expect(
            share >= limit,
            f"{100 * share:.2f} % of the signs before {name} agree; expected {100 * limit:g} %",
        )
    if quantized:
        before, after = accuracies
        if labels is not None:
            expect(
                before - after <= FALL_LIMIT,
                f"the top-1 accuracy falls from {100 * before:.2f} % to {100 * after:.2f} %; "
                f"expected by at most {100 * FALL_LIMIT} points",
            )
    else:
        expect(
            not all_signs or same_signs.max() <= LOGITS_LIMIT * np.abs(keras).max(),
            f"given the same signs, the logits differ by {same_signs.max():.2g}; expected at most "
            f"{LOGITS_LIMIT} of the largest, {np.abs(keras).max():.2g}",
        )
        expect(
            labels is None or agreement >= AGREEMENT_LIMIT,
            f"the top-1 class is the same on {100 * agreement:.2f} % of the images; expected "
            f"{100 * AGREEMENT_LIMIT:.0f} %",
        )
    return Check(
        images=len(keras),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        agreement=agreement,
        signs=signs,
        free_signs=free_signs,
        same_signs_difference=float(same_signs.max()),
        all_signs=all_signs,
        keras_accuracy=accuracies[0],
        tflite_accuracy=accuracies[1],
        failures=tuple(failures),
    )
