"""PyTorch's checkpoints in and out, with PyTorch itself as the judge."""

import argparse
import functools
import json
import os
import pathlib
import pickle
import shutil
import sys
import tempfile
import zipfile
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

import main
from larq_adambnn import checkpoints, layers, models
from larq_adambnn.models import reactnet
from larq_adambnn.runs import datasets
from larq_adambnn.runs.config import load_run
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.students import load_student
from larq_adambnn.weights import load

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
F = torch.nn.functional

NETWORKS = ("reactnet_a", "reactnet18", "resnet34")
WIDTH = 0.07


def build(name, size=(64, 64), classes=10, **options):
    return models.build(
        name, input_shape=(*size, 3), num_classes=classes, **{"width": WIDTH, **options}
    )


@pytest.fixture(scope="module")
def shared():
    """`build`, each network once."""
    return functools.cache(build)


def random_state_dict(model, seed=0):
    """Names and shapes of a model's state_dict, random values, -0.0 and a denormal."""
    rng = np.random.default_rng(seed)
    state_dict = {}
    for name, value in checkpoints.to_state_dict(model).items():
        if name.endswith("num_batches_tracked"):
            state_dict[name] = np.array(rng.integers(1, 10**9), np.int64)
            continue
        array = rng.normal(size=value.shape).astype(np.float32)
        array = np.abs(array) + 0.5 if name.endswith("running_var") else array
        array.flat[:2] = (-0.0, 1e-42) if array.size > 1 else -0.0
        state_dict[name] = array
    return state_dict


def flattened(state_dict):
    """The naming of ReActNet's second step."""
    return {
        f"{name}s" if "binary" in name else name: value.reshape(-1, 1)
        if "binary" in name
        else value
        for name, value in state_dict.items()
    }


def assert_same_bits(received, expected):
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape), name
        assert received[name].tobytes() == array.tobytes(), name


# The networks once more, in PyTorch's functions on a state_dict


class Torch:
    """Forward passes in evaluation mode, with binary activations and weights."""

    def __init__(self, state_dict):
        self.tensors = {name: torch.from_numpy(value) for name, value in state_dict.items()}

    def batch_norm(self, x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.tensors[f"{name}.{n}"] for n in names))

    def conv(self, x, name, stride=1):
        kernel = self.tensors[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def binary_conv(self, x, name, shift, stride=1):
        x = torch.sign(x + self.tensors[f"{shift}.bias"])
        kernel = self.tensors[f"{name}.weight"]
        kernel = kernel.abs().mean(dim=(1, 2, 3), keepdim=True) * torch.sign(kernel)
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def rprelu(self, x, before, slope, after):
        x = F.prelu(x + self.tensors[f"{before}.bias"], self.tensors[f"{slope}.weight"])
        return x + self.tensors[f"{after}.bias"]

    def classify(self, x):
        return F.linear(x.mean(dim=(2, 3)), self.tensors["fc.weight"], self.tensors["fc.bias"])

    def reactnet_a(self, x):
        x = self.batch_norm(self.conv(x, "feature.0.conv1", 2), "feature.0.bn1")
        for i, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), start=1):
            b = f"feature.{i}"
            y = self.binary_conv(x, f"{b}.binary_3x3", f"{b}.move11", stride)
            y = self.batch_norm(y, f"{b}.bn1") + (x if stride == 1 else F.avg_pool2d(x, 2, 2))
            y = self.rprelu(y, f"{b}.move12", f"{b}.prelu1", f"{b}.move13")
            if f"{b}.binary_pw.weight" in self.tensors:
                pairs = [("binary_pw", "bn2")]
            else:
                pairs = [("binary_pw_down1", "bn2_1"), ("binary_pw_down2", "bn2_2")]
            branches = [
                self.batch_norm(self.binary_conv(y, f"{b}.{conv}", f"{b}.move21"), f"{b}.{bn}") + y
                for conv, bn in pairs
            ]
            x = torch.cat(branches, dim=1)
            x = self.rprelu(x, f"{b}.move22", f"{b}.prelu2", f"{b}.move23")
        return self.classify(x)

    def reactnet18(self, x):
        x = self.batch_norm(self.conv(x, "conv1", 2), "bn1")
        x = F.max_pool2d(x, 3, 2, padding=1)
        for layer in range(1, 5):
            for i in range(4):
                b, stride = f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1
                y = self.binary_conv(x, f"{b}.binary_conv", f"{b}.move0", stride)
                y = self.batch_norm(y, f"{b}.bn1")
                if stride == 2:
                    x = self.conv(F.avg_pool2d(x, 2, 2), f"{b}.downsample.1")
                    x = self.batch_norm(x, f"{b}.downsample.2")
                x = self.rprelu(x + y, f"{b}.move1", f"{b}.prelu", f"{b}.move2")
        return self.classify(x)

    def resnet34(self, x):
        x = F.relu(self.batch_norm(self.conv(x, "conv1", 2), "bn1"))
        x = F.max_pool2d(x, 3, 2, padding=1)
        for layer, blocks in enumerate((3, 4, 6, 3), start=1):
            for i in range(blocks):
                b, stride = f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1
                y = F.relu(self.batch_norm(self.conv(x, f"{b}.conv1", stride), f"{b}.bn1"))
                y = self.batch_norm(self.conv(y, f"{b}.conv2"), f"{b}.bn2")
                if stride == 2:
                    x = self.batch_norm(self.conv(x, f"{b}.downsample.0", 2), f"{b}.downsample.1")
                x = F.relu(x + y)
        return self.classify(x)


