"""Attention matching: where in an image a student looks is compared with where its teacher does.

As in Real-to-Binary (Martinez et al., arXiv 2003.11535, section 4.2), by larq-zoo's formula.
``Distiller(student, attention.opened(teacher), attention=30)`` adds it to the loss of a training.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from larq_adambnn.arguments import expect, instance
from larq_adambnn.walk import is_model, nodes, recall

__all__ = ["attention_map", "common", "difference", "opened"]


def opened(model: tf.keras.Model) -> tf.keras.Model:
    """A network that gives its feature maps beside its outputs.

    It has the last map of each size at which branches meet, the outputs of layers of two or
    more inputs, such as the sum of a residual block.  Of a network without branches it has the
    last of each size.  Maps of one pixel show no place and are left out.

    Args:
        model: a functional one, or a sequential one that is built; there may be others in it.

    Returns:
        A model of the same layers from images to (outputs, maps); maps are (B, H, W, C), by
        their size as text, such as "14x14".

    Raises:
        ValueError: the model is not functional, or has no such map.
    """
    expect("model", model, instance(tf.keras.Model, "a Keras model"))
    output, made = _inside(model)
    meeting = [(node, tensor) for node, tensor in made if len(node.keras_inputs) > 1]
    maps = _last_of_each_size(meeting) or _last_of_each_size(made)
    if not maps:
        raise ValueError(
            "Expected a model with feature maps (B, H, W, C) of a known size above one pixel. "
            f"Received: {model.name}"
        )
    return tf.keras.Model(model.input, (output, maps), name=f"{model.name}_maps")


def _inside(model: tf.keras.Model) -> tuple:
    """The outputs of a model, and of each layer call in it, as (node, tensor).

    A model in it gives what is inside of it by another call, and so do the layers after it.
    """
    replaced, made, whole = {}, [], {}
    for node in nodes(model):
        given = [replaced.get(id(tensor), tensor) for tensor in node.keras_inputs]
        outputs, inside = node.outputs, []
        if is_model(node.layer):
            if node.layer.name not in whole:  # of all its calls
                output, found = _inside(node.layer)
                everything = (output, [tensor for _, tensor in found])
                inner = tf.keras.Model(node.layer.input, everything, name=node.layer.name)
                whole[node.layer.name] = inner, [one for one, _ in found]
            inner, calls = whole[node.layer.name]
            outputs, tensors = recall(inner, node, given)
            inside = list(zip(calls, tensors, strict=True))
        elif any(id(tensor) in replaced for tensor in node.keras_inputs):
            outputs = recall(node.layer, node, given)
        for before, after in zip(*map(tf.nest.flatten, (node.outputs, outputs)), strict=True):
            if after is not before:
                replaced[id(before)] = after
            inside.append((node, after))
        made += inside
    return tf.nest.map_structure(lambda t: replaced.get(id(t), t), model.output), made


def _last_of_each_size(made) -> dict:
    maps = {}
    for _, tensor in made:
        if tensor.shape.rank == 4 and None not in tensor.shape[1:3]:
            height, width = tensor.shape[1:3]
            if height * width > 1:
                maps[f"{height}x{width}"] = tensor
    return maps


def attention_map(features: tf.Tensor) -> tf.Tensor:
    """The mean over channels of the squares of a feature map, divided by its largest value.

    Args:
        features: (B, H, W, C).

    Returns:
        Tensor (B, H, W) from 0 to 1, of the features' dtype but never of half precision; 0 where
        all features of an image are 0.
    """
    if features.dtype in (tf.float16, tf.bfloat16):
        features = tf.cast(features, tf.float32)
    energy = tf.reduce_mean(tf.square(features), axis=-1)
    return tf.math.divide_no_nan(energy, tf.reduce_max(energy, axis=(1, 2), keepdims=True))


def difference(student: Mapping[str, tf.Tensor], teacher: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The mean squared difference of the attention maps of two networks, and over the sizes.

    Args:
        student, teacher: the maps of `opened` networks; those of a size that both have are
            compared.  No gradient goes to the teacher.

    Returns:
        Tensor (B,), never of half precision.

    Raises:
        ValueError: they have no size in common.
    """
    each = []
    for size in common(student, teacher):
        looks, wanted = attention_map(student[size]), attention_map(teacher[size])
        wanted = tf.stop_gradient(tf.cast(wanted, looks.dtype))
        each.append(tf.reduce_mean(tf.math.squared_difference(looks, wanted), axis=(1, 2)))
    return tf.add_n(each) / len(each)


def common(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    """The sizes of which two networks have maps.

    Raises:
        ValueError: there is none.
    """
    sizes = [size for size in student if size in teacher]
    if not sizes:
        raise ValueError(
            "Expected a teacher that gives feature maps (see attention.opened) of one of the "
            f"student's sizes, {', '.join(student)}. Received: {', '.join(teacher) or 'none'}"
        )
    return sizes
