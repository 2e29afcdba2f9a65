"""scikit-learn's handwritten digits as a TFDS data set: real images without a download."""

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

__all__ = ["Digits"]

_SIDE = 32
_TEST_IMAGES = 360
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 greyscale digits of 8 x 8 pixels, resized to 32 x 32; 1,437 train, 360 test.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
    UCI Machine Learning Repository, 1998, as `sklearn.datasets.load_digits` ships it.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=" ".join(Digits.__doc__.split()),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIDE, _SIDE, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        import sklearn.datasets  # takes long, and is needed once

        del dl_manager
        digits = sklearn.datasets.load_digits()
        order = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(len(digits.images))
        test, train = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
        return {
            "train": self._generate_examples(digits, train),
            "test": self._generate_examples(digits, test),
        }

    def _generate_examples(self, digits, indices):
        for index in indices:
            image = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            image = PIL.Image.fromarray(image).resize((_SIDE, _SIDE), PIL.Image.BILINEAR)
            yield (
                int(index),
                {
                    "image": np.asarray(image)[..., np.newaxis],
                    "label": int(digits.target[index]),
                },
            )
