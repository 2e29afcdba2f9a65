"""larq-zoo's networks with logits as their output, for training from scratch."""

import tensorflow as tf

from larq_adambnn.names import ZOO

__all__ = ["zoo"]


def zoo(name: str, input_shape: tuple[int, int, int], num_classes: int) -> tf.keras.Model:
    """A larq-zoo network by its name, with random weights and without its softmax.

    Raises:
        ImportError: larq-zoo is not installed.
        ValueError: no such network, or an input that it does not take.
    """
    if name not in ZOO:
        raise ValueError(f"Expected one of {', '.join(ZOO)}. Received: name={name!r}")
    try:
        import larq_zoo
    except ImportError as error:
        raise ImportError(
            f"{name} is a network of larq-zoo, which is not installed; expected it after: "
            'pip install "larq_adambnn[zoo]"'
        ) from error
    build = getattr(larq_zoo.sota, name, None) or getattr(larq_zoo.literature, name)
    model = build(input_shape=input_shape, num_classes=num_classes, weights=None)
    last = model.layers[-1]
    if not (
        isinstance(last, tf.keras.layers.Activation)
        and last.activation is tf.keras.activations.softmax
    ):
        raise ValueError(f"Expected {name} to end with a softmax. Received: {last.name}")
    logits = tf.keras.layers.Activation("linear", dtype="float32", name="logits")(last.input)
    return tf.keras.Model(model.input, logits, name=model.name)
