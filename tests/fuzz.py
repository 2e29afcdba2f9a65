"""Damaged files of every kind that is read, by the thousand: ``python tests/fuzz.py``.

A mutant is a file that was changed by its bytes (flipped, cut, repeated, inserted) or by its
schema (a valid file of another content), as a function of the seed, its kind and its number.
It has to end in one line of at most 500 characters that names the file, or to work; a raw
error, the end of the process, more than 1 GB or more than 60 seconds of a core is a fault, and
makes the exit status 1.

Processes that are forked after the imports take the mutants in batches, so that one that ends
its process costs no more than the next fork.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))  # freed memory does not count
sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

SECONDS, MEMORY, LINE = 60, 1e9, 500
HANGS = 600  # seconds, on a machine that may be busy with other work
FAULTS = ("raw", "crash", "memory", "time")
NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1)


# Changes by bytes


def by_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice((flip, overwrite, number, cut, remove, repeat, insert))(data, rng)
    return data


def flip(data, rng):
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 4, 16))):
        changed[_place(changed, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data, rng):
    start = _place(data, rng)
    length = rng.choice((1, 4, 16, 256))
    fill = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    return data[:start] + fill + data[start + length :]


def number(data, rng):
    start, size = _place(data, rng), rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) % 256**size
    return data[:start] + value.to_bytes(size, rng.choice(("little", "big"))) + data[start + size :]


def cut(data, rng):
    return data[: _place(data, rng)]


def remove(data, rng):
    start = _place(data, rng)
    return data[:start] + data[start + rng.choice((1, 4, 64, 1024)) :]


def repeat(data, rng):
    start, length = _place(data, rng), rng.choice((1, 4, 64, 1024))
    return data[: start + length] + data[start:]


def insert(data, rng):
    start = _place(data, rng)
    return data[:start] + rng.randbytes(rng.choice((1, 4, 64))) + data[start:]


def _place(data, rng) -> int:
    """A place in the data, in a third of the cases in the first 64 bytes."""
    return rng.randrange(max(1, min(len(data), rng.choice((64, len(data), len(data))))))


# Changes by schema: (data, rng) -> data


def size_of(*places: tuple[int, str]) -> Callable:
    """Puts other sizes to places, in formats of `struct`."""

    def change(data, rng):
        changed = bytearray(data)
        for start, kind in rng.sample(places, rng.randint(1, len(places))):
            value = rng.choice((*NUMBERS, 5000, 13_000, 60_000))
            struct.pack_into(kind, changed, start, value % 256 ** struct.calcsize(kind))
        return bytes(changed)

    return change


def png(data, rng):
    """Another header or other chunks, with the right checksums."""
    chunks, position = [], 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        chunks.append(data[position + 4 : position + 8 + length])
        position += 12 + length
    index = rng.randrange(len(chunks))
    if rng.random() < 0.5:
        header = size_of((4, ">I"), (8, ">I"), (12, ">B"), (13, ">B"), (16, ">B"))
        chunks[0] = header(chunks[0], rng)
    elif rng.random() < 0.5:
        chunks[index] = chunks[index][:4] + by_bytes(chunks[index][4:], rng)
    else:
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(index))
    return data[:8] + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def jpeg(data, rng):
    """Another size, number of components, sampling or table."""
    frame = data.index(b"\xff\xc0")
    places = [(frame + 5, ">H"), (frame + 7, ">H"), *((frame + i, ">B") for i in range(4, 19))]
    return size_of(*places)(data, rng)


def tiff(data, rng):
    """Another value, type or count of one of the first tags."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entry = start + 2 + 12 * rng.randrange(count)
    return size_of((entry, "<H"), (entry + 2, "<H"), (entry + 4, "<I"), (entry + 8, "<I"))(
        data, rng
    )


