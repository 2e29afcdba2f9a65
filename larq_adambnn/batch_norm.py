"""The statistics of batch norms, computed anew with the weights as they are."""

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from larq_adambnn.arguments import expect, instance

__all__ = ["estimator", "reestimate_batch_norm", "statistics"]


def _norms(model: tf.keras.Model) -> list[tf.keras.layers.BatchNormalization]:
    """The batch norms whose statistics follow the training; those of frozen layers stay."""
    kind = tf.keras.layers.BatchNormalization
    return [x for x in model._flatten_layers() if isinstance(x, kind) and x.trainable]


def statistics(model: tf.keras.Model) -> list[tf.Variable]:
    """Moving mean and variance of each batch norm that is not frozen."""
    return [v for norm in _norms(model) for v in (norm.moving_mean, norm.moving_variance)]


def reestimate_batch_norm(model: tf.keras.Model, batches: Iterable) -> tf.keras.Model:
    """Sets the statistics of a model's batch norms to their mean over batches, in place.

    During a training they trail behind the weights, whose signs may change at once, and they
    are not those of averaged weights (Nagel et al., arXiv 2203.11086, section 4).  As in
    torch.optim.swa_utils.update_bn each batch counts the same, and is normalized by its own
    statistics.

    Args:
        model: a built model.
        batches: images (B, H, W, C), or tuples that begin with them.

    Returns:
        The same model.

    Raises:
        ValueError: there is no batch, or the model is none.
    """
    expect("model", model, instance(tf.keras.Model, "a Keras model"))
    estimator(model)(batches)
    return model


def estimator(model: tf.keras.Model) -> Callable[[Iterable], None]:
    """`reestimate_batch_norm` of one model, traced once; what is binary in it is to stay."""
    strategy = model.distribute_strategy

    @tf.function
    def forward(images):  # each replica computes the same
        strategy.run(lambda x: model(x, training=True), args=(images,))

    def estimate(batches):
        norms, found = _norms(model), statistics(model)
        count, sums = 0, [np.zeros(v.shape) for v in found]
        momentums = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0  # the statistics are those of the last batch
            for batch in batches:
                forward(batch[0] if isinstance(batch, list | tuple) else batch)
                sums = [total + v.numpy() for total, v in zip(sums, found, strict=True)]
                count += 1
        finally:
            for norm, momentum in zip(norms, momentums, strict=True):
                norm.momentum = momentum
        if not count:
            raise ValueError("Expected one batch or more. Received: none")
        for variable, total in zip(found, sums, strict=True):
            variable.assign((total / count).astype(variable.dtype.as_numpy_dtype))

    return estimate