@pytest.mark.parametrize(
    "name, size", [("reactnet_a", (64, 96)), ("reactnet18", (96, 64)), ("resnet34", (45, 70))]
)
def test_a_network_from_here_computes_the_same_in_pytorch(name, size, float64, tmp_path):
    """Whatever values its variables have; they need not come from a state_dict."""
    rng = np.random.default_rng(3)
    model = build(name, size)
    for variable in model.variables:
        spread = 0.05 if variable.shape.rank > 1 else 0.3
        variable.assign(variable + spread * rng.uniform(-1, 1, variable.shape))
    images = rng.normal(size=(4, *size, 3))
    checkpoints.save_torch(model, tmp_path / "a.pth")
    network = Torch(checkpoints.load_torch(tmp_path / "a.pth"))
    with torch.no_grad():
        expected = getattr(network, name)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    received = model(images, training=False).numpy()
    assert np.ptp(received) > 0.1
    np.testing.assert_allclose(received, expected.numpy(), rtol=0, atol=1e-12 * np.ptp(received))


# Files


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before_1.6"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_reads_every_form_of_file(prefix, wrapped, legacy, tmp_path):
    arrays = {"a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3), "n": np.array(7)}
    content = {f"{prefix}{name}": torch.tensor(array) for name, array in arrays.items()}
    if wrapped:
        adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
        content = {
            "epoch": 255,
            "state_dict": content,
            "best_top1_acc": torch.tensor(70.5),
            "optimizer": adam.state_dict(),
        }
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert zipfile.is_zipfile(path) != legacy
    assert_same_bits(checkpoints.load_torch(path), arrays)


def test_reads_parameters_and_half_precision(tmp_path):
    torch.save(
        {
            "a": torch.nn.Parameter(torch.ones(2)),
            "b": torch.full((2,), 1.5, dtype=torch.bfloat16),
            "c": torch.full((2,), 1.5, dtype=torch.float16),
        },
        tmp_path / "a.pth",
    )
    expected = {"a": np.ones(2, np.float32), "b": np.full(2, 1.5, np.float32)}
    expected["c"] = np.full(2, 1.5, np.float16)  # as it is; load_state_dict makes it float32
    assert_same_bits(checkpoints.load_torch(tmp_path / "a.pth"), expected)


def test_weights_in_half_precision_come_out_as_float32(shared):
    model = shared("reactnet18")
    half = {
        name: value.astype(np.float16) if value.dtype.kind == "f" else value
        for name, value in random_state_dict(model).items()
    }
    received = checkpoints.to_state_dict(checkpoints.load_state_dict(model, half))
    for name, value in half.items():
        assert received[name].dtype == (np.float32 if value.dtype.kind == "f" else np.int64)
        np.testing.assert_array_equal(received[name], value)


WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}
OTHERS = {"a.weight": torch.zeros(2, 3), "n": torch.tensor(0)}
CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "network", "module")
AVERAGES = ("ema", "model_ema", "state_dict_ema")


def prefixed(prefix):
    return {prefix + name: tensor for name, tensor in WEIGHTS.items()}


