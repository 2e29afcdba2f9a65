"""Mean and standard deviation of the images of known data sets."""

__all__ = ["IMAGENET", "known"]

# (mean, standard deviation) of the training images on 0..1 values
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_KNOWN = {
    "digits": ((0.3055,), (0.3235,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def known(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) per channel of a data set by its name in TFDS.

    Known data sets have their published ones, others ImageNet's or, if grey, 0.5 and 0.25.
    """
    mean, std = _KNOWN.get(name.split("/")[0].split(":")[0], IMAGENET)
    if len(mean) not in (1, channels):
        mean, std = (0.5,), (0.25,)
    times = channels // len(mean)
    return mean * times, std * times
