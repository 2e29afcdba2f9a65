"""The trained networks that come with the package, see pretrained/README.md."""

import json
import pathlib
from typing import NamedTuple

import tensorflow as tf

from larq_adambnn import weights
from larq_adambnn.arguments import expect, one_of
from larq_adambnn.data import Preparation
from larq_adambnn.files import shipped
from larq_adambnn.models.reactnet import reactnet18, reactnet_a

__all__ = ["PRETRAINED", "Pretrained", "pretrained"]

PRETRAINED = ("digits", "fashion_mnist")
_NETWORKS = {"reactnet_a": reactnet_a, "reactnet18": reactnet18}


class Pretrained(NamedTuple):
    """A trained network and what it has to be used with.

    Attributes:
        model: from images (B, H, W, C) to logits (B, classes), binary activations and weights.
        class_names: one name a logit.
        preparation: of the images, see `data.Preparation`.
    """

    model: tf.keras.Model
    class_names: tuple[str, ...]
    preparation: Preparation


def pretrained(name: str) -> Pretrained:
    """A trained network, with its weights: digits or fashion_mnist.

    The .tflite files beside the weights, in float and in int8, compute the same.

    Raises:
        ValueError: there is no such network.
    """
    expect("name", name, one_of(*PRETRAINED))
    folder = pathlib.Path(shipped("pretrained"), name)
    known = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    values = known["preparation"].items()
    preparation = Preparation(**{k: tuple(v) if isinstance(v, list) else v for k, v in values})
    class_names = tuple(known["class_names"])
    build = _NETWORKS[known["model"]]
    model = build(preparation.input_shape, len(class_names), **known["options"])
    weights.load(model, folder / known["weights"])
    return Pretrained(model, class_names, preparation)