SCRIPTS = {
    **{f"under_{key}": {"epoch": 3, key: WEIGHTS} for key in CONTAINERS + AVERAGES},
    **{f"{key}_beside": {key: OTHERS, "model": WEIGHTS} for key in AVERAGES},
    **{
        f"prefix_{prefix}": prefixed(prefix)
        for prefix in ("module.", "model.", "_orig_mod.", "net.", "backbone.")
    },
    "prefixes": prefixed("module._orig_mod.model."),
    "prefixes_in_a_container": {"state_dict": prefixed("net.backbone.")},
    "arguments": {
        "epoch": 3,
        "model": WEIGHTS,
        "args": argparse.Namespace(lr=0.1, output="a", sizes=[1, 2], nested=argparse.Namespace()),
    },
    "numpy_scalars": {
        "best_top1_acc": np.float64(70.5),
        "epoch": np.int64(3),
        "state_dict": WEIGHTS,
        "losses": np.arange(3.0),
        "names": np.array(["a", "b"]),
    },
    "a_path": {"model": WEIGHTS, "args": argparse.Namespace(output=pathlib.PosixPath("a"))},
    "a_string_under_model": {"model": "reactnet_a", "net": WEIGHTS},
    "an_averaged_model": {
        "model_ema": {"n_averaged": torch.tensor(9), **prefixed("module.module.")}
    },
    "everything_of_a_training": {
        "model": prefixed("_orig_mod."),
        "model_ema": {"n_averaged": torch.tensor(9), **prefixed("module.")},
        "lr_scheduler": {"last_epoch": 3, "_step_count": 4, "milestones": Counter({30: 1})},
        "scaler": {"scale": 65536.0, "growth_interval": 2000},
        "rng": torch.get_rng_state(),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "shape": torch.Size([2, 3]),
        "args": argparse.Namespace(device=torch.device("cpu")),
    },
    "another_optimizer": {
        "model": WEIGHTS,
        "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.1).state_dict(),
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before_1.6"])
@pytest.mark.parametrize("content", SCRIPTS.values(), ids=SCRIPTS)
def test_reads_what_training_scripts_save(content, legacy, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    expected = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    assert_same_bits(checkpoints.load_torch(path), expected)


def test_reads_numbers_of_numpy_2(tmp_path):
    """NumPy 2 pickles them under another name."""
    torch.save({"top1": np.float64(70.5), "state_dict": WEIGHTS}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b", "w") as new:
        for entry in old.namelist():
            content = old.read(entry).replace(b"cnumpy.core.multi", b"cnumpy._core.multi")
            new.writestr(entry, content)
    assert b"numpy._core.multiarray" in (tmp_path / "b").read_bytes()
    expected = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    assert_same_bits(checkpoints.load_torch(tmp_path / "b"), expected)


@pytest.mark.parametrize("content", [{"n_averaged": torch.tensor(1)}, {}])
def test_a_file_without_weights(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="Expected"):
        checkpoints.load_torch(tmp_path / "a.pth")


def test_a_prefix_of_some_names_stays(tmp_path):
    content = {"module.a": torch.ones(2), "b": torch.ones(2)}
    torch.save(content, tmp_path / "a.pth")
    assert checkpoints.load_torch(tmp_path / "a.pth").keys() == content.keys()


def test_reads_files_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    expected = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    assert_same_bits(checkpoints.load_torch(tmp_path / "a.pth"), expected)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_reads_safetensors(name, prefix, tmp_path):
    """By content, whatever the file is called."""
    half = torch.full((2,), 1.5, dtype=torch.bfloat16)
    content = {**prefixed(prefix), f"{prefix}b": half}
    safetensors.save_file(content, tmp_path / name, metadata={"format": "pt"})
    expected = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    expected["b"] = np.full(2, 1.5, np.float32)
    assert_same_bits(checkpoints.load_torch(tmp_path / name), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_saves_what_the_published_code_loads(name, shared, tmp_path):
    model = shared(name)
    state_dict = random_state_dict(model)
    checkpoints.load_state_dict(model, state_dict)
    path = tmp_path / "new" / "a.pth"
    checkpoints.save_torch(model, path)
    content = torch.load(path, weights_only=True)
    if name == "resnet34":
        assert content.keys() == state_dict.keys()
    else:
        assert content["epoch"] + 1 == 0  # the epoch it would go on with
        assert content["best_top1_acc"] == 0
        assert content["state_dict"].keys() == {f"module.{key}" for key in state_dict}
    assert_same_bits(checkpoints.load_torch(path), state_dict)
    assert [file.name for file in path.parent.iterdir()] == ["a.pth"]


# State_dicts


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_bit_for_bit(name, shared):
    model = shared(name)
    state_dict = random_state_dict(model)
    assert checkpoints.load_state_dict(model, state_dict) is model
    assert_same_bits(checkpoints.to_state_dict(model), state_dict)


@pytest.mark.parametrize("name", ["reactnet_a", "reactnet18"])
def test_flat_kernels(name, shared):
    """They are read, and written again as they were; the naming can also be chosen."""
    model = shared(name)
    state_dict = random_state_dict(model)
    flat = flattened(state_dict)
    assert flat.keys() != state_dict.keys()
    checkpoints.load_state_dict(model, flat)
    assert_same_bits(checkpoints.to_state_dict(model), flat)
    assert_same_bits(checkpoints.to_state_dict(model, flat_kernels=False), state_dict)
    checkpoints.load_state_dict(model, state_dict)
    assert_same_bits(checkpoints.to_state_dict(model), state_dict)
    assert_same_bits(checkpoints.to_state_dict(model, flat_kernels=True), flat)


def test_counters_may_be_missing_altogether(shared):
    """As in files of PyTorch before 0.4.1; it reads them so itself."""
    model = shared("resnet34")
    state_dict = random_state_dict(model)
    counters = {name for name in state_dict if name.endswith("num_batches_tracked")}
    assert len(counters) == 36
    old = {name: value for name, value in state_dict.items() if name not in counters}
    checkpoints.load_state_dict(model, old)
    received = checkpoints.to_state_dict(model)
    assert all(received.pop(name) == 0 for name in counters)
    assert_same_bits(received, old)


def dropped(state_dict):
    del state_dict["feature.3.bn1.bias"], state_dict["feature.2.bn1.num_batches_tracked"]
    return "missing: feature.3.bn1.bias, feature.2.bn1.num_batches_tracked"


def added(state_dict):
    state_dict["feature.14.bn1.bias"] = np.zeros(3, np.float32)
    return "unexpected: feature.14.bn1.bias"


def both_namings(state_dict):
    kernel = state_dict["feature.3.binary_pw.weight"]
    state_dict["feature.3.binary_pw.weights"] = kernel.reshape(-1, 1)
    return "unexpected: feature.3.binary_pw.weight"


def another_shape(state_dict):
    state_dict["fc.weight"] = state_dict["fc.weight"].T
    state_dict["feature.1.move11.bias"] = state_dict["feature.1.move11.bias"].reshape(-1)
    return "misshapen: feature.1.move11.bias (2,) instead of (1, 2, 1, 1), fc.weight"


def another_flat_shape(state_dict):
    kernel = state_dict.pop("feature.3.binary_pw.weight")
    state_dict["feature.3.binary_pw.weights"] = kernel.reshape(1, -1)
    return "misshapen: feature.3.binary_pw.weights (1, 64) instead of (64, 1)"


def another_type(state_dict):
    state_dict["fc.bias"] = state_dict["fc.bias"].astype(np.int64)
    return "misshapen: fc.bias of type int64"


def not_a_number(state_dict):
    state_dict["feature.9.binary_3x3.weight"][0, 0, 1, 1] = np.nan
    return "NaN or infinity in feature.9.binary_3x3.weight"


def infinite(kind):
    def damage(state_dict):
        bias = torch.from_numpy(state_dict["fc.bias"]).to(kind)
        bias[1] = -torch.inf
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save({"fc.bias": bias}, file.name)
            state_dict["fc.bias"] = checkpoints.load_torch(file.name)["fc.bias"]
        return "NaN or infinity in fc.bias"

    return damage


def a_long_name(state_dict):
    state_dict["a\n" * 1000] = np.zeros(3, np.float32)
    return "unexpected: " + "a\\n" * 40


def too_large(state_dict):
    state_dict["fc.weight"] = state_dict["fc.weight"].astype(np.float64) * 1e300
    return "NaN or infinity in fc.weight"


@pytest.mark.parametrize(
    "damage",
    [
        dropped,
        added,
        both_namings,
        another_shape,
        another_flat_shape,
        another_type,
        not_a_number,
        pytest.param(infinite(torch.bfloat16), id="infinite_bfloat16"),
        pytest.param(infinite(torch.float16), id="infinite_float16"),
        pytest.param(infinite(torch.float32), id="infinite_float32"),
        a_long_name,
        too_large,
    ],
)
def test_is_strict(damage, shared):
    """The error says what is wrong, and the model is as it was."""
    model = shared("reactnet_a")
    before = checkpoints.to_state_dict(model)
    state_dict = random_state_dict(model)
    text = damage(state_dict)
    with pytest.raises(ValueError) as caught:
        checkpoints.load_state_dict(model, state_dict)
    assert text in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert_same_bits(checkpoints.to_state_dict(model), before)


def test_long_lists_are_cut(shared):
    state_dict = random_state_dict(shared("reactnet18"))
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more; unexpected: .* and \d+ more"):
        checkpoints.load_state_dict(shared("reactnet_a"), state_dict)


@pytest.mark.parametrize("name, size", [("reactnet_a", (80, 80)), ("reactnet18", (96, 80))])
def test_refuses_odd_sizes_before_a_stride(name, size):
    """Where they come up inside: 80 is 5 before the last stride.  (--image_size=33 is below.)"""
    model = build(name, size)
    state_dict = random_state_dict(model)
    with pytest.raises(ValueError, match="Expected even sizes before every stride of 2"):
        checkpoints.load_state_dict(model, state_dict)


def test_refuses_other_padding_and_other_networks():
    model = build("reactnet18", pad_values=1)
    with pytest.raises(ValueError, match="pads with zeros"):
        checkpoints.to_state_dict(model)
    with pytest.raises(ValueError, match="pads with zeros"):
        checkpoints.load_state_dict(model, {})
    other = tf.keras.Sequential([tf.keras.layers.Dense(2, input_shape=(2,))])
    with pytest.raises(ValueError, match="Expected one of reactnet_a, reactnet18, resnet34"):
        checkpoints.to_state_dict(other)


# Files that are no checkpoints


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def truncated_zip(path, mark):
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def truncated_before_16(path, mark):
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-500])


def empty(path, mark):
    path.touch()


def foreign_zip(path, mark):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "nothing")


def text(path, mark):
    path.write_text("no checkpoint")


def code_in_zip(path, mark):
    torch.save({"state_dict": {"a": torch.ones(2)}, "extra": Payload(mark)}, path)


def code_before_16(path, mark):
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "extra": Payload(mark)},
        path,
        _use_new_zipfile_serialization=False,
    )


