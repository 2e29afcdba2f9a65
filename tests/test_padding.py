"""What "same" pads, against TensorFlow's convolution."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn.padding import same_padding


@pytest.mark.parametrize(
    "size, span, stride, expected",
    [
        (8, 3, 1, (1, 1)),
        (8, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (8, 4, 1, (1, 2)),
        (8, 1, 1, (0, 0)),
        (8, 1, 3, (0, 0)),
        (9, 2, 5, (0, 0)),
        (1, 5, 1, (2, 2)),
        (5, 7, 4, (3, 3)),
    ],
)
def test_it_pads_what_tensorflow_pads(size, span, stride, expected):
    assert same_padding(size, span, stride) == expected
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, size, 1)), rng.normal(size=(span, 1, 1))
    padded = np.pad(x, [(0, 0), expected, (0, 0)])
    np.testing.assert_allclose(
        tf.nn.conv1d(padded, kernel, stride, "VALID"),
        tf.nn.conv1d(x, kernel, stride, "SAME"),
        atol=1e-12,
    )


def test_a_dilated_kernel_spans_more():
    x, kernel = np.random.default_rng(0).normal(size=(2, 9, 1, 1))
    x, kernel = x.reshape(1, 9, 1), kernel[:3].reshape(3, 1, 1)
    padded = np.pad(x, [(0, 0), same_padding(9, 5, 1), (0, 0)])
    np.testing.assert_allclose(
        tf.nn.convolution(padded, kernel, padding="VALID", dilations=2),
        tf.nn.convolution(x, kernel, padding="SAME", dilations=2),
        atol=1e-12,
    )
