"""Networks: tf.keras.Model from images (B, H, W, C) to logits (B, num_classes)."""

import inspect

import tensorflow as tf

from larq_adambnn.arguments import FLAG, expect, one_of
from larq_adambnn.models.common import check_arguments
from larq_adambnn.models.complexity import Complexity, complexity, summary
from larq_adambnn.models.own import own
from larq_adambnn.models.pretrained import PRETRAINED, Pretrained, pretrained
from larq_adambnn.models.reactnet import reactnet18, reactnet_a
from larq_adambnn.models.resnet import resnet34
from larq_adambnn.models.zoo import zoo
from larq_adambnn.names import ZOO, is_own

__all__ = [
    "PRETRAINED",
    "Complexity",
    "Pretrained",
    "build",
    "complexity",
    "options",
    "pretrained",
    "reactnet18",
    "reactnet_a",
    "resnet34",
    "summary",
]

_NETWORKS = {"reactnet_a": reactnet_a, "reactnet18": reactnet18, "resnet34": resnet34}


def options(name: str) -> tuple[str, ...]:
    """What a network takes besides its input shape and number of classes, such as width.

    Raises:
        ValueError: no such network.
    """
    if is_own(name):
        return ()
    expect("name", name, one_of(*_NETWORKS, *ZOO, "package.module:function"))
    if name in ZOO:
        return ("weights",)
    parameters = inspect.signature(_NETWORKS[name]).parameters.values()
    return tuple(
        p.name
        for p in parameters
        if p.name not in ("input_shape", "num_classes") and p.kind != p.VAR_KEYWORD
    )


def build(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    sync_batch_norm: bool = False,
    **chosen,
) -> tf.keras.Model:
    """The network of a name: reactnet_a, reactnet18, resnet34, one of larq-zoo's, or your own.

    Args:
        name: the network; "package.module:function" is your own function, which takes
            `input_shape` and `num_classes` and returns a tf.keras.Model of Larq layers.
        input_shape: (height, width, channels).
        num_classes: number of logits.
        sync_batch_norm: whether batch norms share their statistics over the replicas.
        **chosen: some of `options(name)`.

    Raises:
        ImportError: the network is larq-zoo's, which is not installed.
        ValueError: no such network, an argument it does not take, or a function of your own
            that returns no network.
    """
    known = options(name)
    expect("sync_batch_norm", sync_batch_norm, FLAG)
    for option, value in chosen.items():
        if option not in known:
            raise ValueError(
                f"Expected options of {name}, which are {', '.join(known) or 'none'}. "
                f"Received: {option}={value!r}"
            )
    if name in ZOO or is_own(name):
        check_arguments(input_shape, num_classes, smallest=1)
        model = (zoo if name in ZOO else own)(name, input_shape, num_classes, **chosen)
    else:
        model = _NETWORKS[name](input_shape, num_classes, **chosen)
    if sync_batch_norm:
        for layer in model.layers:
            if isinstance(layer, tf.keras.layers.BatchNormalization):
                layer.synchronized, layer.fused = True, False
    return model