def bare_pickle(path, mark):
    path.write_bytes(pickle.dumps(Payload(mark), protocol=2))


def whole_module(path, mark):
    torch.save(torch.nn.Linear(2, 2), path)


def no_state_dict(path, mark):
    torch.save([torch.ones(2)], path)


def no_tensors(path, mark):
    torch.save({"state_dict": {"a": "text"}}, path)


def sparse(path, mark):
    torch.save({"a": torch.eye(3).to_sparse()}, path)


def in_arguments(path, mark):
    arguments = argparse.Namespace(lr=0.1, extra=Payload(mark))
    torch.save({"model": {"a": torch.ones(2)}, "args": arguments}, path)


def in_numpy(path, mark):
    torch.save({"model": {"a": torch.ones(2)}, "x": np.array([Payload(mark)], object)}, path)


def another_class(path, mark):
    torch.save({"model": {"a": torch.ones(2)}, "args": zipfile.ZipInfo()}, path)


def arguments_alone(path, mark):
    torch.save(argparse.Namespace(lr=0.1), path)


def numpy_weights(path, mark):
    torch.save({"a": np.ones(2)}, path)


def flipped_weight(path, mark):
    """torch.load reads it as if nothing were."""
    weights = torch.full((1000,), 1.25)
    torch.save({"a": weights}, path)
    data = bytearray(path.read_bytes())
    data[data.index(weights.numpy().tobytes()) + 2003] ^= 0x80
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["a"].min() == -1.25


