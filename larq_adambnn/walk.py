"""Going through the layer calls of a functional Keras model in their order."""

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

__all__ = ["is_model", "named_nodes", "nodes", "recall", "unique", "walk"]


def nodes(model: tf.keras.Model) -> list:
    """Keras's records of a model's layer calls, each after those that it depends on.

    Raises:
        ValueError: the model is not functional.
    """
    if not is_model(model):
        raise ValueError(
            "Expected a functional model, or a sequential one that is built. "
            f"Received: {model.name}, a {type(model).__name__}"
        )
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [n for depth in depths for n in model._nodes_by_depth[depth] if not n.is_input]


def all_nodes(model: tf.keras.Model) -> Iterator:
    """`nodes`, with those of a model in it in the place of its call."""
    for node in nodes(model):
        if is_model(node.layer):
            yield from all_nodes(node.layer)
        else:
            yield node


def named_nodes(model: tf.keras.Model) -> list[tuple[str, object]]:
    """`all_nodes`, each with a name of its own.

    That is its layer's, and where that is taken, by an earlier call or by another layer, the
    same with _2, _3 and so on.
    """
    found = list(all_nodes(model))
    taken = {tensor.node.layer.name for tensor in model.inputs}
    used = taken.union(node.layer.name for node in found)
    named = []
    for node in found:
        name = node.layer.name
        named.append((unique(name, used) if name in taken else name, node))
        taken.add(name)
    return named


def unique(name: str, used: set[str]) -> str:
    """A name, if need be with _2, _3 and so on, that is not used; now it is."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    found = next(candidate for candidate in names if candidate not in used)
    used.add(found)
    return found


def is_model(layer) -> bool:
    """Whether a layer is a functional model."""
    return hasattr(layer, "_nodes_by_depth")


def count_uses(model: tf.keras.Model) -> collections.Counter:
    """How often each tensor of a model is an input of a layer or an output, by its id."""
    uses = collections.Counter(map(id, model.outputs))
    for node in nodes(model):
        uses.update(map(id, node.keras_inputs))
    return uses


def walk(model: tf.keras.Model, inputs: Sequence, call: Callable) -> list:
    """The outputs of a model, of any type, when its layers are called in another way.

    Models in it are gone through too.

    Args:
        model: a functional model.
        inputs: what stands for each input.
        call: from a node and what stands for its inputs to a list of its outputs.
    """
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    uses = count_uses(model)
    for node in nodes(model):
        given = [values[id(tensor)] for tensor in node.keras_inputs]
        inside = is_model(node.layer)
        results = walk(node.layer, given, call) if inside else call(node, given)
        values.update(zip(map(id, tf.nest.flatten(node.outputs)), results, strict=True))
        for tensor in node.keras_inputs:
            uses[id(tensor)] -= 1
            if uses[id(tensor)] == 0:  # what nothing needs any more may be large
                del values[id(tensor)]
    return [values[id(tensor)] for tensor in model.outputs]


def recall(layer, node, tensors: Sequence):
    """What a layer gives for other tensors in the place of a node's inputs."""
    replaced = dict(zip(map(id, node.keras_inputs), tensors, strict=True))
    args, kwargs = tf.nest.map_structure(
        lambda argument: replaced.get(id(argument), argument), (node.call_args, node.call_kwargs)
    )
    return layer(*args, **kwargs)
