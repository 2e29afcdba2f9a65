"""Estimated times: what a file computes, the fit, the published times, a board of one's own."""

import pathlib

import exports
import numpy as np
import pytest
import tensorflow as tf

import main
from larq_adambnn import export, layers, models
from larq_adambnn.export import device_times
from larq_adambnn.export.device_profile import read_device
from larq_adambnn.export.device_times import features, fit, operator_work, work
from larq_adambnn.export.layer_work import layer_work
from larq_adambnn.export.tflite import Graph

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "device_times.md"
# Milliseconds of a binary MAC, a real MAC, a byte and an operator: of no device, so slow that the
# tool's three decimals suffice for the small network
COSTS = np.array([2e-5, 4e-4, 3e-4, 5.0])


@pytest.fixture(scope="module")
def model():
    """8 x 8 x 3 -> 1 x 1 conv to 40 -> 3 x 3 binary conv to 48, stride 2 -> classifier of 4."""
    images = tf.keras.Input((8, 8, 3), name="images")
    x = tf.keras.layers.Conv2D(40, 1, name="stem")(images)
    x = layers.BinaryConv2D(48, 3, strides=2, pad_values=1, name="conv")(x)
    x = tf.keras.layers.BatchNormalization(name="bn")(x)
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return exports.randomized(
        tf.keras.Model(images, tf.keras.layers.Dense(4, name="classifier")(x), name="network")
    )


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("timed") / "model.tflite"
    path.write_bytes(export.convert(model))
    return path


def row(count, binary_macs=0, float_macs=0, int8_macs=0, bytes=0):
    values = count, binary_macs, float_macs, int8_macs, bytes
    return dict(zip(device_times.COUNTS, values, strict=True))


BINARY, STEM = 4 * 4 * 9 * 40 * 48, 8 * 8 * 3 * 40
PACKED = 8 * 8 * 2 * 4  # 40 signs in two words


def test_the_work_of_a_file_against_a_count_by_hand(model, file):
    sums = work(Graph(file.read_bytes()))
    assert sums["CONV_2D"] == row(1, 0, STEM, 0, 4 * 8 * 8 * (3 + 40))
    assert sums["LceQuantize"] == row(1, bytes=4 * 8 * 8 * 40 + PACKED)
    assert sums["LceBconv2d"] == row(1, BINARY, bytes=PACKED + 4 * 4 * 4 * 48)
    assert sums["FULLY_CONNECTED"] == row(1, 0, 48 * 4, 0, 4 * (48 + 4))
    counted = device_times.complexity(sums)
    assert counted == models.complexity(model)
    # PokeBNN's measure: a bit times a bit, and 16 times 16 bits for what is real
    assert counted.ace == BINARY + 256 * (STEM + 48 * 4)


def test_the_work_of_an_int8_file(model):
    exported = export.export(model, exports.images(model, 8), int8=True)
    sums = work(Graph(exported.tflite))
    assert sums["CONV_2D"] == row(1, 0, 0, STEM, 8 * 8 * (3 + 40))
    assert sums["LceQuantize"] == row(1, bytes=8 * 8 * 40 + PACKED)
    counted = device_times.complexity(sums)
    assert counted.ace == BINARY + 64 * (STEM + 48 * 4)
    assert exported.description.complexity == counted
    # An int8 MAC takes the time of 1 / 1.8 float MACs
    assert features(sums.values())[1] == pytest.approx((STEM + 48 * 4) / 1.8)
    assert exported.description.estimates == device_times.estimates(sums)


def test_the_fit_finds_the_costs():
    random = np.random.default_rng(0)
    matrix = random.uniform(size=(9, 4)) * [5e9, 2e8, 1e8, 2e4]
    for costs in (COSTS, COSTS * [1, 1, 0, 1]):
        np.testing.assert_allclose(fit(matrix, matrix @ costs), costs, rtol=1e-6, atol=1e-15)
    # Where the least squares are below zero it is 0, and the others are as without it.
    times = matrix @ (COSTS * [1, 1, -0.1, 1])
    found = fit(matrix, times)
    scaled = matrix[:, [0, 1, 3]] / times[:, np.newaxis]
    others = np.linalg.lstsq(scaled / scaled.max(0), np.ones(9), rcond=None)[0] / scaled.max(0)
    np.testing.assert_allclose(found, np.insert(others, 2, 0), rtol=1e-6, atol=1e-15)


