"""The list of private attributes is complete, and the installed releases have them."""

import ast
import pathlib
import sys

import pytest
import tensorflow as tf
from tensorflow.python.ops import control_flow_util, resource_variable_ops
from tensorflow.python.util.lazy_loader import KerasLazyLoader

import larq_adambnn
from larq_adambnn.keras_private import ATTRIBUTES

OURS = {"_fitted_by"}  # the only private attribute that we give to an object of Keras


def compiled():
    model = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def adam():
    optimizer = tf.keras.optimizers.Adam(amsgrad=True)
    optimizer.build([tf.Variable(0.0)])
    return optimizer


INSTANCES = {
    "tf_keras.callbacks.Callback": tf.keras.callbacks.Callback,
    "tensorflow.python.ops.control_flow_util": lambda: control_flow_util,
    "tensorflow.python.ops.resource_variable_ops": lambda: resource_variable_ops,
    "tf_keras.layers.Layer": lambda: tf.keras.layers.Dense(1),
    "tf_keras.Model": compiled,
    "tf_keras.models.Functional": compiled,
    "tf_keras.optimizers.Optimizer": adam,
    "tf_keras.optimizers.Adam": adam,
    "tf_keras.optimizers.legacy.Optimizer": tf.keras.optimizers.legacy.SGD,
    "tf_keras.mixed_precision.LossScaleOptimizer": lambda: (
        tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.SGD())
    ),
    "tensorflow.Graph": tf.Graph,
    "tensorflow.Variable": lambda: tf.Variable(0.0),
    "tensorflow.train.Checkpoint": tf.train.Checkpoint,
    "tensorflow.python.util.lazy_loader.KerasLazyLoader": lambda: KerasLazyLoader({}),
}


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda a: f"{a.owner}.{a.name}")
def test_the_installed_release_has_it(attribute):
    assert hasattr(INSTANCES[attribute.owner](), attribute.name)


def private(name) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def own(node) -> str | None:
    """The name that a piece of code defines, if it does."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.attr if isinstance(node.value, ast.Name) and node.value.id == "self" else None
    return None


def used(node) -> str | None:
    """The attribute that a piece of code uses, if it does."""
    if isinstance(node, ast.Attribute):
        return node.attr
    function = getattr(node, "func", None)
    if isinstance(function, ast.Name) and function.id in ("getattr", "hasattr", "setattr"):
        return getattr(node.args[1], "value", None)
    return None


def test_the_list_is_complete():
    """What is used in the package and defined nowhere in it."""
    package = pathlib.Path(larq_adambnn.__file__).parent
    trees = [ast.parse(path.read_text()) for path in package.rglob("*.py")]
    pieces = [node for tree in trees for node in ast.walk(tree)]
    foreign = set(filter(private, map(used, pieces))) - set(map(own, pieces)) - OURS
    replaced = {
        "GraphOrParentsInXlaContext",
        "ResourceVariable",
        "_apply_weight_decay",
        "_distributed_apply_gradients_fn",
        "_resource_apply_dense",
        "_supports_tf_logs",
        "_trackable_children",
    }
    assert foreign | replaced == {attribute.name for attribute in ATTRIBUTES}


def test_versions_include_the_installed_one():
    installed = {"tf_keras": sys.modules["tf_keras"].__version__, "tensorflow": tf.__version__}
    missing = {
        attribute.owner
        for attribute in ATTRIBUTES
        if installed[attribute.owner.split(".")[0]] not in attribute.versions
    }
    assert not missing
