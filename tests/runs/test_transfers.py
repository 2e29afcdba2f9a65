"""What crosses between the processor and a device while a run trains, without such a device.

Each crossing waits for the device, so a run may have no more than Keras has.
"""

import threading

import pytest
import small
import tensorflow as tf
from tensorflow.python.framework import constant_op, kernels, ops

import larq_adambnn.kernels
from larq_adambnn import callbacks, losses, models, optimizers
from larq_adambnn.distillation import Distiller
from larq_adambnn.runs import datasets, pace, strategies, training
from larq_adambnn.runs.config import parse
from larq_adambnn.runs.directory import Run

STEPS = 20  # that are counted: all of an epoch but the first, at which averages may begin anew


class Window(tf.keras.callbacks.Callback):
    """Says when the iterations between the first and the last begin and end."""

    def __init__(self, **hooks):
        super().__init__()
        self._supports_tf_logs = True
        vars(self).update(hooks)


def crossings(model, data, added, monkeypatch, verbose=0):
    """(tensors read, numbers that became tensors) in 20 iterations of an epoch.

    The data are read by other threads, on the processor in any case.
    """
    found = None
    read, make = ops._EagerTensorBase._numpy, constant_op.convert_to_eager_tensor

    def count_read(tensor):
        if found is not None and threading.current_thread() is threading.main_thread():
            found[0] += 1
        return read(tensor)

    def count_made(*arguments, **options):
        tensor = make(*arguments, **options)
        if found is not None and threading.current_thread() is threading.main_thread():
            found[1] += tensor.dtype != tf.int32  # which stay on the processor
        return tensor

    def begin(batch, logs=None):
        nonlocal found
        found = [0, 0] if batch == 1 else found

    def end(batch, logs=None):
        nonlocal found
        if batch == STEPS:
            results.extend(found)
            found = None

    results = []
    first = Window(on_train_batch_begin=begin)
    last = Window(on_train_batch_end=end)
    with monkeypatch.context() as patch:
        patch.setattr(ops._EagerTensorBase, "_numpy", count_read)
        patch.setattr(constant_op, "convert_to_eager_tensor", count_made)
        listed = [first, *added, last]
        model.fit(**data, steps_per_epoch=STEPS + 1, callbacks=listed, verbose=verbose)
    return results


PARTS = {
    "a bar": ("--ema=0.9", "--batch_norm_batches=1"),
    "lines": ("--order=progressive", "--published_schedule", "--epochs=2"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_run_crosses_no_more_than_keras(tmp_path, data_dir, monkeypatch, name):
    """All callbacks of a run are there, with a terminal's bar or the lines within an epoch."""
    monkeypatch.setitem(models._NETWORKS, "reactnet18", small.network)
    flags = (
        "--batch_size=8",
        f"--train_images={8 * STEPS + 8}",
        "--loss=cross_entropy",
        "--epochs=1",
        *PARTS[name],
    )
    config = parse(small.flags_of(tmp_path, data_dir, *flags))
    dataset = datasets.load(config)
    data = strategies.distribute(tf.distribute.get_strategy(), dataset, 0)
    del data["validation_data"]  # what is counted comes before an evaluation
    model = training.compiled(config, dataset, None)
    alone = crossings(model, data, [], monkeypatch)
    if name == "a bar":  # Keras's own reads the loss and both accuracies each time
        read, _ = crossings(model, data, [], monkeypatch, verbose=1)
        assert read - alone[0] >= 3 * (STEPS - 1)
    own = training.run_callbacks(config, Run(tmp_path), dataset, (config.epochs,))
    bar = name == "a bar"
    own.append(pace.Bar() if bar else pace.Pace((config.epochs,), config.batch_size))
    monkeypatch.setattr(pace, "_BAR_SECONDS", 1e9)  # no state of the bar is due meanwhile
    assert crossings(model, data, own, monkeypatch, verbose=bar) == alone


SHAPES = ("Shape", "ShapeN", "Size", "Rank")  # which read no tensor


def is_shape(tensor):
    """Whether it is one of the few numbers, known to the processor, that a shape has."""
    return tensor.dtype == tf.int32 and (tensor.shape.num_elements() or 0) <= 4


def on_the_processor(function):
    """The operations of a traced function that a GPU leaves to the processor, or returns there.

    By the kernels that this TensorFlow has for GPUs; arithmetic of shapes is left out.
    """
    names = []
    for operation in function.graph.get_operations():
        if operation.type in ("Const", "Placeholder", "NoOp", "Identity", *SHAPES):
            continue
        if all(map(is_shape, (*operation.inputs, *operation.outputs))):
            continue
        for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel:
            types = {c.name: c.allowed_values.list.type for c in kernel.constraint}
            fits = all(
                dtype.as_datatype_enum in allowed
                for name, allowed in types.items()
                for dtype in tf.nest.flatten(operation.get_attr(name))
            )
            returned = {result.name for result in operation.op_def.output_arg}
            returned &= set(kernel.host_memory_arg)
            if kernel.device_type in ("GPU", "DEFAULT") and fits and not returned:
                break
        else:
            names.append(operation.name)
    return names


def test_what_a_gpu_leaves_to_the_processor_is_found():
    @tf.function
    def count(x):
        return tf.reduce_sum(tf.cast(x > 0, tf.int32))

    assert on_the_processor(count.get_concrete_function(tf.zeros(9))) == ["Sum"]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_training_step_and_the_measurements_are_on_the_device(monkeypatch, policy):
    monkeypatch.setattr(larq_adambnn.kernels, "tuned", lambda: False)  # as where a GPU is
    tf.keras.mixed_precision.set_global_policy(policy)
    student = small.network((32, 32, 3), 10)
    model = Distiller(student, lambda images: images[:, 0, 0] @ tf.ones((3, 10)))
    optimizer = optimizers.Adam(weight_decay=0.1)
    if policy == "mixed_float16":
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    model.compile(optimizer, losses.DistributionLoss())
    flips, magnitude = callbacks.FlipFlopRatio(), callbacks.KernelMagnitude()
    sizes = callbacks.UpdateSize()
    for callback in (flips, magnitude, sizes, callbacks.Gradients()):  # whose part is in the step
        callback.set_model(model)
        callback.on_train_begin()
    kernels_of = [tf.identity(kernel) for kernel in sizes._kernels.values()]
    batch = tf.zeros((8, 32, 32, 3)), tf.zeros(8, tf.int64)
    for function, arguments in (
        (tf.function(model.train_step), (batch,)),
        (flips._signs.now, ()),
        (flips._signs.compare, (flips._signs.now(),)),
        (magnitude._means, ()),
        (sizes._add, (kernels_of, sizes._sums)),
    ):
        assert on_the_processor(function.get_concrete_function(*arguments)) == []