def tflite(data, rng):
    """Other tensors, operators, buffers, inputs or outputs."""
    import numpy as np

    from larq_adambnn.export.tflite import Graph

    graph = Graph(data)
    tensors, operators = graph.graph.tensors, graph.graph.operators
    anything = rng.choice((-1, 0, len(tensors), len(tensors) + 9, rng.randrange(len(tensors))))
    for _ in range(rng.choice((1, 1, 2))):
        tensor, operator = rng.choice(tensors), rng.choice(operators)
        change = rng.randrange(12)
        if change == 0 and tensor.shape is not None and len(tensor.shape):
            tensor.shape = np.array(tensor.shape)
            tensor.shape[rng.randrange(len(tensor.shape))] = rng.choice((-1, *NUMBERS[:14]))
        elif change == 1:
            tensor.shape = np.array(
                [rng.choice(NUMBERS[:13]) for _ in range(rng.randrange(6))], "i"
            )
        elif change == 2:
            tensor.type = rng.randrange(18)
        elif change == 3:
            tensor.buffer = rng.randrange(len(graph.model.buffers))
        elif change == 4:
            inputs = list(operator.inputs)
            inputs[rng.randrange(len(inputs))] = anything
            operator.inputs = inputs
        elif change == 5:
            operator.inputs = list(operator.inputs)[: rng.randrange(len(operator.inputs) + 1)]
        elif change == 6:
            operator.outputs = rng.choice(([], [anything], list(operator.inputs), [anything] * 2))
        elif change == 7:
            operator.opcodeIndex = rng.randrange(len(graph.model.operatorCodes))
        elif change == 8:
            code = rng.choice(graph.model.operatorCodes)
            code.builtinCode = code.deprecatedBuiltinCode = rng.randrange(126)
        elif change == 9:
            graph.graph.outputs = rng.choice(([], [-1], [anything], list(graph.inputs)))
        elif change == 10:
            graph.graph.inputs = rng.choice(([], [-1], [anything], list(graph.outputs)))
        elif operator.builtinOptions is not None:
            options = vars(operator.builtinOptions)
            for name in options:
                options[name] = (
                    rng.choice((-1, *NUMBERS[:4])) if rng.random() < 0.5 else options[name]
                )
        elif operator.customOptions is not None:
            options = bytes(bytearray(operator.customOptions))
            operator.customOptions = np.frombuffer(flip(options, rng), np.uint8)
        with contextlib.suppress(IndexError):
            operators.insert(rng.randrange(len(operators)), operators[rng.randrange(99)])
    return graph.to_bytes()


def record(data, rng):
    """Another content of one record, with the right checksums."""
    import tensorflow as tf

    records, position = [], 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        records.append(data[position + 12 : position + 12 + length])
        position += length + 16
    index = rng.randrange(len(records))
    change = rng.randrange(4)
    if change == 0:
        records[index] = by_bytes(records[index], rng)
    elif change == 1:
        example = tf.train.Example.FromString(records[index])
        example.features.feature["label"].int64_list.value[:] = [rng.choice((-1, 10, 2**40))]
        records[index] = example.SerializeToString()
    elif change == 2:
        example = tf.train.Example.FromString(records[index])
        del example.features.feature[rng.choice(("image", "label"))]
        records[index] = example.SerializeToString()
    else:
        example = tf.train.Example.FromString(records[index])
        values = example.features.feature["image"].bytes_list.value
        values[0] = png(values[0], rng)
        records[index] = example.SerializeToString()
    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            for content in records:
                writer.write(content)
        return pathlib.Path(file.name).read_bytes()


def _other(value, rng):
    """A value instead of another one in JSON."""
    nested = functools.reduce(lambda inner, _: [inner], range(500), 0)
    numbers = (0, -1, 0.5, 1e308, float("nan"), float("inf"), 2**31, 10**30, 10**400)
    return rng.choice(
        (None, True, "", "x" * 700, "\0\n\ud800", [], {}, [value], {"a": value}, nested, *numbers)
    )


def json_tree(data, rng):
    """Another value somewhere, or something is missing."""
    root = {"": json.loads(data)}
    parent, key = root, ""
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    if rng.random() < 0.25 and parent is not root:
        del parent[key]
    else:
        parent[key] = _other(parent[key], rng)
    return json.dumps(root[""], indent=1).encode()


def lines(data, rng):
    """Another value, name or order of the lines of a text file."""
    rows = data.decode().splitlines()
    index = rng.randrange(len(rows))
    separator = "=" if "=" in rows[index] else ","
    parts = rows[index].split(separator)
    change = rng.randrange(5)
    if change < 3:
        values = ("", "-1", "nan", "1e999", "9" * 40, "x" * 600, "\udcff", "a,b", '"', "[1", "\0")
        parts[rng.randrange(len(parts))] = rng.choice(values)
        rows[index] = separator.join(parts)
    elif change == 3:
        rows.insert(rng.randrange(len(rows)), rng.choice((rows[index], "--", "--nothing=1", "é,")))
    else:
        del rows[index]
    return "\n".join(rows).encode(errors="surrogateescape")


