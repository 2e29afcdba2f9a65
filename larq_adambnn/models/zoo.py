"""larq-zoo's networks with logits as their output, for training from scratch."""

import tensorflow as tf

from larq_adambnn.arguments import expect, one_of, optional
from larq_adambnn.models.common import logits_of
from larq_adambnn.names import ZOO

__all__ = ["SMALLEST", "zoo"]

# Height and width from which on a network takes images; the others take any
SMALLEST = {
    "BinaryAlexNet": 57,
    "BinaryDenseNet28": 8,
    "BinaryDenseNet37": 8,
    "BinaryDenseNet37Dilated": 2,
    "BinaryDenseNet45": 8,
    "BinaryResNetE18": 8,
    "DoReFaNet": 44,
    "QuickNet": 29,
    "QuickNetLarge": 29,
    "QuickNetSmall": 29,
    "XNORNet": 217,
}


@tf.autograph.experimental.do_not_convert  # the layers have nothing to convert
def zoo(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    weights: str | None = None,
) -> tf.keras.Model:
    """A larq-zoo network by its name, without its softmax.

    Its weights are random, or with "imagenet", for (224, 224, 3) and 1000 classes, larq-zoo's
    trained ones, which are downloaded.

    Raises:
        ImportError: larq-zoo is not installed.
        ValueError: no such network, an input that it does not take, or weights that cannot be
            downloaded or are of another network.
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
    smallest = SMALLEST.get(name, 1)
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"Expected images of at least {smallest} x {smallest} for {name}. "
            f"Received: input_shape={input_shape}"
        )
    build = getattr(larq_zoo.sota, name, None) or getattr(larq_zoo.literature, name)
    expect("weights", weights, optional(one_of("imagenet")))
    try:
        model = build(input_shape=input_shape, num_classes=num_classes, weights=weights)
    except Exception as error:
        if weights is not None:  # the download raises Exception itself
            raise ValueError(
                f"Expected the ImageNet weights of {name} from larq-zoo, for (224, 224, 3) and "
                f"1000 classes. Received: {error}"
            ) from error
        if not isinstance(error, ValueError):
            raise
        # of two branches that have different sizes
        raise ValueError(
            f"Expected an image size that {name} takes, such as a multiple of 32. "
            f"Received: input_shape={input_shape}"
        ) from error
    return logits_of(model)
