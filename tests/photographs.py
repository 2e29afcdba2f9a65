"""Real images for the tests of the data: scikit-learn's photographs, and files made of them."""

import functools
import io

import numpy as np
import PIL.Image
import sklearn.datasets

NAMES = ("china", "flower")


@functools.cache
def photograph(name):
    """One of the two photographs, 640 x 427, as a Pillow image."""
    return PIL.Image.fromarray(sklearn.datasets.load_sample_image(f"{name}.jpg"))


def encoded(image, kind="JPEG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data, mode="RGB"):
    """The pixels (H, W, C) of an image file, as Pillow reads them."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(data)).convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def crops(count, seed=0, smallest=20):
    """Crops of both photographs, of odd sizes at odd places: (image, its name) pairs."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        image = photograph(NAMES[index % 2])
        width, height = generator.integers(smallest, (image.width, image.height)) | 1
        left = generator.integers(0, image.width - width + 1)
        top = generator.integers(0, image.height - height + 1)
        yield image.crop((left, top, left + width, top + height))


def write_folder(directory, train=6, val=2):
    """An image folder of the two classes china and flower, with JPEGs of odd sizes."""
    for split, count in (("train", train), ("val", val)):
        for index, image in enumerate(crops(2 * count, seed=len(split))):
            path = directory / split / NAMES[index % 2] / f"{index:03d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image, quality=90))
    return directory
