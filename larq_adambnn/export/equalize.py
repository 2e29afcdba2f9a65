"""Channels brought to one size, so that the one scale that int8 has for all of them fits each.

A channel that is multiplied by a positive number has the same signs.  Sums, PReLUs, pools and
concatenations pass the number on; what has weights, such as a batch norm or a convolution,
takes it back at no cost.  So a network has many forms that compute the same in real numbers,
and in 8 bits the best is the one without small channels (cross-layer equalization,
arXiv 1906.04721, carried through signs).  A stream of two channels, ranges in brackets:

    1 = sum(0, ...)       [100, 4]           times (1, 25):  [100, 100]
    2 = binary(sign(1))   * g + b            * (1, 25) g + (1, 25) b
    3 = sum(1, 2)         [110, 4.4]                         [110, 110]
    4 = dense(3)          kernel k           kernel k / (1, 25)
"""

import numpy as np
import tensorflow as tf

from larq_adambnn.export.fold import Affine, ConstantMinus
from larq_adambnn.layers import Shift, quantizer
from larq_adambnn.walk import nodes, recall, walk

__all__ = ["equalized", "factors", "rebuilt"]

_LARGEST = 64.0  # factor: what is smaller may be a channel that was seldom used in calibration
_FIXED = 0  # the channels that keep their size


class _Channels:
    """Sets of channels that have one factor; they are known by numbers."""

    def __init__(self):
        self._parents = [_FIXED]

    def new(self, count: int) -> np.ndarray:
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count)

    def root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def join(self, channels, others) -> None:
        for pair in zip(channels, others, strict=True):
            low, high = sorted(map(self.root, pair))
            self._parents[high] = low

    def roots(self, channels) -> np.ndarray:
        return np.array([self.root(channel) for channel in channels], int)


def equalized(folded: tf.keras.Model, factors: dict[int, np.ndarray]) -> tf.keras.Model:
    """A folded model whose channels are larger by these factors, with the same outputs.

    Args:
        folded: what `fold` gives.
        factors: see `factors`.
    """

    def call(node, tensors):
        layer = node.layer
        copy = type(layer).from_config(layer.get_config())
        outputs = recall(copy, node, tensors)
        given, made = (
            factors[id(tf.nest.flatten(tensors)[0])]
            for tensors in (node.keras_inputs, node.outputs)
        )
        copy.set_weights(_scaled(layer, given, made))
        return tf.nest.flatten(outputs)

    return rebuilt(folded, call)


def rebuilt(model: tf.keras.Model, call, begin=lambda images: images) -> tf.keras.Model:
    """A model of one input in which layers are called in another way, see `walk`."""
    (tensor,) = model.inputs
    images = tf.keras.Input(tensor.shape[1:], name=tensor.node.layer.name)
    outputs = walk(model, [begin(images)], call)
    made = tf.keras.Model(images, outputs if len(outputs) > 1 else outputs[0], name=model.name)
    made.output_names = model.output_names
    return made