def compressed(path, mark):
    """A zip of a few kilobytes that would fill 64 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        with file.open("a/data/0", "w", force_zip64=True) as stream:
            for _ in range(1 << 6):
                stream.write(bytes(1 << 20))


def overlapping(path, mark):
    """Two names for the same bytes: many would fill the memory."""
    torch.save({"a": torch.ones(1000), "b": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as file:
        for _ in range(10):
            file.filelist.append(file.getinfo("bad/data/0"))
        file.comment = b"changed"


def repeated(path, mark):
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path)


def safetensors_header(header, data=bytes(8), claimed=None):
    def damage(path, mark):
        content = header if isinstance(header, bytes) else json.dumps(header).encode()
        length = len(content) if claimed is None else claimed
        path.write_bytes(length.to_bytes(8, "little") + content + data)

    return damage


def truncated_safetensors(path, mark):
    safetensors.save_file({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def safetensors_no_tensors(path, mark):
    safetensors.save_file({}, path)


TWO = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_SAFETENSORS = {
    "no_json": safetensors_header(b"{" * 20),
    "no_utf8": safetensors_header(b'{"\xff": 3}'),
    "longer_than_the_file": safetensors_header({"a": TWO}, claimed=1 << 31),
    "longer_than_memory": safetensors_header({"a": TWO}, claimed=(1 << 63) + 1),
    "shorter": safetensors_header({"a": TWO}, claimed=10),
    "huge_tensor": safetensors_header(
        {"a": {**TWO, "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}
    ),
    "overflow": safetensors_header({"a": {**TWO, "shape": [1 << 62, 1 << 62]}}),
    "another_shape": safetensors_header({"a": {**TWO, "shape": [3]}}),
    "unknown_type": safetensors_header({"a": {**TWO, "dtype": "F33"}}),
    "hole": safetensors_header({"a": {**TWO, "data_offsets": [8, 16]}}, bytes(16)),
    "shared": safetensors_header({"a": TWO, "b": TWO}),
    "trailing": safetensors_header({"a": TWO}, bytes(16)),
    "deep": safetensors_header(b'{"a":' * 100_000),
}
for _name, _damage in BAD_SAFETENSORS.items():
    _damage.__name__ = f"safetensors_{_name}"

BAD_FILES = {
    **dict.fromkeys(BAD_SAFETENSORS.values(), "Expected a safetensors file"),
    truncated_safetensors: "Expected a safetensors file",
    safetensors_no_tensors: "Expected a state_dict",
    in_arguments: "(posix.system); nothing of it was run",
    in_numpy: "(posix.system); nothing of it was run",
    another_class: "(zipfile.ZipInfo); nothing of it was run. "
    "Save the weights alone: torch.save(model.state_dict(), path)",
    arguments_alone: "Expected a state_dict",
    numpy_weights: "'a', a NotATensor",
    flipped_weight: "damaged or something else in the entry 'bad/data/0'",
    compressed: "with compressed entries of 67,1",
    overlapping: "with overlapping entries of ",
    repeated: "Expected tensors no larger than their file",
    truncated_zip: "truncated, damaged",
    truncated_before_16: "truncated, damaged",
    empty: "truncated, damaged",
    foreign_zip: "truncated, damaged",
    text: "truncated, damaged",
    code_in_zip: "(posix.system); nothing of it was run",
    code_before_16: "(posix.system); nothing of it was run",
    bare_pickle: "(posix.system); nothing of it was run",
    whole_module: "(torch.nn.modules.linear.Linear); nothing of it was run",
    no_state_dict: "Expected a state_dict",
    no_tensors: "Expected only tensors",
    sparse: "Expected dense tensors",
}


def run_main(capfd, *arguments):
    """(exit status, standard output, lines on standard error) of a command line."""
    capfd.readouterr()
    status = main.main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return status, out, err.splitlines()


IMPORT = ("--mode=import", "--model=reactnet18", "--dataset=digits", "--image_size=32")
IMPORT += (f"--width={WIDTH}",)


@pytest.mark.parametrize("damage", BAD_FILES, ids=lambda function: function.__name__)
def test_bad_files_say_why_and_run_nothing(damage, tmp_path, capfd):
    path, mark, run = tmp_path / "bad.pth", tmp_path / "mark", tmp_path / "run"
    damage(path, mark)
    with pytest.raises(ValueError) as caught:
        checkpoints.load_torch(path)
    assert BAD_FILES[damage] in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    status, _, lines = run_main(capfd, *IMPORT, f"--source={path}", f"--output_dir={run}")
    assert status == 2
    assert len(lines) == 1 and BAD_FILES[damage] in lines[0]
    assert not mark.exists() and not run.exists()


def test_the_planted_payload_would_run(tmp_path):
    """So that the test above can fail."""
    code_before_16(tmp_path / "a", tmp_path / "mark")
    torch.load(tmp_path / "a", weights_only=False)
    assert (tmp_path / "mark").exists()


def test_without_torch(shared, monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        checkpoints.load_torch("a.pth")
    with pytest.raises(ImportError, match="pip install torch"):
        checkpoints.save_torch(shared("resnet34"), tmp_path / "a.pth")
    (tmp_path / "a.pth").touch()
    status, _, lines = run_main(
        capfd, *IMPORT, f"--source={tmp_path}/a.pth", f"--output_dir={tmp_path}/run"
    )
    assert status == 2
    assert len(lines) == 1 and "pip install torch" in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cpu", "2.9.1", "2.9.0a0+git1"])
def test_refuses_a_torch_that_may_run_code(version, monkeypatch, tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", None)  # is not called
    with pytest.raises(ImportError) as caught:
        checkpoints.load_torch(tmp_path / "a.pth")
    for text in (f"torch {version};", 'pip install "torch>=2.10"', '"larq_adambnn[torch]"'):
        assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0"])
def test_takes_a_newer_torch(version, monkeypatch, tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", version)
    assert checkpoints.load_torch(tmp_path / "a.pth").keys() == WEIGHTS.keys()


def test_without_safetensors(monkeypatch, tmp_path):
    safetensors.save_file(WEIGHTS, tmp_path / "a.safetensors")
    torch.save(WEIGHTS, tmp_path / "a.pth")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r'a\.safetensors.*pip install "safetensors>=0\.4"'):
        checkpoints.load_torch(tmp_path / "a.safetensors")
    assert checkpoints.load_torch(tmp_path / "a.pth").keys() == WEIGHTS.keys()


def mutants(data, header, count, rng):
    """Copies of a file's bytes: cut, with a few bytes flipped, or with a random header."""
    for i in range(count):
        mutant = bytearray(data)
        if i % 4 == 0:
            del mutant[rng.integers(len(data)) :]
        elif i % 4 == 1:
            mutant[: rng.integers(1, 20)] = rng.bytes(rng.integers(1, 20))
        else:
            for place in rng.integers(header, size=rng.integers(1, 4)):
                mutant[place] ^= 1 << rng.integers(8)
        yield bytes(mutant)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_damaged_file_is_refused_or_read_as_it_was(kind, tmp_path):
    """A .safetensors has no checksums, so only its header is flipped; a name or a type may
    change then, which load_state_dict refuses.
    """
    path, weights = tmp_path / f"a.{kind}", {**WEIGHTS, "b": torch.ones(100)}
    if kind == "pth":
        torch.save({"epoch": 3, "state_dict": weights}, path)
    else:
        safetensors.save_file(weights, path)
    data = path.read_bytes()
    header = len(data) if kind == "pth" else 8 + int.from_bytes(data[:8], "little")
    expected = checkpoints.load_torch(path)
    types = {name: array.dtype for name, array in expected.items()}
    refused = 0
    for mutant in mutants(data, header, 40, np.random.default_rng(0)):
        path.write_bytes(mutant)
        try:
            received = checkpoints.load_torch(path)
        except (ValueError, OSError) as error:
            refused += 1
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
            continue
        same = {name: array.dtype for name, array in received.items()} == types
        if kind == "pth" or same:
            assert_same_bits(received, expected)
    assert refused >= 20


