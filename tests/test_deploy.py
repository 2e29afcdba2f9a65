"""docs/deploy.md: its Python and its C++ do what it says.

The C++ is compiled against `tflite_stand_in.h`, which passes what it does on to LCE's interpreter.
"""

import ctypes
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess

import exports
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from larq_compute_engine.tflite.python.interpreter import Interpreter

from larq_adambnn import data, export, layers
from larq_adambnn.export import description, interpreter, selftest

TESTS = pathlib.Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
HEADERS = (
    "larq_compute_engine/tflite/kernels/lce_ops_register.h",
    "tensorflow/lite/interpreter.h",
    "tensorflow/lite/kernels/register.h",
    "tensorflow/lite/model.h",
)
STATISTICS = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PREPARE, ON_ARM, ON_X86, COMPARE = (
    "# What export.json says",
    "# On ARM Linux: through the C++ library",
    "# On x86 and on a Mac: with LCE's wheel",
    "# Two networks to time",
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


PYTHON = {block.splitlines()[0]: block for block in blocks("python")}


def run_block(title, names):
    exec(compile(PYTHON[title], title, "exec"), names)


def test_every_python_block_is_run_here():
    assert list(PYTHON) == [PREPARE, ON_ARM, ON_X86, COMPARE]


def network(seed=0):
    """A binary convolution between real layers, and two outputs."""
    images = tf.keras.Input((32, 32, 3))
    x = tf.keras.layers.Conv2D(32, 3, 4, "same")(images)
    y = layers.BinaryConv2D(32, 3, pad_values=1)(x)
    x = tf.keras.layers.Add()([x, tf.keras.layers.BatchNormalization()(y)])
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    logits = [tf.keras.layers.Dense(size)(x) for size in (10, 3)]
    return exports.randomized(tf.keras.Model(images, logits), seed)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder with build/libclassify.so, made of the page's C++ and the stand-in."""
    folder = tmp_path_factory.mktemp("deployed")
    classify, check = blocks("cpp")
    for header in HEADERS:
        (folder / header).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TESTS / "tflite_stand_in.h", folder / header)
    (folder / "build").mkdir()
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{folder}"]
    for name, code in (("classify", classify), ("check", check)):
        (folder / f"{name}.cc").write_text(code)
        built = folder / "build" / f"lib{name}.so"
        others = [folder / "build" / "libclassify.so"] if name == "check" else []
        subprocess.run(["g++", *options, folder / f"{name}.cc", *others, "-o", built], check=True)
    return folder


@pytest.fixture
def stand_in(library, monkeypatch):
    """Lets the C++ run files with LCE's interpreter."""
    monkeypatch.chdir(library)
    loaded = ctypes.CDLL("build/libclassify.so")
    held = {}  # the network, its inputs and its outputs

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
    def opened(path):
        try:
            held["network"] = network = Interpreter(pathlib.Path(path.decode()).read_bytes())
        except (RuntimeError, ValueError):
            return 0
        loaded.stand_in_clear()
        for output, name in enumerate(("input", "output")):
            shapes, types, scales, zeros = (
                getattr(network, f"{name}_{part}")
                for part in ("shapes", "types", "scales", "zero_points")
            )
            held[name] = [np.zeros(s, t) for s, t in zip(shapes, types, strict=True)]
            for array, scale, zero in zip(held[name], scales, zeros, strict=True):
                loaded.stand_in_tensor(
                    output,
                    {np.dtype("float32"): 1, np.dtype("int8"): 9}[array.dtype],
                    ctypes.c_void_p(array.ctypes.data),
                    ctypes.c_size_t(array.nbytes),
                    ctypes.c_float(scale or 0),
                    zero or 0,
                )
        return 1

    @ctypes.CFUNCTYPE(ctypes.c_int)
    def invoked():
        found = held["network"].interpreter.predict(held["input"])
        for array, values in zip(held["output"], found, strict=True):
            array[...] = values
        return 1

    loaded.stand_in(opened, invoked)
    return opened, invoked  # which must not be collected while the library has them


@pytest.fixture(scope="module")
def another_file():
    """Of a network with the same inputs and outputs."""
    return export.convert(network(1))


def photograph(path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).resize((90, 60), PIL.Image.BICUBIC).save(path)