def _arrays(arrays: dict, rng) -> None:
    """Changes an array of several."""
    import numpy as np

    name = rng.choice(list(arrays))
    array = arrays[name]
    change = rng.randrange(6)
    if change == 0:
        del arrays[name]
    elif change == 1:
        arrays["another"] = arrays.pop(name)
    elif change == 2:
        arrays[name] = np.zeros(rng.choice(((), (0,), (3, 5), (*array.shape, 2))), array.dtype)
    elif change == 3:
        arrays[name] = array.astype(rng.choice(("float16", "float64", "int8", "complex64", "bool")))
    elif change == 4:
        arrays[name] = np.full_like(array, np.nan) if array.dtype.kind == "f" else array[..., :0]
    else:
        arrays[name] = array.reshape(-1)[::-1].copy()


def npz(data, rng):
    """Other arrays."""
    import numpy as np

    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    _arrays(arrays, rng)
    result = io.BytesIO()
    rng.choice((np.savez, np.savez, np.savez_compressed))(result, **arrays)
    return result.getvalue()


def h5(data, rng):
    """Another array or attribute, or a group is missing."""
    import h5py
    import numpy as np

    result = io.BytesIO(data)
    with h5py.File(result, "r+") as file:
        names = []
        file.visit(names.append)
        item = file[rng.choice(names)]
        change = rng.randrange(4)
        if change == 0:
            del file[item.name]
        elif change == 1 and item.attrs:
            name = rng.choice(list(item.attrs))
            item.attrs[name] = rng.choice((0, "x", np.zeros(3), np.array([b"a", b"b"])))
        elif isinstance(item, h5py.Dataset):
            shape, kind = rng.choice(((), (0,), (3, 5), item.shape)), rng.choice("fiSd")
            parent, name = item.parent, item.name
            del file[name]
            parent.create_dataset(name, data=np.full(shape, np.nan).astype(kind, casting="unsafe"))
        else:
            del file.attrs[rng.choice(list(file.attrs))]
    return result.getvalue()


def pth(data, rng):
    """Other tensors or other things beside them."""
    import torch

    content = torch.load(io.BytesIO(data), weights_only=True)
    arrays = {name: tensor.numpy() for name, tensor in content.items()}
    _arrays(arrays, rng)
    content = {name: torch.from_numpy(array) for name, array in arrays.items()}
    name = rng.choice(list(content))
    content[name] = rng.choice(
        (content[name], content[name], content[name].to_sparse(), argparse.Namespace(), [1], None)
        if content[name].ndim
        else (content[name],)
    )
    result = io.BytesIO()
    torch.save(rng.choice((content, {"state_dict": content}, {"model": [content]})), result)
    return result.getvalue()