# --mode=import


@pytest.fixture(scope="module")
def shallow():
    """--model=reactnet18 has its first five blocks, the last of them with a stride."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reactnet, "_BLOCKS_18", reactnet._BLOCKS_18[:5])
        yield


@pytest.fixture(scope="module")
def source(shallow, tmp_path_factory):
    """A file as the authors save it, for the digits' one channel and ten classes."""
    model = models.reactnet18((32, 32, 1), 10, width=WIDTH)
    state_dict = random_state_dict(model)
    state_dict["layer2.0.binary_conv.weight"][0, :3] = 0
    content = {f"module.{name}": torch.tensor(value) for name, value in state_dict.items()}
    path = tmp_path_factory.mktemp("source") / "checkpoint.pth.tar"
    torch.save({"epoch": 255, "state_dict": content}, path)
    return path


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--model=reactnet_a"], "missing: feature.0.conv1.weight"),
        (["--model=resnet34", "--order=real_valued"], "missing: "),
        (["--num_classes=9"], "--num_classes: expected 10"),
        (["--dataset=mnist", "--num_classes=9"], "--num_classes: expected 10"),
        (["--dataset=cifar100"], "--dataset: expected 10 classes"),
        (["--dataset=cifar10"], "misshapen: conv1.weight"),
        (["--width=0.2"], "misshapen: "),
        (["--image_size=33"], "Expected even sizes"),
        (["--pad_values=1"], "pads with zeros"),
        (["--model=QuickNet", "--width=1"], "--model: expected reactnet_a, reactnet18 or resnet34"),
        (["--import_step=2", "--order=one_step"], "--import_step: expected a step of"),
        (["--source=/none"], "--source: expected a PyTorch checkpoint"),
    ],
)
def test_import_refuses_what_does_not_fit(flags, text, source, tmp_path, capfd):
    run = tmp_path / "run"
    status, _, lines = run_main(capfd, *IMPORT, f"--source={source}", f"--output_dir={run}", *flags)
    assert status == 2
    assert len(lines) == 1 and text in lines[0]
    assert not run.exists()


