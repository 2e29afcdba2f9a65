"""A student and its frozen teacher as one Keras model for `fit`."""

import weakref
from collections.abc import Callable

import tensorflow as tf

__all__ = ["Distiller"]


class Distiller(tf.keras.Model):
    """Trains a student on the teacher's distribution, or on labels without a teacher.

    `fit` and `evaluate` take (image, label) batches; the teacher is computed once a
    batch, outside the gradient tape, and is not part of this model's weights.
    The loss given to `compile` is that against the teacher's logits (or the labels,
    without a teacher); labels always serve the metrics `accuracy` and `top5_accuracy`.

    Args:
        student: model from images to logits (B, num_classes).
        teacher: frozen function from the same images to logits, or None.
    """

    def __init__(
        self,
        student: tf.keras.Model,
        teacher: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ):
        super().__init__(name=f"{student.name}_distiller")
        self.student = student
        # Behind a function, so that Keras does not track the teacher's variables.
        self._teach = None if teacher is None else lambda images: teacher(images)
        self._loss = tf.keras.metrics.Mean("loss")
        self._accuracy = [
            tf.keras.metrics.SparseCategoricalAccuracy("accuracy"),
            tf.keras.metrics.SparseTopKCategoricalAccuracy(5, "top5_accuracy"),
        ]
        student._fitted_by = weakref.WeakSet(
            [self]
        )  # so that `binarize(student)` finds what to retrace

    @property
    def metrics(self):
        return [self._loss, *self._accuracy]

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    def _target(self, images, labels):
        return labels if self._teach is None else tf.stop_gradient(self._teach(images))

    def train_step(self, data):
        images, labels = data
        target = self._target(images, labels)
        with tf.GradientTape() as tape:
            logits = self.student(images, training=True)
            loss = self.compiled_loss(target, logits)
        self.optimizer.minimize(loss, self.student.trainable_variables, tape=tape)
        return self._measure(labels, logits, loss)

    def test_step(self, data):
        images, labels = data
        logits = self.student(images, training=False)
        return self._measure(
            labels, logits, self.compiled_loss(self._target(images, labels), logits)
        )

    def _measure(self, labels, logits, loss):
        self._loss.update_state(loss, sample_weight=tf.shape(labels)[0])
        for metric in self._accuracy:
            metric.update_state(labels, logits)
        return {metric.name: metric.result() for metric in self.metrics}
