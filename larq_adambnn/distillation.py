"""A student and its frozen teacher as one Keras model for `fit`."""

import weakref
from collections.abc import Callable, Sequence

import tensorflow as tf

from larq_adambnn.arguments import expect, function, instance, number, optional, several, whole
from larq_adambnn.attention import difference, opened
from larq_adambnn.losses import cross_entropy
from larq_adambnn.replicas import outputs_of

__all__ = ["Distiller", "together"]


def together(
    teachers: Sequence[Callable[[tf.Tensor], tf.Tensor]],
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Several teachers as the one of a `Distiller`, from images to logits (B, T, num_classes).

    `losses.DistributionLoss` weights them by image.  One alone stays as it is: (B, num_classes).

    Args:
        teachers: frozen functions from the same images to logits (B, num_classes), of any dtype;
            the widest is the dtype of all.

    Raises:
        ValueError: there is none, or one is no function; when it is called, one gives more.
    """
    expect("teachers", teachers, several(function, "frozen functions, one or more"))
    if len(teachers) == 1:
        return teachers[0]

    def teach(images):
        logits = [teacher(images) for teacher in teachers]
        if any(isinstance(given, tuple) for given in logits):
            raise ValueError(
                "Expected several teachers to give logits alone. Received: one that gives feature "
                "maps too; attention matching has a single teacher"
            )
        widest = max((x.dtype for x in logits), key=lambda dtype: dtype.size)
        return tf.stack([tf.cast(x, widest) for x in logits], axis=1)

    return teach


class Distiller(tf.keras.Model):
    """Trains a student on the teacher's distribution, on labels, or on both.

    `fit` and `evaluate` take (image, label) batches, with sample weights or
    `class_weight` too; labels are integers (B,) or (B, 1), from 0 on and below num_classes, also
    where only the metrics need them.  The teacher is computed once
    a batch, outside the gradient tape, and is not part of this model's weights.  The
    loss given to `compile` compares logits with the teacher's, or with the labels
    where there is no teacher; the student's own losses, such as of regularizers, are
    added, and in training `attention`.  Labels always serve the metrics `accuracy` and
    `top5_accuracy`, and those given to `compile`.

    It is not to be saved as a whole, since the teacher is a function: save `student`, or
    the weights.

    Args:
        student: model from images to logits (B, num_classes).
        teacher: frozen function from the same images to logits, or None; see `together` for
            several.
        label_weight: share of the cross-entropy with the labels in the loss, 0 to 1;
            the rest is the compiled loss.
        label_smoothing: of those labels, see `losses.cross_entropy`.
        attention: weight of `attention.difference` in the loss of training, such as 30; in step 2
            of a `TwoStepSwitch` it is off.  The teacher gives (logits, feature maps), as a network
            of `attention.opened` does.
        microbatches: equal parts that a batch is computed in, one after the other, to
            save memory; gradients are averaged and applied once.  Batch norm sees
            one part at a time.

    Raises:
        ValueError: an argument is out of range, or labels have another shape; with `attention`,
            the student has no feature maps or a loss of `add_loss(tensor)`, or the teacher has
            no maps of their sizes.
        tf.errors.InvalidArgumentError: a label is none of a class; in training, a loss is not
            finite.
    """

    def __init__(
        self,
        student: tf.keras.Model,
        teacher: Callable[[tf.Tensor], tf.Tensor] | None = None,
        *,
        label_weight: float = 0.0,
        label_smoothing: float = 0.0,
        attention: float = 0.0,
        microbatches: int = 1,
    ):
        expect("student", student, instance(tf.keras.Model, "a Keras model"))
        expect("teacher", teacher, optional(function))
        expect("label_weight", label_weight, number(0, 1))
        expect("label_smoothing", label_smoothing, number(0, below=1))
        expect("attention", attention, number(0))
        expect("microbatches", microbatches, whole(1))
        super().__init__(name=f"{student.name}_distiller")
        self.student = student
        self.taught_by(teacher)
        self.label_weight = label_weight
        self.label_smoothing = label_smoothing
        self.attention = attention
        self.matches_attention = bool(attention)  # for what is traced from now on
        if attention and any(type(x).__name__ == "AddLoss" for x in student._flatten_layers()):
            raise ValueError(
                "Expected a student with losses of its layers alone for attention matching. "
                f"Received: {student.name}, with a loss of model.add_loss(tensor)"
            )
        # Behind a function, so that Keras does not track the student's variables twice.
        seen = opened(student) if attention else None
        self._see = lambda images: seen(images, training=True)
        self.microbatches = microbatches
        self.distribute_reduction_method = "first"  # metrics are those of all replicas already
        self._loss = tf.keras.metrics.Mean("loss")
        self._top1 = tf.keras.metrics.Mean("accuracy")
        self._top5 = tf.keras.metrics.Mean("top5_accuracy")
        student._fitted_by = weakref.WeakSet([self])  # so that `binarize(student)` reaches it

    def taught_by(self, teacher: Callable[[tf.Tensor], tf.Tensor] | None) -> None:
        """Sets the teacher, for what is traced from now on."""
        self._teach, self._substitute = _hidden(teacher), None

    def substitute(self, teacher: Callable[[tf.Tensor], tf.Tensor] | None) -> None:
        """Has another teach in the teacher's place, or with None the teacher again.

        It is for what is traced from now on.
        """
        self._substitute = _hidden(teacher)

    @property
    def metrics(self):
        own = [self._loss, self._top1, self._top5]
        compiled = getattr(self, "compiled_metrics", None)  # once it is compiled
        return own if compiled is None else [*own, *compiled.metrics]

    def compile(self, *args, jit_compile: bool = False, **kwargs):
        """As Keras's; what XLA compiles are the networks, the loss and the gradients.

        The checks of the labels and of the loss, and the optimizer follow them, so that it works
        for every optimizer, and no weight changes where a check fails.
        """
        super().compile(*args, **kwargs)
        if not self.loss:
            raise ValueError(
                "Expected compile(loss=...), such as DistributionLoss(). Received: None"
            )
        self._xla = bool(jit_compile)
        self._compute = self._loss_and_gradients
        # Variables that a function makes while it is traced have it traced twice.
        if hasattr(self.optimizer, "build"):  # Keras's legacy optimizers have none
            self.optimizer.build(self.student.trainable_variables)

    def save(self, *args, **kwargs):
        self.get_config()  # as a SavedModel Keras would do without

    def __reduce__(self):
        self.get_config()  # Keras would pickle one that is not built, and fail at the teacher

    def get_config(self):
        raise NotImplementedError(
            "Expected distiller.student.save(...) or distiller.save_weights(...). Received: a "
            "Distiller to be saved whole, whose teacher is a function"
        )

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    def train_step(self, data):
        images, labels, weights = _unpack(data)
        loss, gradients = self._compute(images, labels, weights)
        with tf.control_dependencies([self._check_labels(labels)]):
            loss = tf.debugging.check_numerics(loss, "loss is not finite")
        with tf.control_dependencies([loss]):
            gradients = [None if g is None else tf.identity(g) for g in gradients]
        optimizer = self.optimizer
        if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(gradients, self.student.trainable_variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data):
        images, labels, weights = _unpack(data)
        logits = outputs_of(lambda images: self.student(images, training=False), images)
        target = outputs_of(lambda images: self._target(images, labels), images)
        loss = self._objective(target, labels, logits, weights)
        self._measure(labels, logits, loss, weights)
        with tf.control_dependencies([self._check_labels(labels)]):
            return {metric.name: metric.result() for metric in self.metrics}

    def make_train_function(self, force=False):
        if self._xla and (force or self.train_function is None):
            # Anew, since a function keeps the form it was traced in
            function = tf.function(self._loss_and_gradients, jit_compile=True)
            self._compute = lambda *batch: function(*batch)  # Keras would track a function
        return super().make_train_function(force)

    def _loss_and_gradients(self, images, labels, weights) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Of a batch; the gradients are those of the scaled loss in float16."""
        if self.microbatches == 1:
            return self._gradients(images, labels, weights)
        return self._accumulated_gradients(images, labels, weights)

    def _gradients(self, images, labels, weights) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Loss and gradients of a batch, or a part of one, which the metrics count."""
        target, wanted = self._taught(images, labels)
        with tf.GradientTape() as tape:
            if self.matches_attention:
                logits, maps = self._see(images)
            else:
                logits = self.student(images, training=True)
            loss = self._objective(target, labels, logits, weights)
            if self.matches_attention:
                apart = tf.cast(difference(maps, wanted), loss.dtype)
                loss += self.attention * self._mean(apart, weights)
            scaled = loss
            if isinstance(self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
                scaled = self.optimizer.get_scaled_loss(loss)
        self._measure(labels, logits, loss, weights)
        return loss, tape.gradient(scaled, self.student.trainable_variables)

    def _accumulated_gradients(self, images, labels, weights) -> tuple[tf.Tensor, list[tf.Tensor]]:
        parts = self.microbatches
        equal = tf.debugging.assert_equal(
            tf.shape(labels)[0] % parts,
            0,
            f"Expected batches of a multiple of microbatches={parts} images, also the last one",
        )
        with tf.control_dependencies([] if equal is None else [equal]):
            images, labels = tf.identity(images), tf.identity(labels)
        images = tf.reshape(images, [parts, -1, *images.shape[1:]])
        labels = tf.reshape(labels, [parts, -1])
        weights = None if weights is None else tf.reshape(weights, [parts, -1])

        def add(part, *sums):
            of_part = None if weights is None else weights[part]
            loss, gradients = self._gradients(images[part], labels[part], of_part)
            values = (tf.cast(loss, self._loss.dtype), *gradients)
            return part + 1, *[a + g / parts for a, g in zip(sums, values, strict=True)]

        zeros = [tf.zeros([], self._loss.dtype)]
        zeros += [tf.zeros(v.shape, v.dtype) for v in self.student.trainable_variables]
        _, loss, *gradients = tf.while_loop(
            lambda part, *_: part < parts, add, (0, *zeros), parallel_iterations=1
        )
        return loss, gradients

    def _check_labels(self, labels):
        """Fails on labels of no class, which XLA, GPUs and the metrics take without a word."""
        known = tf.reduce_all((labels >= 0) & (labels < self._classes))
        expected = f"Expected labels from 0 to {self._classes - 1}, the student's classes."
        return tf.debugging.Assert(known, [f"{expected} Received:", labels])

    def _taught(self, images, labels) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """What the compiled loss compares logits with, and the teacher's feature maps, if any."""
        teach = self._substitute or self._teach
        if teach is None:
            return labels, {}
        taught = teach(images)
        return taught if isinstance(taught, tuple) else (taught, {})

    def _target(self, images, labels) -> tf.Tensor:
        return self._taught(images, labels)[0]

    def _objective(self, target, labels, logits, weights) -> tf.Tensor:
        """Loss of a batch, divided by the number of replicas that share it."""
        loss = self.compiled_loss(target, logits, weights)
        replicas = self.distribute_strategy.num_replicas_in_sync
        if self.label_weight:
            entropy = cross_entropy(labels, tf.cast(logits, loss.dtype), self.label_smoothing)
            entropy = self._mean(entropy, weights)
            loss = (1 - self.label_weight) * loss + self.label_weight * entropy
        if self.student.losses:
            loss += tf.add_n([tf.cast(x, loss.dtype) for x in self.student.losses]) / replicas
        return loss

    def _mean(self, losses, weights) -> tf.Tensor:
        """Of the images' losses (B,), divided by the number of replicas that share the batch."""
        if weights is not None:
            losses *= tf.cast(weights, losses.dtype)
        images = tf.shape(losses)[0] * self.distribute_strategy.num_replicas_in_sync
        # A replica may have no image of the last batch.
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(images, losses.dtype))

    def _measure(self, labels, logits, loss, weights) -> None:
        replicas = tf.cast(self.distribute_strategy.num_replicas_in_sync, loss.dtype)
        self._loss.update_state(loss * replicas, sample_weight=tf.shape(labels)[0])
        self._classes = logits.shape[-1]  # for `_check_labels`, which is traced later
        best = tf.math.top_k(logits, min(5, self._classes)).indices
        hits = tf.equal(tf.cast(best, labels.dtype), labels[:, tf.newaxis])
        self._top1.update_state(hits[:, 0])
        self._top5.update_state(tf.reduce_any(hits, axis=-1))
        self.compiled_metrics.update_state(labels, logits, weights)


def _hidden(function: Callable | None) -> Callable | None:
    """The same in a function, so that Keras does not track variables of its own."""
    return None if function is None else lambda images: function(images)


def _unpack(data) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """(images, labels (B,), sample weights or None) of a batch as Keras gives it."""
    images, labels, weights = tf.keras.utils.unpack_x_y_sample_weight(data)
    if labels is None or labels.shape.rank not in (1, 2) or not labels.dtype.is_integer:
        raise ValueError(f"Expected (images, integer labels (B,)). Received: labels {labels}")
    if labels.shape.rank == 2:
        if labels.shape[1] != 1:
            raise ValueError(
                f"Expected integer labels (B,) or (B, 1), such as tf.argmax of one-hot ones. "
                f"Received: labels of shape {labels.shape}"
            )
        labels = tf.squeeze(labels, 1)
    if weights is not None:
        if weights.shape.rank not in (1, 2) or weights.shape[1:].num_elements() != 1:
            raise ValueError(
                f"Expected sample weights (B,) or (B, 1). Received: some of shape {weights.shape}"
            )
        weights = tf.reshape(weights, [-1])
    return images, tf.cast(labels, tf.int64), weights