def test_import_of_nan(source, tmp_path, capfd):
    state_dict = checkpoints.load_torch(source)
    state_dict["fc.bias"][:] = np.nan
    tensors = {name: torch.from_numpy(value) for name, value in state_dict.items()}
    torch.save(tensors, tmp_path / "a.pth")
    status, _, lines = run_main(
        capfd, *IMPORT, f"--source={tmp_path}/a.pth", f"--output_dir={tmp_path}/run"
    )
    assert status == 2
    assert len(lines) == 1 and "NaN or infinity in fc.bias" in lines[0]
    assert not (tmp_path / "run").exists()


TRAIN = (
    "--mode=train",
    *IMPORT[1:],
    "--order=one_step",
    "--loss=cross_entropy",
    "--epochs=1",
    "--batch_size=64",
    "--train_images=64",
    "--learning_rate=1e-9",
    "--weight_decay=0,0",
    "--crop=none",
    "--noflip",
    "--noexport",
    "--nodeterministic",
)


def student_of(run):
    config = load_run(run)
    return load_student(Run(run), config, datasets.load(config))


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory, data_dir):
    """The run of that file; copy it before changing it."""
    run = tmp_path_factory.mktemp("imported") / "run"
    flags = (f"--data_dir={data_dir}", f"--source={source}", f"--output_dir={run}")
    assert main.main([*IMPORT, *flags]) == 0
    return run


