"""What a run records: its layers epoch by epoch, curves and snapshots."""

import collections
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from larq_adambnn.errors import UsageError
from larq_adambnn.files import read_rows
from larq_adambnn.runs import datasets
from larq_adambnn.runs.config import load_run
from larq_adambnn.runs.recording import Snapshot, snapshots
from larq_adambnn.runs.students import build_student, load_student

pytestmark = pytest.mark.usefixtures("small_network")


def test_each_layer_and_epoch_has_a_row(two_step_run):
    found = read_rows(two_step_run.measurements)
    names = ("block1_conv3x3", "block2_conv3x3")
    assert [(r["step"], r["epoch"], r["layer"]) for r in found] == [
        (step, epoch, name) for step in "12" for epoch in "123" for name in names
    ]
    for epoch, metrics in enumerate(two_step_run.read_metrics()):
        layers = found[2 * epoch : 2 * epoch + 2]
        for column in ("ff_ratio", "c2i_ratio", "c2i_step_ratio", "dead_weights", "update_size"):
            # Both layers are of the same size, so the total is the mean.
            mean = np.mean([float(layer[column]) for layer in layers])
            assert metrics[column] == pytest.approx(mean, rel=1e-6), column
        squares = sum(float(layer["gradient_norm"]) ** 2 for layer in layers)
        assert metrics["gradient_norm"] == pytest.approx(squares**0.5)


def test_metrics_and_layers_have_their_curves_for_tensorboard(two_step_run):
    curves = collections.defaultdict(dict)
    for path in two_step_run.tensorboard.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                curves[value.tag][event.step] = value.simple_value
    metrics = two_step_run.read_metrics()
    for column in ("loss", "val_accuracy", "learning_rate", "saturation"):
        expected = [row[column] for row in metrics]
        assert list(curves[column]) == list(range(len(metrics)))
        np.testing.assert_allclose(list(curves[column].values()), expected, rtol=1e-6)
    of_layer = [
        float(row["sdam"])
        for row in read_rows(two_step_run.measurements)
        if row["layer"] == "block2_conv3x3"
    ]
    np.testing.assert_allclose(list(curves["sdam/block2_conv3x3"].values()), of_layer, rtol=1e-6)


def test_tensorboards_hparams_have_the_settings_and_the_results(two_step_run, one_step_run):
    """As TensorBoard itself reads them, of a run, its teacher and another run."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    for run in (two_step_run, one_step_run):
        multiplexer.AddRunsFromDirectory(str(run.directory), run.directory.name)
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, "")
    context = backend_context.Context(TBContext(data_provider=provider))
    every = api_pb2.Status.values()
    request = api_pb2.ListSessionGroupsRequest(slice_size=10, allowed_statuses=every)
    found = list_session_groups.Handler(RequestContext(), context, "", request).run()
    sessions = {group.sessions[0].name: group for group in found.session_groups}
    assert set(sessions) == {
        "two_step_run/tensorboard",
        "two_step_run/teacher/tensorboard",
        "one_step_run/tensorboard",
    }
    for run in (two_step_run, one_step_run):
        group = sessions[f"{run.directory.name}/tensorboard"]
        config = load_run(run.directory)
        assert set(group.hparams) == set(config.defining())
        assert group.hparams["learning_rate"].number_value == config.learning_rate
        assert group.hparams["order"].string_value == config.order
        assert group.hparams["flip"].bool_value is False
        assert group.hparams["weight_decay"].string_value == "5e-06,0.0"
        (session,) = group.sessions
        assert session.status == api_pb2.STATUS_SUCCESS
        last = run.read_metrics()[-1]
        results = {value.name.tag: value.value for value in session.metric_values}
        assert results == {
            name: pytest.approx(last[name], rel=1e-6)
            for name in ("val_accuracy", "val_top5_accuracy", "val_loss", "accuracy", "loss")
        }


def test_snapshots_are_the_weights_at_the_start_and_at_the_ends_of_a_step(two_step_run, data_dir):
    found = snapshots(two_step_run)
    assert [(s.step, s.epoch) for s in found] == [(1, 0), (1, 1), (1, 3), (2, 1), (2, 3)]
    settings = load_run(two_step_run.directory)
    model = load_student(two_step_run, settings, datasets.load(settings))
    expected = [variable.numpy() for variable in model.weights]
    found[-1].load(model)
    for variable, weights in zip(model.weights, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), weights)
    # The first layer's last update is at most the last steps' small learning rate.
    update = found[-1].update()
    assert update.shape == model.get_layer("block1_conv3x3").kernel.shape
    assert 0 < np.abs(update).max() < 2.5e-3 / 10
    assert np.abs(found[1].update()).max() > np.abs(update).max()


def test_damaged_snapshots_are_named(two_step_run, data_dir, tmp_path):
    settings = load_run(two_step_run.directory)
    model = build_student(settings, datasets.load(settings))
    good = two_step_run.snapshots / "step1_epoch0001.npz"
    path = tmp_path / good.name
    for content in (b"", b"no archive", good.read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"step1_epoch0001\.npz: expected a snapshot"):
            Snapshot(path).load(model)
    shutil.copy(two_step_run.snapshots / "step1_epoch0000.npz", path)  # which has no update
    with pytest.raises(UsageError, match=r"step1_epoch0001\.npz: expected a snapshot"):
        Snapshot(path).update()
    np.savez(path, **{f"weights/{index}": np.zeros(3) for index in range(len(model.weights))})
    with pytest.raises(UsageError, match=r"step1_epoch0001\.npz: expected weights of small"):
        Snapshot(path).load(model)