def factors(folded: tf.keras.Model, widths: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """What to multiply the channels of each tensor of a folded model by, from 1 on.

    They are as large as they can be while no tensor becomes larger as a whole.

    Args:
        folded: what `fold` gives.
        widths: by the id of a tensor that has an int8 scale, how much room each of its
            channels needs, (C,).

    Returns:
        (C,) by the id of each tensor.
    """
    channels, numbers = _Channels(), {}
    for tensor in folded.inputs:
        numbers[id(tensor)] = _fixed(tensor)
    for node in nodes(folded):
        given = [numbers[id(tensor)] for tensor in node.keras_inputs]
        for tensor, made in zip(
            tf.nest.flatten(node.outputs), _made(node, given, channels), strict=True
        ):
            numbers[id(tensor)] = made
    for tensor in folded.outputs:
        channels.join(numbers[id(tensor)], _fixed(tensor))
    roots = {tensor: channels.roots(of_tensor) for tensor, of_tensor in numbers.items()}
    found = np.full(1 + max(of.max(initial=0) for of in roots.values()), np.inf)
    for tensor, width in widths.items():
        some = width > 0
        np.minimum.at(found, roots[tensor][some], width.max() / width[some].astype(np.float64))
    found[np.isinf(found)] = 1.0  # nothing is known of them
    found = np.clip(found, 1.0, _LARGEST)
    found[_FIXED] = 1.0
    return {tensor: found[of_tensor] for tensor, of_tensor in roots.items()}


def _fixed(tensor) -> np.ndarray:
    return np.full(tensor.shape[-1] if tensor.shape.rank > 1 else 1, _FIXED)


def _made(node, given: list[np.ndarray], channels: _Channels) -> list[np.ndarray]:
    """The channels of a layer's outputs, given those of its inputs."""
    layer, outputs = node.layer, tf.nest.flatten(node.outputs)
    quantized = quantizer(layer, "input_quantizer")
    if quantized is not None and _takes_only_signs(quantized):
        return [*map(_fixed, outputs)]
    if isinstance(layer, Shift | ConstantMinus):
        return given[:1]
    if quantized is None and _takes_back(layer):
        # The kernel of a dense layer has one scale for all channels
        free = getattr(layer, "activation", None) in _HOMOGENEOUS
        free = free and not isinstance(layer, tf.keras.layers.Dense)
        return [channels.new(len(_fixed(x))) if free else _fixed(x) for x in outputs]
    if quantized is None and _is_per_channel(node):
        sources = _sources(node)
        if sources is not None and _scales(node, sources):
            return _joined(given, sources, channels)
        if _scales(node, None):
            return [*map(_fixed, outputs)]
    for numbers in given:
        channels.join(numbers, np.full_like(numbers, _FIXED))
    return [*map(_fixed, outputs)]


def _is_per_channel(node) -> bool:
    tensors = [*node.keras_inputs, *tf.nest.flatten(node.outputs)]
    return all(x.dtype == tf.float32 and x.shape.rank > 1 for x in tensors)


def _sources(node) -> list[list[np.ndarray]] | None:
    """The only channel of each input that each channel of an output depends on, -1 for none.

    A channel is found by the bits of its number: those that have the bit are changed together,
    and then the others.

    Returns:
        For each output, for each input: (channels of the output,).  None if they depend on
        several.
    """
    random = np.random.default_rng(0)
    values = [random.uniform(1, 2, (1, *x.shape[1:])) for x in node.keras_inputs]
    found = [[] for _ in tf.nest.flatten(node.outputs)]
    for number, tensor in enumerate(node.keras_inputs):
        index = np.arange(tensor.shape[-1])
        bits = np.arange(max(1, int(index[-1]).bit_length()))
        has = (index >> bits[:, np.newaxis]) & 1 == 1
        changes = 1.0 + np.concatenate([np.zeros((1, len(index))), ~has, has])
        changes = changes.reshape(len(changes), *(1,) * (tensor.shape.rank - 2), -1)
        given = [np.repeat(x, len(changes), axis=0) for x in values]
        given[number] *= changes
        for of_output, output in zip(found, _results(node, given), strict=True):
            changed = (output[1:] != output[:1]).any(tuple(range(1, output.ndim - 1)))
            without, with_bit = np.split(changed, 2)
            if (without & with_bit).any():
                return None
            some = (without | with_bit).any(0)
            of_output.append(np.where(some, (with_bit << bits[:, np.newaxis]).sum(0), -1))
    return found


def _scales(node, sources: list[list[np.ndarray]] | None) -> bool:
    """Whether a layer passes on what its inputs are multiplied by; without sources, ignores it."""
    random, channels = np.random.default_rng(0), _Channels()
    given = [channels.new(tensor.shape[-1]) for tensor in node.keras_inputs]
    made = None if sources is None else _joined(given, sources, channels)
    # With powers of two the results are exact
    powers = 2.0 ** random.integers(-3, 4, channels.new(1)[0])
    shapes = [(4, *tensor.shape[1:]) for tensor in node.keras_inputs]
    values = [random.normal(size=x) * 10 ** random.uniform(-3, 3, x) for x in shapes]
    values = [x.astype(np.float32) for x in values]
    before = _results(node, values)
    pairs = zip(values, given, strict=True)
    after = _results(node, [x * powers[channels.roots(numbers)] for x, numbers in pairs])
    if made is not None:
        pairs = zip(before, made, strict=True)
        before = [x * powers[channels.roots(numbers)] for x, numbers in pairs]
    return all(map(np.array_equal, before, after))


def _joined(given, sources, channels: _Channels) -> list[np.ndarray]:
    """The channels of outputs, each one with all that it depends on."""
    made = []
    for of_output in sources:
        numbers = channels.new(len(of_output[0]))
        for source, own in zip(of_output, given, strict=True):
            some = source >= 0
            channels.join(numbers[some], own[source[some]])
        made.append(numbers)
    return made


def _results(node, values: list[np.ndarray]) -> list[np.ndarray]:
    tensors = [tf.constant(x, tf.float32) for x in values]
    return [x.numpy() for x in tf.nest.flatten(recall(node.layer, node, tensors))]


def _takes_only_signs(quantized) -> bool:
    """Not if it has several levels, or a scale of what it takes."""
    values = np.random.default_rng(0).normal(size=(1, 4, 4, 32)).astype(np.float32)
    sizes = np.geomspace(0.01, 100, 32, dtype=np.float32)
    return np.array_equal(quantized(values), quantized(sizes * values))


_HOMOGENEOUS = (None, tf.keras.activations.linear, tf.keras.activations.relu)


def _takes_back(layer) -> bool:
    """Whether the weights of a layer can make up for any factors of its input and output."""
    if isinstance(layer, tf.keras.layers.DepthwiseConv2D):
        return layer.depth_multiplier == 1
    if isinstance(layer, tf.keras.layers.Conv2DTranspose):
        return False
    if isinstance(layer, tf.keras.layers.Conv2D):
        return layer.groups == 1
    return isinstance(layer, Affine | tf.keras.layers.Dense)


def _scaled(layer, given: np.ndarray, made: np.ndarray) -> list[np.ndarray]:
    """The weights of a layer for the factors of its input and of its output."""
    weights = layer.get_weights()
    if quantizer(layer, "input_quantizer") is not None:
        return weights
    if isinstance(layer, Shift | ConstantMinus):
        return [weights[0] * made]
    if not _takes_back(layer):
        return weights
    kernel, *bias = weights
    if isinstance(layer, tf.keras.layers.DepthwiseConv2D):
        kernel = kernel * (made / given)[:, np.newaxis]
    elif isinstance(layer, Affine):
        kernel = kernel * made / given
    else:
        kernel = kernel * made / given[:, np.newaxis]
    return [kernel, *(values * made for values in bias)]