def test_an_imported_run_is_a_run(source, imported, tmp_path, capfd, data_dir):
    """It can be imported again, evaluated, and be the start of a training, but not resumed."""
    run, place = shutil.copytree(imported, tmp_path / "run"), f"--data_dir={data_dir}"
    command = (*IMPORT, place, f"--source={source}", f"--output_dir={run}")
    expected = checkpoints.load_torch(source)
    kernels = [value for name, value in expected.items() if "binary" in name]
    zeros = sum(int(np.sum(kernel == 0)) for kernel in kernels)
    weights = sum(kernel.size for kernel in kernels)
    assert zeros > 0
    status, out, lines = run_main(capfd, *command)
    assert (status, lines) == (0, [])
    assert "the end of its step 2" in out
    assert f"{zeros} of {weights:,} binary weights are 0" in out
    assert {file.name for file in run.iterdir()} == {
        ".lock",
        "checkpoints",
        "data.json",
        "flags.cfg",
    }

    student = student_of(run)
    assert layers.binarization(student) == (True, True)
    received = checkpoints.to_state_dict(student)
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):  # which weight files do not hold
            assert received[name].tobytes() == value.tobytes(), name

    status, out, lines = run_main(capfd, "--mode=evaluate", f"--run={run}", place)
    assert (status, lines) == (0, [])
    assert "top-1" in out

    # One epoch at a learning rate of almost 0 ends almost where it began.
    trained = tmp_path / "trained"
    status, _, lines = run_main(
        capfd, *TRAIN, place, f"--init_from={run}", f"--output_dir={trained}"
    )
    assert (status, lines) == (0, [])
    before = [variable.numpy() for variable in student.trainable_variables]
    load(student, Run(trained).weights(1))
    for a, b in zip(student.trainable_variables, before, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)

    status, _, lines = run_main(capfd, f"--flagfile={run}/flags.cfg", "--mode=train")
    assert status == 2
    assert len(lines) == 1 and "expected --init_from" in lines[0]
    status, _, lines = run_main(
        capfd, *IMPORT, place, f"--source={source}", f"--output_dir={trained}"
    )
    assert status == 2
    assert len(lines) == 1 and "--output_dir" in lines[0]


def test_import_of_step_1(source, tmp_path, capfd, data_dir):
    run = tmp_path / "run"
    command = (*IMPORT, f"--data_dir={data_dir}", f"--source={source}", f"--output_dir={run}")
    status, _, lines = run_main(capfd, *command, "--import_step=1")
    assert (status, lines) == (0, [])
    assert Run(run).last_step() == 1
    assert layers.binarization(student_of(run)) == (True, False)


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--model=reactnet_a"], "--init_from: expected a run with --model=reactnet_a"),
        (["--width=0.2"], "--init_from: expected a run with --width=0.2"),
        (["--dataset=cifar10"], "--init_from: expected a run with --channels=3"),
        (["--init_from=/none"], "--init_from: expected a run directory"),
    ],
)
def test_init_from_another_network(flags, text, imported, tmp_path, capfd, data_dir):
    output, place = tmp_path / "out", f"--data_dir={data_dir}"
    status, _, lines = run_main(
        capfd, *TRAIN, place, f"--init_from={imported}", f"--output_dir={output}", *flags
    )
    assert status == 2
    assert len(lines) == 1 and text in lines[0]
    assert not output.exists()


def test_init_from_an_unfinished_run(imported, tmp_path, capfd, data_dir):
    run, output = shutil.copytree(imported, tmp_path / "run"), tmp_path / "out"
    place = f"--data_dir={data_dir}"
    Run(run).weights(2).unlink()
    status, _, lines = run_main(
        capfd, *TRAIN, place, f"--init_from={run}", f"--output_dir={output}"
    )
    assert status == 2
    assert len(lines) == 1 and "expected a run with a finished step" in lines[0]
    assert not output.exists()
