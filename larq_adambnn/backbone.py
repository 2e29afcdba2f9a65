"""Fine-tuning on other classes: a network's backbone is all that comes before its classifier.

``backbone.copy(trained, model)`` takes over what another network of the same kind has learnt,
`freeze` leaves the classifier alone to be trained, and `rates` trains the backbone more slowly.
"""

import tensorflow as tf

__all__ = ["classifier", "copy", "freeze", "rates"]


def classifier(model: tf.keras.Model) -> list[tf.keras.layers.Layer]:
    """The layers that belong to the classes: the last one with a kernel and those after it.

    Only those with weights, such as a dense layer, or a convolution and its batch norm.

    Raises:
        ValueError: no layer has a kernel.
    """
    kernels = [index for index, layer in enumerate(model.layers) if hasattr(layer, "kernel")]
    if not kernels:
        raise ValueError(f"Expected a model of layers with kernels. Received: {model.name}")
    return [layer for layer in model.layers[kernels[-1] :] if layer.weights]


def _layers(model: tf.keras.Model) -> list[tf.keras.layers.Layer]:
    """The backbone's."""
    names = {layer.name for layer in classifier(model)}
    return [layer for layer in model.layers if layer.name not in names]


def copy(source: tf.keras.Model, model: tf.keras.Model) -> tf.keras.Model:
    """Gives a model the weights of another, but for the classifier, which stays as it is.

    Args:
        source: a network of the same architecture, of any number of classes.
        model: the one to change.

    Returns:
        The same model.

    Raises:
        ValueError: their backbones have other weights; the model is unchanged then.
    """
    ours, theirs = (
        [weight for layer in _layers(network) for weight in layer.weights]
        for network in (model, source)
    )
    if [weight.shape for weight in ours] != [weight.shape for weight in theirs]:
        raise ValueError(
            f"Expected a source with the backbone of {model.name}. Received: {source.name}, whose "
            "weights have other shapes"
        )
    for own, other in zip(ours, theirs, strict=True):
        own.assign(other)
    return model


def freeze(model: tf.keras.Model) -> tf.keras.Model:
    """Leaves only the classifier to be trained, in place; compile the model afterwards.

    A frozen batch norm computes with its running statistics in training too, and they stay.
    """
    for layer in _layers(model):
        layer.trainable = False
    return model


def rates(model: tf.keras.Model, rate: float) -> dict[str, float]:
    """The `rates` of an optimizer that trains the backbone at so many times the learning rate."""
    return {"": rate, **{f"{layer.name}/": 1.0 for layer in classifier(model)}}
