"""The distribution loss: the teacher's output distribution as the only target."""

import tensorflow as tf

__all__ = ["DistributionLoss"]


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class DistributionLoss(tf.keras.losses.Loss):
    """Cross-entropy between the teacher's and the student's softmax (ReActNet, equation 7).

    ``-sum softmax(teacher) * log_softmax(student)``, averaged over the batch; no
    labels, no temperature.  y_true is the teacher's logits and y_pred the student's,
    both (B, num_classes); half precision is computed in float32.

    Raises:
        ValueError: y_true is of another shape, as labels are.
    """

    def __init__(self, name: str = "distribution_loss", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        y_true = tf.convert_to_tensor(y_true)
        if not y_true.shape.is_compatible_with(y_pred.shape):
            raise ValueError(
                f"Expected y_true to be the teacher's logits, of the shape {y_pred.shape}. "
                f"Received: {y_true.shape}"
            )
        if y_pred.dtype in (tf.float16, tf.bfloat16):
            y_pred = tf.cast(y_pred, tf.float32)
        y_true = tf.stop_gradient(tf.cast(y_true, y_pred.dtype))
        return tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(y_true), y_pred)