def safetensors(data, rng):
    """Another header."""
    (length,) = struct.unpack_from("<Q", data)
    header = json_tree(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


# What is done with a file: the status and the lines of the command line, or of the library


def command(*arguments) -> tuple[int, str]:
    from larq_adambnn import commands

    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        status = commands.main(list(map(str, arguments)))
    return status, err.getvalue()


def library(function: Callable) -> tuple[int, str]:
    """What `commands.main` makes of a call."""
    from larq_adambnn import data
    from larq_adambnn.errors import UsageError

    try:
        function()
    except UsageError as error:
        return 2, f"error: {error}\n"
    except Exception as error:
        line = data.bad_example(error)
        if not line:
            traceback.print_exc(file=sys.__stderr__)
        return (2, f"error: {line}\n") if line else (1, f"{type(error).__name__}: {error}\n")
    return 0, ""


@functools.cache
def _classifier():
    import tensorflow as tf

    from larq_adambnn.data import Preparation

    layers = [tf.keras.layers.GlobalAveragePooling2D(), tf.keras.layers.Dense(2)]
    return tf.keras.Sequential([tf.keras.Input((32, 32, 3)), *layers]), Preparation(
        32, "random_resized", 3, (0.5,) * 3, (0.5,) * 3
    )


def use_image(path):
    from larq_adambnn import inference

    network, preparation = _classifier()
    return library(lambda: inference.classify(network, [path], preparation, ("a", "b")))


def use_data(name):
    """Checks and reads a data set."""

    def use(path):
        from larq_adambnn import data
        from larq_adambnn.data import check

        def read():
            dataset = data.load(name, path.parents[_DEPTH[name]], image_size=32, batch_size=64)
            source = dataset.source("test")
            problems = check.defects(source, "test")[0]
            left = source.without([problem.index for problem in problems])
            assert len(problems) <= 48, f"{len(problems)} problems"  # three times 16 flipped bits
            dataclasses.replace(dataset, open_split=lambda _: (left, ())).examples(
                len(left), "test"
            )
            list(dataset.evaluation("test"))

        status, line = library(read)
        return status, line.replace("digits test example", f"{path} example")

    return use


_DEPTH = {"idx": 0, "digits": 2}


@functools.cache
def _digits(directory):
    from larq_adambnn import data

    return data.load("digits:train[:9]", directory, image_size=32, batch_size=8, crop="padded")


def use_tflite(path):
    from larq_adambnn import inference
    from larq_adambnn.commands import evaluate
    from larq_adambnn.export.tflite import Graph

    def run():
        dataset = _digits(path.parents[1] / "tfds")
        tflite, _ = evaluate.read_tflite(path)
        evaluate.check_fits(tflite, path, dataset.input_shape, dataset.class_names, "the digits")
        with evaluate.naming(path, ValueError):
            inference.evaluate(tflite, dataset, "train[:9]")
            Graph(tflite.tflite)

    return library(run)


def use_run(*arguments):
    """Predicts by the run that the file belongs to, or what else is to be done."""

    def use(path):
        run = next(parent for parent in path.parents if (parent / "flags.cfg").is_file())
        known = {"run": run, "images": run.parent / "image.png"}
        return command(*(argument.format(**known) for argument in arguments))

    return use


def use_resume(path):
    run = path.parents[1]
    arguments = (run / "arguments").read_text().splitlines()
    (run / "arguments").unlink()
    path.rename(path.with_name(f"{path.name.split('-')[0]}-{_sum(path)}.npz"))
    return command(*arguments)


def _sum(path) -> str:
    from larq_adambnn.files import sha256

    return sha256(path)[:32]


@functools.cache
def _reactnet():
    from larq_adambnn import models

    return models.build("reactnet18", input_shape=(32, 32, 3), num_classes=3, width=0.25)


def use_torch(path):
    from larq_adambnn import checkpoints
    from larq_adambnn.errors import UsageError

    def read():
        try:
            state_dict = checkpoints.load_torch(path)
            checkpoints.load_state_dict(_reactnet(), state_dict)
        except (ImportError, OSError, ValueError) as error:  # as --mode=import does
            raise UsageError(f"--source: {path} {error}") from error

    return library(read)


# The kinds: how many in a hundred, the file, how its schema is changed, what is done with it, and
# how many mutants a process takes (a training leaves 20 MB of memory taken, an analysis 10)


@dataclasses.dataclass(frozen=True)
class Kind:
    share: int
    file: str
    schema: Callable
    use: Callable
    batch: int = 40


def _image(suffix, schema):
    return Kind(6, f"images/image.{suffix}", schema, use_image)


PREDICT = ("--mode=predict", "--images={images}")
KINDS = {
    "jpeg": _image("jpeg", jpeg),
    "png": _image("png", png),
    "webp": _image("webp", size_of((21, "<I"), (16, "<I"), (4, "<I"))),
    "tiff": _image("tiff", tiff),
    "gif": _image("gif", size_of((6, "<H"), (8, "<H"), (10, "<B"))),
    "bmp": _image("bmp", size_of((18, "<I"), (22, "<I"), (28, "<H"), (30, "<I"), (46, "<I"))),
    "idx": Kind(
        5,
        "idx/t10k-images-idx3-ubyte",
        size_of(*((4 * i, ">I") for i in range(4))),
        use_data("idx"),
    ),
    "tfrecord": Kind(
        8, "tfds/digits/1.0.0/digits-test.tfrecord-00000-of-00001", record, use_data("digits")
    ),
    "tflite": Kind(18, "tflite/model.tflite", tflite, use_tflite),
    "npz": Kind(4, "trained/checkpoints/*.npz", npz, use_resume, batch=1),
    "h5": Kind(6, "run/checkpoints/step2.weights.h5", h5, use_run(*PREDICT, "--run={run}")),
    "pth": Kind(6, "torch/weights.pth", pth, use_torch),
    "safetensors": Kind(5, "torch/weights.safetensors", safetensors, use_torch),
    "flags": Kind(4, "run/flags.cfg", lines, use_run(*PREDICT, "--run={run}")),
    "export": Kind(
        5, "run/export.json", json_tree, use_run(*PREDICT, "--tflite={run}/model.tflite")
    ),
    "metrics": Kind(
        3,
        "run/metrics.csv",
        lines,
        use_run("--mode=analyze", "--resolution=3", "--run={run}"),
        batch=1,
    ),
}


def prepare(folder: pathlib.Path) -> None:
    """Writes a whole file of each kind."""
    import exports
    import numpy as np
    import PIL.Image
    import torch
    from safetensors.numpy import save_file

    from larq_adambnn import checkpoints, commands, data, models

    for name in ("images", "idx", "tflite", "torch"):
        (folder / name).mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image = PIL.Image.fromarray(pixels // 32 * 8 + 90)
    for suffix in ("jpeg", "png", "webp", "tiff", "gif", "bmp"):
        options = {"lossless": True} if suffix == "webp" else {}
        image.save(folder / f"images/image.{suffix}", **options)
    for prefix, count in (("train", 96), ("t10k", 64)):
        shape = (count, 32, 32)
        for kind, array in (("images", pixels), ("labels", np.arange(10))):
            sizes = shape if kind == "images" else shape[:1]
            content = np.resize(array, sizes).astype(np.uint8).tobytes()
            header = struct.pack(f">I{len(sizes)}I", 0x800 + len(sizes), *sizes)
            (folder / f"idx/{prefix}-{kind}-idx{len(sizes)}-ubyte").write_bytes(header + content)
    data.load("digits", folder / "tfds").source("test")
    models._NETWORKS["reactnet18"], own = exports.tiny, models._NETWORKS["reactnet18"]
    flags = ["--dataset=digits", f"--data_dir={folder}/tfds", "--model=reactnet18"]
    exports.make_run(folder / "run", *flags)
    metrics = (
        "step,epoch,loss,accuracy,val_loss,val_accuracy,seconds\n1,1,2,.5,2,.5,9\n2,1,2,.5,2,.5,9\n"
    )
    (folder / "run/metrics.csv").write_text(metrics)
    image.convert("L").save(folder / "image.png")
    assert commands.main(["--mode=export", f"--run={folder}/run", "--check_images=5"]) == 0
    shutil.copy(folder / "run/model.tflite", folder / "tflite")
    flags += ["--image_size=32", "--train_images=256", "--epochs=1", "--noexport", "--crop=padded"]
    flags += ["--batch_size=128", f"--output_dir={folder}/trained", "--loss=cross_entropy"]
    assert commands.main(flags) == 0
    (folder / "trained/checkpoints/step2.weights.h5").unlink()
    (folder / "trained/arguments").write_text("\n".join(flags))
    models._NETWORKS["reactnet18"] = own
    state_dict = checkpoints.to_state_dict(_reactnet())
    torch.save(
        {k: torch.from_numpy(v) for k, v in state_dict.items()}, folder / "torch/weights.pth"
    )
    save_file(state_dict, folder / "torch/weights.safetensors")


def _prepare_quietly(folder: pathlib.Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(folder)


def mutant(kind: str, number: int, seed: int, whole: bytes) -> bytes:
    rng = random.Random(f"{seed} {kind} {number}")
    if number % 2:
        return by_bytes(whole, rng)
    with contextlib.suppress(Exception):  # a library refuses to write it
        return KINDS[kind].schema(whole, rng)
    return by_bytes(whole, rng)


def judge(status: int, text: str, name: str) -> tuple[str, str]:
    """(ok, refused or raw, the line)."""
    if status == 0:
        return "ok", ""
    line = text.rstrip("\n").rpartition("\n")[2]
    good = status == 2 and line.startswith("error: ") and len(line) <= LINE + 100
    printable = "\n" not in text.strip() and all(character.isprintable() for character in line)
    if good and printable and name in line:
        return "refused", line
    return "raw", f"status {status}: {text.strip()[-700:]}"


def run_batch(kind: str, numbers: list[int], seed: int, folder: pathlib.Path, results: int):
    """Tries mutants one after the other, and writes a line of JSON about each."""
    import exports

    from larq_adambnn import models

    if kind not in ("pth", "safetensors"):
        models._NETWORKS["reactnet18"] = exports.tiny
    original = max(folder.glob(KINDS[kind].file))  # the newest of the checkpoints
    top = folder / original.relative_to(folder).parts[0]
    whole = original.read_bytes()
    for number in numbers:
        os.write(results, f"{number}\n".encode())
        with tempfile.TemporaryDirectory(dir=folder) as place:
            place = pathlib.Path(place)
            for name in (top.name, "image.png"):
                copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
                copy(folder / name, place / name)
            if kind == "tflite":
                (place / "tfds").symlink_to(folder / "tfds")
            path = place / original.relative_to(folder)
            if kind == "npz":
                (place / "trained/flags.cfg").write_text(
                    (place / "trained/flags.cfg").read_text().replace(f"{top}", f"{place}/trained")
                )
                arguments = place / "trained/arguments"
                arguments.write_text(arguments.read_text().replace(f"{top}", f"{place}/trained"))
            path.write_bytes(mutant(kind, number, seed, whole))
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            start = _work()
            status, text = KINDS[kind].use(path)
            name = path.name if kind not in ("idx", "npz", "h5", "flags", "metrics") else str(place)
            outcome, line = judge(status, text, name)
            memory = max(_peak(), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
            if memory > MEMORY and outcome in ("ok", "refused"):
                outcome = "memory"
            answer = [outcome, line.replace(str(place), "PLACE"), memory, _work() - start]
            os.write(results, (json.dumps(answer) + "\n").encode())


def _work() -> float:
    """Seconds that cores have worked for this process and for those that it began."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak() -> int:
    """Most bytes that this process took since the last mutant."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forked(function: Callable, *arguments) -> int:
    """A process that calls a function; its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        os.setpgid(0, 0)
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def tried(kind: str, numbers: list[int], seed: int, folder: pathlib.Path):
    """Yields (number, [outcome, line, bytes, seconds]) for each mutant."""
    while numbers:
        reader, writer = os.pipe()
        child = forked(run_batch, kind, numbers[: KINDS[kind].batch], seed, folder, writer)
        os.close(writer)
        buffer, current = b"", None
        while True:
            ready = select.select([reader], [], [], HANGS)[0]
            if not ready:
                os.killpg(child, signal.SIGKILL)
            chunk = os.read(reader, 65536) if ready else b""
            buffer += chunk
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                answer = json.loads(line)
                if isinstance(answer, int):
                    current = answer
                    continue
                if answer[3] > SECONDS:
                    answer[0] = "time"
                yield current, answer
                numbers = [number for number in numbers if number != current]
                current = None
            if not chunk:
                break
        os.close(reader)
        _, status = os.waitpid(child, 0)
        if current is not None:
            outcome = "crash" if ready else "time"
            end = os.waitstatus_to_exitcode(status)
            yield current, [outcome, f"the process ended with {end}", 0, 0.0]
            numbers = [number for number in numbers if number != current]
        elif status:
            raise RuntimeError(f"{kind}: a batch could not be tried")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="", help="kinds with commas between, or one mutant as KIND:NUMBER"
    )
    options = parser.parse_args(arguments)
    only, _, one = options.only.partition(":")

    import h5py  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import tensorflow as tf
    import tensorflow_datasets  # noqa: F401

    import larq_adambnn.commands.predict
    import larq_adambnn.runs.training  # noqa: F401

    tf.get_logger().setLevel("ERROR")
    start, totals, faults = time.monotonic(), collections.Counter(), 0
    print(f"{'kind':12} mutants " + " ".join(f"{name:>8}" for name in ("ok", "refused", *FAULTS)))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        child = forked(_prepare_quietly, folder)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("the files could not be prepared")
        shares = sum(kind.share for kind in KINDS.values())
        for name, kind in KINDS.items():
            if only and name not in only.split(","):
                continue
            numbers = list(range(max(1, options.mutants * kind.share // shares)))
            counts, most, longest = collections.Counter(), 0, 0.0
            for number, (outcome, line, memory, seconds) in tried(
                name, [int(one)] if one else numbers, options.seed, folder
            ):
                counts[outcome] += 1
                most, longest = max(most, memory), max(longest, seconds)
                if outcome in FAULTS or one:
                    print(f"  {name}:{number} {outcome} {memory / 1e6:.0f} MB: {line}", flush=True)
            totals.update(counts)
            faults += sum(counts[fault] for fault in FAULTS)
            row = " ".join(f"{counts[column]:8}" for column in ("ok", "refused", *FAULTS))
            print(
                f"{name:12} {counts.total():7} {row}  at most {most / 1e6:.0f} MB, "
                f"{longest:.1f} s; {time.monotonic() - start:.0f} s so far",
                flush=True,
            )
    row = " ".join(f"{totals[column]:8}" for column in ("ok", "refused", *FAULTS))
    print(f"{'all':12} {totals.total():7} {row}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
