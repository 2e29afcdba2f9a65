"""How the images of a data set are prepared, augmented and put into batches."""

import dataclasses

from larq_adambnn.arguments import (
    FLAG,
    check_fields,
    expect,
    field,
    instance,
    number,
    one_of,
    optional,
    whole,
)
from larq_adambnn.names import CROPS

__all__ = ["Settings", "settings_of"]

_SMALLEST_IMAGE = 32
_OPERATIONS, _STRONGEST = 14, 30  # of RandAugment


@dataclasses.dataclass(frozen=True)
class Settings:
    """Size, augmentation, batch size and seed of a data set's streams.

    Attributes:
        image_size: side of the square input in pixels.
        channels: 1 (grey) or 3 (colour), to which images are converted; 0 is the data set's
            own number, and 3 for folders of images.
        batch_size: images in an iteration.
        seed: of order and augmentation.
        augment: False prepares the training images as those to evaluate on, in the
            training's order; nothing below but `crop` counts then.
        crop: random_resized (ImageNet's; evaluation takes the centre), padded (shifts by up
            to 1/8) or none (the whole image).
        flip: whether training images are flipped horizontally at random.
        lighting: standard deviation of the PCA lighting; 0 is off.
        lighting_range: lighting is added to values on 0..1 or, as in the published code,
            on 0..255.
        randaugment: operations of RandAugment an image; 0 is off.
        randaugment_magnitude: their strength, 0 to 30.
        mixup, cutmix: Beta(a, a) parameters; 0 is off.  The teacher has to see the mixture.

    Raises:
        ValueError: a setting is not what it should be.
    """

    image_size: int = field(224, whole(_SMALLEST_IMAGE))
    channels: int = field(0, one_of(0, 1, 3))
    batch_size: int = field(256, whole(1))
    seed: int = field(0, whole(0, 2**31 - 1))
    augment: bool = field(True, FLAG)
    crop: str = field("random_resized", one_of(*CROPS))
    flip: bool = field(True, FLAG)
    lighting: float = field(0.1, number(0))
    lighting_range: int = field(1, one_of(1, 255))
    randaugment: int = field(0, whole(0, _OPERATIONS))
    randaugment_magnitude: int = field(9, whole(0, _STRONGEST))
    mixup: float = field(0.0, number(0))
    cutmix: float = field(0.0, number(0))

    def __post_init__(self):
        check_fields(self)

    @property
    def mixes(self) -> bool:
        """Whether training images are mixtures."""
        return self.augment and bool(self.mixup or self.cutmix)


def settings_of(settings: Settings | None, changes: dict) -> Settings:
    """Settings, or the default ones, with changes by keyword.

    Raises:
        ValueError: there is no such setting, or its value is not what it should be.
    """
    expect("settings", settings, optional(instance(Settings, "a data.Settings")))
    names = [field.name for field in dataclasses.fields(Settings)]
    for name in changes:
        if name not in names:
            raise ValueError(f"Expected some of {', '.join(names)}. Received: {name}")
    return dataclasses.replace(settings or Settings(), **changes)