def test_the_published_times_by_leave_one_out_are_those_of_the_documents():
    text = DOCS.read_text(encoding="utf-8")
    for device in device_times.published_devices():
        pairs = device_times.leave_one_out(device.name)
        errors = [estimate / time - 1 for time, estimate in pairs.values()]
        assert device.error == np.median(np.abs(errors))
        for (name, (time, estimate)), error in zip(pairs.items(), errors, strict=True):
            line = f"| {device.name} | {name} | {time} | {estimate:.1f} | {100 * error:+.0f} % |"
            assert line in text
        assert f"| {device.name} | median | | | {100 * device.error:.0f} % |" in text


def test_a_fit_without_a_network_does_not_know_its_time(monkeypatch):
    milliseconds, networks = device_times.published()
    before = {name: device_times.leave_one_out(name) for name in milliseconds}
    wrong = {d: times | {"QuickNet": 1e3} for d, times in milliseconds.items()}
    monkeypatch.setattr(device_times, "published", lambda: (wrong, networks))
    for device, pairs in before.items():
        assert device_times.leave_one_out(device)["QuickNet"][1] == pairs["QuickNet"][1]
        assert device_times.leave_one_out(device)["QuickNetLarge"][1] != pairs["QuickNetLarge"][1]


def test_the_estimate_of_layers_is_near_that_of_the_file(model, file):
    """ReActNet-18's is in `test_doctor`."""
    of_layers, of_file = layer_work(model), work(Graph(file.read_bytes()))
    ours, theirs = (features(sums.values()) for sums in (of_layers, of_file))
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-12)
    np.testing.assert_allclose(ours[2:], theirs[2:], rtol=0.1)


def printed(path, costs=COSTS, *, csv=False, start=False, delegated=(), threads=4):
    """What the tool prints of a file, or writes as CSV, on a board with these costs."""
    graph = Graph(path.read_bytes())
    rows, rest = [], 0.0
    for index, operator in enumerate(graph.operators):
        milliseconds = features([operator_work(graph, operator)]) @ costs
        if operator.kind in delegated:
            rest += milliseconds
        else:
            name = graph.name(operator.outputs[0]) or "model/a, model/b;c"
            rows.append((operator.kind, milliseconds, 1, f"[{name}]:{index}"))
    if rest:  # in two parts, the second of two calls
        count = len(graph.operators)
        rows.append(("TfLiteXNNPackDelegate", rest / 2, 1, f"[{name}]:{count}"))
        rows.append(("Fully Connected (NC, F32) GEMM", rest / 4, 2, "Delegate/Fully:3"))
    lines = [] if csv else [f"Graph: [/data/local/tmp/{path.name}]", f"Num threads: [{threads}]"]
    titles = [
        ("Profiling Info for Benchmark Initialization:", [("AllocateTensors", 1e6, 1, "All/0")]),
        ("Operator-wise Profiling Info for Regular Benchmark Runs:", rows),
    ]
    for title, table in titles:
        for part in ("Run Order", "Top by Computation Time"):
            lines += [title] if part == "Run Order" else []
            lines += [f"{30 * '='} {part} {30 * '='}", _header(csv, start)]
            lines += [_line(entry, csv, start) for entry in table]
            lines += [""]
        lines += ["Timings (microseconds): count=50 first=9 curr=9 min=9 max=9 avg=9 std=0", ""]
    return "\n".join(lines)


def _header(csv, start):
    if csv:
        names = ["node type", "start", "first", "avg_ms", "%", "cdf%", "mem KB", "times called"]
        return ", ".join(name for name in [*names, "name"] if start or name != "start")
    names = ["node type", "start", "first", "avg ms", "%", "cdf%", "mem KB", "times called"]
    return "\t" + "\t".join(f"[{name}]" for name in [*names, "Name"] if start or name != "start")


