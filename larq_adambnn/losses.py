"""What a student's logits are compared with: the teacher's distribution, or the labels."""

import tensorflow as tf

from larq_adambnn.arguments import expect, number

__all__ = ["CrossEntropy", "DistributionLoss", "cross_entropy", "weighted_by_image"]


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Cross-entropy of logits with labels, or with smoothed ones (arXiv 1512.00567, section 7).

    A label smoothed by e has 1 - e on its class and e spread evenly over all K of them.

    Args:
        labels: integers (B,).
        logits: (B, K).
        label_smoothing: e, from 0 on and below 1.

    Returns:
        Tensor (B,) of the logits' dtype.
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not label_smoothing:
        return loss
    even = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * even


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class CrossEntropy(tf.keras.losses.Loss):
    """`cross_entropy` as a Keras loss: y_true is integers (B,) or (B, 1), y_pred logits (B, K).

    Half precision is computed in float32.

    Raises:
        ValueError: `label_smoothing` is not from 0 on and below 1.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)
        expect("label_smoothing", label_smoothing, number(0, below=1))
        self.label_smoothing = float(label_smoothing)

    def call(self, y_true, y_pred):
        if y_pred.dtype in (tf.float16, tf.bfloat16):
            y_pred = tf.cast(y_pred, tf.float32)
        labels = tf.reshape(tf.cast(y_true, tf.int64), [-1])
        return cross_entropy(labels, y_pred, self.label_smoothing)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


def weighted_by_image(teachers: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of a student with several teachers (BNext, arXiv 2211.12933).

    With l_t of an image, the cross-entropy of the student's softmax with that of teacher t, the
    loss is ``sum_t softmax(l)_t l_t``, without a gradient through the weights.  The teacher that
    the student is further from counts more.  As in the published code, but that it divides by T.

    Args:
        teachers: their logits (B, T, K).
        logits: the student's (B, K).

    Returns:
        Tensor (B,) of the logits' dtype.
    """
    each = tf.nn.softmax_cross_entropy_with_logits(
        tf.nn.softmax(teachers), tf.broadcast_to(logits[:, tf.newaxis], tf.shape(teachers))
    )
    return tf.reduce_sum(tf.stop_gradient(tf.nn.softmax(each)) * each, axis=-1)


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class DistributionLoss(tf.keras.losses.Loss):
    """Cross-entropy between the teacher's and the student's softmax (ReActNet, equation 7).

    ``-sum softmax(teacher) * log_softmax(student)``, averaged over the batch; no
    labels, no temperature.  y_true is the teacher's logits and y_pred the student's,
    both (B, num_classes); half precision is computed in float32.  Of T teachers, y_true is
    (B, T, num_classes) and the loss of an image is `weighted_by_image`.

    Raises:
        ValueError: y_true is of another shape, as labels are.
    """

    def __init__(self, name: str = "distribution_loss", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        y_true = tf.convert_to_tensor(y_true)
        expected, several = y_pred.shape, y_true.shape.rank == 3
        if several and expected.rank == 2:
            expected = [expected[0], None, expected[1]]
        if not y_true.shape.is_compatible_with(expected):
            raise ValueError(
                f"Expected y_true to be the teacher's logits, of the shape {y_pred.shape}, or "
                f"those of several, (batch, teachers, classes). Received: {y_true.shape}"
            )
        if y_pred.dtype in (tf.float16, tf.bfloat16):
            y_pred = tf.cast(y_pred, tf.float32)
        y_true = tf.stop_gradient(tf.cast(y_true, y_pred.dtype))
        if several:
            return weighted_by_image(y_true, y_pred)
        return tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(y_true), y_pred)