def deployed(folder, **options):
    """An export in runs/quickstart, as the page has it, and a photograph."""
    run = folder / "runs" / "quickstart"
    run.mkdir(parents=True, exist_ok=True)
    model = network()
    exported = export.export(
        model,
        exports.images(model, 40),
        preparation=data.Preparation(32, "padded", 3, *STATISTICS),
        class_names=[f"class {n}" for n in range(10)],
        **options,
    )
    (run / "model.tflite").write_bytes(exported.tflite)
    (run / "model.selftest.bin").write_bytes(exported.selftest)
    (run / "export.json").write_text(exported.description.to_json())
    photograph(folder / "photo.png")
    return run / "model.tflite", exported


@pytest.mark.parametrize("io_type", ["float", "int8"])
def test_the_programs(io_type, library, stand_in, another_file, capfd):
    """C++ and Python give what LCE's interpreter gives; another file fails the self-test."""
    options = {"int8": True, "io_type": "int8"} if io_type == "int8" else {}
    path, exported = deployed(library, **options)
    names = {}
    run_block(PREPARE, names)
    run_block(ON_ARM, names)
    first = interpreter.run(
        interpreter.load(exported.tflite), names["prepare"]("photo.png")[np.newaxis]
    )
    expected = np.concatenate([output[0] for output in first])
    assert capfd.readouterr().out == f"self-test: pass\nclass {first[0].argmax()}\n"

    address = names["library"].network_open(str(path).encode(), 1)
    names["network"] = address
    np.testing.assert_allclose(names["outputs"](names["prepare"]("photo.png")), expected, rtol=1e-6)
    run_block(ON_X86, names)
    assert capfd.readouterr().out == f"self-test: pass\nclass {first[0].argmax()}\n"

    main = ctypes.CDLL("build/libcheck.so").main

    def check(*files):
        arguments = (ctypes.c_char_p * 3)(b"check", *(str(file).encode() for file in files))
        status = main(3, arguments)
        ctypes.CDLL(None).fflush(None)
        return status, capfd.readouterr()

    test = selftest.path(path)
    assert check(path, test) == (0, ("pass\n", ""))
    path.write_bytes(another_file)
    status, (out, _) = check(path, test)
    assert (status, out[:6]) == (1, "fail: ")
    assert "expected" in selftest.failure(another_file, exported.selftest)
    test.write_bytes(exported.selftest[:-1])
    assert check(path, test)[0] == 2
    path.write_bytes(b"no network")
    assert check(path, test)[0] == 2
    assert check("nowhere.tflite", test)[0] == 2
    none = [names["library"].network_open(str(path).encode(), 1), None]
    assert none == [None, None]
    assert names["library"].network_check(None, b"") == -1
    names["library"].network_close(None)
    for wrong in (np.zeros(5, np.float32), np.zeros((32, 32, 4), np.float32)):
        names["network"] = address
        with pytest.raises(RuntimeError):
            names["outputs"](wrong)
    names["library"].network_close(address)


@pytest.mark.parametrize("crop", ["padded", "random_resized"])
def test_preparation(crop, tmp_path, monkeypatch):
    """An image prepared by the page's function is what the package gives."""
    monkeypatch.chdir(tmp_path)
    preparation = data.Preparation(32, crop, 3, *STATISTICS)
    steps = dataclasses.asdict(description.Preprocessing.of(preparation))
    info = {"file": "model.tflite", "input": {"shape": [1, 32, 32, 3]}, "preprocessing": steps}
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "export.json").write_text(json.dumps(info))
    photograph(tmp_path / "photo.png")
    names = {}
    run_block(PREPARE, names)
    given = names["prepare"]("photo.png")
    expected = preparation.for_inference(tf.io.read_file("photo.png")).numpy()
    assert np.abs(given - expected).max() < 1.1 / 255 / 0.2  # pixels are rounded once or twice


def test_networks_to_time(tmp_path, monkeypatch):
    """The last block, with a small network in the place of each."""
    monkeypatch.chdir(tmp_path)
    built = []

    def build(name, **options):
        built.append((name, options))
        return exports.tiny((32, 32, 3), 10)

    monkeypatch.setattr(exports.models, "build", build)
    run_block(COMPARE, {})
    options = {"input_shape": (224, 224, 3), "num_classes": 1000}
    assert built == [("QuickNetSmall", options), ("reactnet_a", options)]
    for name, _ in built:
        assert export.operators((tmp_path / f"{name}.tflite").read_bytes())["LceBconv2d"] == 2
