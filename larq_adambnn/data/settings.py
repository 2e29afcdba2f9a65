"""How the images of a data set are prepared, augmented and put into batches."""

import dataclasses
import math

from larq_adambnn.names import CROPS

__all__ = ["Settings", "settings_of"]

_SMALLEST_IMAGE = 32
_OPERATIONS, _STRONGEST = 14, 30  # of RandAugment


@dataclasses.dataclass(frozen=True)
class Settings:
    """Size, augmentation, batch size and seed of a data set's streams.

    Attributes:
        image_size: side of the square input in pixels.
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
        ValueError: a setting is out of range.
    """

    image_size: int = 224
    batch_size: int = 256
    seed: int = 0
    augment: bool = True
    crop: str = "random_resized"
    flip: bool = True
    lighting: float = 0.1
    lighting_range: int = 1
    randaugment: int = 0
    randaugment_magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        def expect(name, condition, expected):
            value = getattr(self, name)
            if not condition(value):
                raise ValueError(f"Expected {name} to be {expected}. Received: {name}={value!r}")

        def whole(low, high=math.inf):
            return lambda value: isinstance(value, int) and low <= value <= high

        expect("image_size", whole(_SMALLEST_IMAGE), f"a number of at least {_SMALLEST_IMAGE}")
        expect("batch_size", whole(1), "a positive number")
        expect("seed", whole(0, 2**31 - 1), "a number from 0 to 2**31 - 1")
        expect("crop", CROPS.__contains__, f"one of {', '.join(CROPS)}")
        expect("lighting_range", (1, 255).__contains__, "1 or 255")
        expect("randaugment", whole(0, _OPERATIONS), f"a number from 0 to {_OPERATIONS}")
        expect("randaugment_magnitude", whole(0, _STRONGEST), f"a number from 0 to {_STRONGEST}")
        for name in ("lighting", "mixup", "cutmix"):
            expect(name, lambda value: 0 <= value < math.inf, "a number of at least 0")

    @property
    def mixes(self) -> bool:
        """Whether training images are mixtures."""
        return self.augment and bool(self.mixup or self.cutmix)


def settings_of(settings: Settings | None, changes: dict) -> Settings:
    """Settings, or the default ones, with changes by keyword.

    Raises:
        ValueError: there is no such setting, or its value is out of range.
    """
    names = [field.name for field in dataclasses.fields(Settings)]
    for name in changes:
        if name not in names:
            raise ValueError(f"Expected some of {', '.join(names)}. Received: {name}")
    return dataclasses.replace(settings or Settings(), **changes)