def _line(entry, csv, start):
    kind, milliseconds, calls, name = entry
    numbers = [0.1] * start + [9.9, milliseconds, 3.25, 50.5, 0.0, calls]
    if csv:
        texts = [f"{number:g}" for number in numbers]
        texts[-4] += "%"
        texts[-3] += "%"
        return ", ".join([kind, *texts, name.replace(",", "\t")])
    texts = [f"{number:9.3f}" for number in numbers[:-1]] + [f"{calls:9}"]
    texts[-4] += "%"
    texts[-3] += "%"
    return "\t" + "\t".join([f"{kind:>24}", *texts]) + f"\t{name}"


REAL = ("CONV_2D", "FULLY_CONNECTED", "MEAN", "AVERAGE_POOL_2D", "RESHAPE")


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-3),
        ({"start": True}, 1e-3),
        ({"csv": True}, 1e-3),
        ({"csv": True, "start": True}, 1e-3),
        ({"delegated": REAL}, 0.1),
        ({"delegated": REAL, "csv": True}, 0.1),
    ],
)
def test_a_board_is_fitted_to_what_was_printed_on_it(file, options, tolerance):
    path = file.with_name("board.txt") if "csv" not in options else file.with_suffix(".csv")
    path.write_text(printed(file, **options))
    board = read_device(path)
    assert board.name == ("model.csv" if "csv" in options else "board.txt, 4 threads")
    counted = features(work(Graph(file.read_bytes())).values())
    assert counted @ board.costs == pytest.approx(counted @ COSTS, rel=tolerance / 10)
    if tolerance < 0.01:
        np.testing.assert_allclose(board.costs, COSTS, rtol=tolerance)
    assert board.error < 0.01


def damaged(text):
    lines = text.splitlines()
    index = next(i for i, line in enumerate(lines) if "LceBconv2d" in line)
    return {
        "another program's": ("hello\n", "it has no table of operators"),
        "empty": ("", "it has no table of operators"),
        "only the initialization": (
            text[: text.index("Operator-wise")],
            "it has no table of operators",
        ),
        "a row cut": ("\n".join([*lines[:index], lines[index][:40]]), "row 'LceBconv2d"),
        "no number": (text.replace("3.250%", "abc%"), "is damaged"),
        "rows missing": ("\n".join(lines[: index + 1]), "not all: 2 operators more"),
        "another file's": (text.replace("LceQuantize", "LceDequantize"), "operator 1 is LceQ"),
        "more operators": (text.replace("]:3", "]:33"), "operator 33 is not there"),
        "negative": (text.replace("\t    5", "\t   -5"), "has no time"),
    }


@pytest.mark.parametrize("kind", damaged("\tLceBconv2d\nOperator-wise"))
def test_what_is_no_profile_is_one_line(file, tmp_path, capsys, kind):
    text, reason = damaged(printed(file))[kind]
    path = file.with_name("damaged.txt")
    path.write_text(text)
    assert main.main(["--mode=summary", f"--tflite={file}", f"--device_profile={path}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --device_profile: expected what LCE's benchmark tool prints")
    assert reason in err
    assert err.count("\n") == 1


def test_the_summary_of_a_file_and_of_a_network(file, tmp_path, capsys):
    board = tmp_path / "board.txt"
    board.write_text(printed(file))
    assert main.main(["--mode=summary", f"--tflite={file}", f"--device_profile={board}"]) == 0
    out = capsys.readouterr().out
    assert f"| LceBconv2d | 1 | {BINARY:,} | 0 | 0 | 3,584 |" in out
    assert "ACE" in out
    assert "| board.txt, 4 threads |" in out
    assert "Pixel" not in out
    network = ["--mode=summary", "--dataset=digits", "--model=reactnet18", "--image_size=32"]
    assert main.main([*network, f"--device_profile={board}"]) == 2
    assert "expected model.tflite, which it timed, beside it" in capsys.readouterr().err
    assert main.main(network) == 0
    out = capsys.readouterr().out
    for device in ("Raspberry Pi 4B", "Pixel 1"):
        for threads in ("1 thread", "4 threads"):
            assert f"| {device}, {threads} |" in out
    assert "estimate" in out
