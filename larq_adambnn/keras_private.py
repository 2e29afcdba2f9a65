"""The private attributes of Keras and TensorFlow that this package relies on.

A release may change them without notice, so this is what to look at before another one is
allowed.  A test holds that the list is complete and that the installed release has them all.
"""

import dataclasses

__all__ = ["ATTRIBUTES", "PrivateAttribute"]


@dataclasses.dataclass(frozen=True)
class PrivateAttribute:
    """An attribute, and what would break without it.

    Attributes:
        owner: class that has it, or whose instances have it.
        name: its name there.
        use: what it is used for.
        versions: releases of the owner's package that were seen to have it.
    """

    owner: str
    name: str
    use: str
    versions: tuple[str, ...]


def _of(owner: str, versions: tuple[str, ...], **uses: str) -> list[PrivateAttribute]:
    return [PrivateAttribute(owner, f"_{name}", use, versions) for name, use in uses.items()]


_TF_KERAS = ("2.19.0", "2.21.0")
_TENSORFLOW = ("2.19.1", "2.21.0")

ATTRIBUTES = (
    *_of(
        "tf_keras.callbacks.Callback",
        _TF_KERAS,
        supports_tf_logs="set: fit leaves the logs of a batch on the device",
    ),
    *_of(
        "tf_keras.layers.Layer",
        _TF_KERAS,
        flatten_layers="method: the layers in a layer or model, in order, nested ones too",
        inbound_nodes="the calls of a layer, from which the export goes back to the image",
        autocast="whether inputs are cast to the layer's dtype; a quantizer keeps theirs",
    ),
    *_of(
        "tf_keras.Model",
        _TF_KERAS,
        steps_per_execution="variable: iterations that fit runs at once",
        training_state=(
            "what fit asks where a training begins, by its "
            "`maybe_load_initial_counters_from_ckpt`; a resumed run answers"
        ),
    ),
    *_of(
        "tf_keras.models.Functional",
        _TF_KERAS,
        nodes_by_depth="the layer calls of a functional model, which the export goes through",
    ),
    *_of(
        "tf_keras.optimizers.Optimizer",
        _TF_KERAS,
        index_dict="index of a variable's slots by its key",
        var_key="method: that key",
        apply_weight_decay="method, replaced: Keras's own decay would come on top of ours",
        distributed_apply_gradients_fn=(
            "method, extended: what the updates of an iteration share is computed here once"
        ),
    ),
    *_of(
        "tf_keras.optimizers.Adam",
        _TF_KERAS,
        momentums="the first moments",
        velocities="the second moments",
        velocity_hats="with amsgrad, the largest second moments so far",
    ),
    *_of(
        "tf_keras.optimizers.legacy.Optimizer",
        _TF_KERAS,
        resource_apply_dense="method, replaced while the gradients are measured",
        create_all_weights="method: makes its variables, of which a reset has the initial values",
    ),
    *_of(
        "tf_keras.mixed_precision.LossScaleOptimizer",
        _TF_KERAS,
        loss_scale="float16's scale and its counter, which a checkpoint saves",
    ),
    *_of(
        "tensorflow.Graph",
        _TENSORFLOW,
        get_function="method: a function that a graph calls, whose work the benchmark counts",
    ),
    *_of(
        "tensorflow.Variable",
        _TENSORFLOW,
        unique_id="a name that no other variable has, but for the copy on the first device",
    ),
    *_of(
        "tensorflow.train.Checkpoint",
        _TENSORFLOW,
        trackable_children="method, extended: what a SavedModel is not to hold is left out",
    ),
    PrivateAttribute(
        "tensorflow.python.ops.control_flow_util",
        "GraphOrParentsInXlaContext",
        "function: whether XLA compiles what is being traced, which gets plain operations",
        _TENSORFLOW,
    ),
    PrivateAttribute(
        "tensorflow.python.ops.resource_variable_ops",
        "ResourceVariable",
        "class: a variable of one device, of which a strategy makes no copies",
        _TENSORFLOW,
    ),
    *_of(
        "tensorflow.python.util.lazy_loader.KerasLazyLoader",
        _TENSORFLOW,
        tfll_initialized="whether the loader, which stands for tf.keras, has been used",
    ),
)
