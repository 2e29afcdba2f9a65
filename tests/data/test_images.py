"""Decoding: what Pillow reads, from any format, and why a file cannot be decoded."""

import functools
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from photographs import crops, encoded, opened, photograph

from larq_adambnn.data import Preparation, from_files, images


def decode(data, channels=3, window=(0, 0, 0, 0)):
    """Inside a tf.data pipeline, as training does; the window (0, 0, 0, 0) is the whole image."""
    pixels, shape = decoder(channels, images._LARGE)(data, window)
    return pixels.numpy(), tuple(shape.numpy())


@functools.cache
def decoder(channels, large):
    @tf.function(input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec((4,), tf.int32)])
    def decoded(data, window):
        def part(value):
            return images.decode(
                value,
                channels,
                lambda height, width: tf.where(window[2] > 0, window, [0, 0, height, width]),
            )

        return tf.data.Dataset.from_tensors(data).map(part).get_single_element()

    return decoded


JPEGS = {
    "4:2:0": {"quality": 75},
    "4:4:4": {"quality": 95, "subsampling": 0},
    "progressive": {"quality": 90, "progressive": True},
    "optimized": {"quality": 40, "optimize": True},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_is_what_pillow_reads_and_a_window_is_a_part_of_it(kind):
    for index, image in enumerate(crops(4, seed=1)):
        data = encoded(image, **JPEGS[kind])
        expected = opened(data)
        pixels, shape = decode(data)
        assert shape == expected.shape[:2]
        np.testing.assert_array_equal(pixels, expected)  # one library decodes for both
        top, left = expected.shape[0] // 3 + index, expected.shape[1] // 4
        height, width = expected.shape[0] // 2, expected.shape[1] // 3
        pixels, shape = decode(data, window=(top, left, height, width))
        assert shape == expected.shape[:2]
        difference = np.abs(pixels.astype(int) - expected[top : top + height, left : left + width])
        # libjpeg interpolates the colours of the outer columns without their neighbours
        assert difference.max() <= 10
        assert difference[:, 1:-1].max() == 0


def test_cmyk_jpeg_is_converted_as_pillow_does():
    data = encoded(photograph("flower").resize((93, 71)).convert("CMYK"))
    for window in ((0, 0, 71, 93), (11, 5, 40, 60)):
        for channels, mode in MODES.items():
            pixels, _ = decode(data, channels, window)
            top, left, height, width = window
            expected = opened(data, mode)[top : top + height, left : left + width]
            # both compute ink * black / 255, one rounds and one cuts off
            assert np.abs(pixels.astype(int) - expected).max() <= 1


MODES = {1: "L", 3: "RGB"}
KINDS = {
    "JPEG": ("RGB", "L"),
    "PNG": ("RGB", "L", "P", "RGBA", "LA", "1"),
    "BMP": ("RGB", "L", "P"),
    "GIF": ("P", "L"),
    "PPM": ("RGB", "L"),
    "TIFF": ("RGB", "L", "CMYK", "RGBA", "LA", "P"),
    "WEBP": ("RGB", "RGBA"),
}


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in KINDS.items() for mode in modes]
)
def test_every_kind_and_mode_is_what_pillow_converts_to(kind, mode, channels):
    image = photograph("flower").resize((57, 33)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(PIL.Image.linear_gradient("L").resize(image.size))
    options = {("PNG", "P"): {"transparency": 3}, ("JPEG", "RGB"): {"subsampling": 0}}
    data = encoded(image, kind, **options.get((kind, mode), {}))
    pixels, shape = decode(data, channels, (0, 7, 33, 31))
    assert shape == (33, 57)
    np.testing.assert_array_equal(pixels, opened(data, MODES[channels])[:, 7:38])
    assert images.defect(data, channels) == ""


def test_decoded_pixels_are_converted_as_pillow_does():
    colours = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    grey = np.asarray(PIL.Image.fromarray(colours).convert("L"))[..., np.newaxis]
    np.testing.assert_array_equal(images.convert(tf.constant(colours), 1), grey)
    floats = tf.constant(colours, tf.float32) / 255
    assert np.abs(images.convert(floats, 1) * 255 - grey).max() <= 0.5 + 1e-4  # its rounding
    for pixels in (colours, grey, floats):
        same = images.convert(tf.constant(pixels), pixels.shape[-1])
        np.testing.assert_array_equal(same, pixels)
    np.testing.assert_array_equal(images.convert(tf.constant(grey), 3), np.repeat(grey, 3, -1))


@pytest.mark.parametrize("size", [(1, 1), (10_000, 30), (30, 10_000), (1, 500)])
def test_any_shape(size):
    for kind in ("JPEG", "PNG"):
        data = encoded(photograph("china").resize(size), kind)
        np.testing.assert_array_equal(decode(data)[0], opened(data))


def test_rotation_in_exif_is_noticed_and_not_applied():
    image, exif = photograph("china").resize((60, 40)), PIL.Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, exif=exif)
    assert images.rotation(data) == 6
    assert images.rotation(encoded(image)) == 1
    np.testing.assert_array_equal(decode(data)[0], decode(encoded(image))[0])


def test_bytes_after_the_end_of_a_jpeg_do_not_matter():
    data = encoded(photograph("china").resize((60, 40)))
    np.testing.assert_array_equal(decode(data + b"appended")[0], opened(data))
    assert images.defect(data + b"appended") == ""


def png_of(width, height):
    """A PNG of a few bytes that claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    body = b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_of(width, height):
    data = bytearray(encoded(photograph("china").resize((64, 64))))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


JPEG = encoded(photograph("china").resize((160, 120)))
DAMAGED = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "text": (b"hello, this is text", "is not an image: it begins with b'hello"),
    "one byte": (b"\xff", "is not an image"),
    "truncated": (JPEG[: len(JPEG) // 2], "truncated"),
    "last byte lost": (JPEG[:-1], "truncated"),
    "tables lost": (JPEG[:2] + JPEG[-200:], "."),
    "truncated PNG": (encoded(photograph("china").resize((99, 99)), "PNG")[:900], "truncated"),
    "PNG of 60,000 x 60,000": (png_of(60_000, 60_000), "claims more than 67,108,864 pixels"),
    "JPEG of 60,000 x 60,000": (jpeg_of(60_000, 60_000), "claims more than 67,108,864 pixels"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_fail_and_the_reason_is_one_line(name):
    data, reason = DAMAGED[name]
    with pytest.raises(tf.errors.OpError):
        decode(data)
    found = images.defect(data)
    assert "\n" not in found
    assert re.search(reason, found), found


def test_whole_files_have_no_defect():
    for image in crops(4, seed=3):
        for kind in ("JPEG", "PNG", "WEBP"):
            assert images.defect(encoded(image, kind)) == ""


def test_every_cut_of_a_jpeg_is_noticed():
    # the crop lies above the cut: only the missing end can tell
    data = encoded(photograph("flower").resize((80, 60)))
    decode(data, window=(0, 0, 8, 8))
    for end in range(2, len(data), 37):
        with pytest.raises(tf.errors.OpError):
            decode(data[:end], window=(0, 0, 8, 8))


# What a camera has done to the upright picture, for each number that EXIF knows
ORIENTATIONS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, 1),
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: np.rot90(pixels, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("channels", MODES)
def test_files_are_turned_upright(tmp_path, kind, channels):
    picture = photograph("china").resize((50, 40)).convert("RGB" if channels == 3 else "L")
    files = []
    for orientation, turn in ORIENTATIONS.items():
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        turned = PIL.Image.fromarray(np.ascontiguousarray(turn(np.asarray(picture))))
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
        options = options.get(kind, {})
        files.append(tmp_path / f"{orientation}.{kind}")
        files[-1].write_bytes(encoded(turned, kind, exif=exif, **options))
    mean = (0.5,) * channels
    preparation = Preparation(32, "none", channels, mean, mean)
    received = next(iter(from_files(files, preparation, ("a", "b")).evaluation()))[0].numpy()
    assert len(received) == 8
    loss = 4 * 2 / 255 if kind == "JPEG" else 0  # of a few values of the 255, in steps of 2 / 255
    for orientation in range(1, 8):
        np.testing.assert_allclose(received[orientation], received[0], rtol=0, atol=loss)


def test_damaged_exif_is_upright(tmp_path):
    image = photograph("china").resize((60, 40))
    for content in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        path = tmp_path / "image.jpeg"
        path.write_bytes(encoded(image, exif=content))
        assert images.manageable(path, 3) == path.read_bytes()


@pytest.mark.parametrize(
    ("kind", "mode"), [("TIFF", "I;16"), ("TIFF", "I;16B"), ("TIFF", "I"), ("PNG", "I;16")]
)
@pytest.mark.parametrize("channels", MODES)
def test_grey_of_16_bits(kind, mode, channels):
    grey = np.linspace(0, 65535, 40 * 30).round().astype(np.uint16).reshape(30, 40)
    raw = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    data = encoded(PIL.Image.frombytes(mode, (40, 30), grey.astype(raw).tobytes()), kind)
    expected = np.repeat((grey >> 8).astype(np.uint8)[..., np.newaxis], channels, -1)
    np.testing.assert_array_equal(decode(data, channels)[0], expected)
    np.testing.assert_array_equal(images._pillow(data, channels), expected)
    assert images.defect(data, channels) == ""


@pytest.mark.parametrize(("kind", "value"), [(np.float32, 0.5), (np.int32, -1), (np.int32, 70000)])
def test_pixels_without_a_range_are_refused_by_name(kind, value):
    data = encoded(PIL.Image.fromarray(np.full((9, 9), value, kind)), "TIFF")
    name = "float" if kind is np.float32 else "32 bits"
    assert re.fullmatch(f"has pixels of .*{name}; expected 8 or 16 bits", images.defect(data))


def webp_of(width, height):
    """A lossless WebP of one colour, of a few bytes."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes.fromhex("88880800000000000000")
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


LARGE = {
    "JPEG": lambda: encoded(PIL.Image.new("RGB", (7000, 7000)), progressive=True, subsampling=0),
    "WebP of 36 bytes": lambda: webp_of(3500, 3500),
    "WebP that claims too much": lambda: webp_of(16383, 10900),
    "PNG that claims its size": lambda: png_of(8000, 8000),
    "PNG that claims too much": lambda: png_of(13000, 13000),
    "PNG": lambda: encoded(PIL.Image.new("RGB", (6600, 6700)), "PNG"),
    "TIFF": lambda: encoded(PIL.Image.new("RGB", (6600, 6700)), "TIFF"),
}

MEMORY = """
import sys
from larq_adambnn.data import Preparation, from_files, images
preparation = Preparation(32, "none", 3, (0.5,) * 3, (0.5,) * 3)
for path in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    defect = images.file_defect(path)
    if not defect:
        next(iter(from_files([path] * 4, preparation, ("a",)).evaluation()))
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(int(line.split()[1]) * 1024, defect)
"""


def test_large_images_take_less_than_one_gigabyte(tmp_path):
    """Also four at a time, in a process of its own."""
    for name, make in LARGE.items():
        (tmp_path / name).write_bytes(make())
    paths = [tmp_path / name for name in LARGE]
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    for name, line in zip(LARGE, run.stdout.splitlines(), strict=True):
        taken, defect = line.split(" ", 1)
        print(f"{name}: {int(taken) / 1e6:.0f} MB {defect}")
        assert int(taken) < 1e9, name
        assert bool(defect) == ("claims" in name), (name, defect)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "PNG of 16 bits"])
def test_large_images_are_reduced(monkeypatch, kind):
    """Each pixel is the mean of four; JPEGs have a way of their own."""
    photo = photograph("flower").resize((121, 83))
    if "16" in kind:
        grey = np.asarray(photo.convert("L")).astype(np.uint16) * 256 + 77
        photo, kind = PIL.Image.fromarray(grey), "PNG"
    data = encoded(photo, kind, **({"quality": 95} if kind == "JPEG" else {}))
    expected = opened(data)[:82, :120].astype(float) if photo.mode == "RGB" else None
    if expected is None:
        expected = np.repeat((grey >> 8)[:82, :120, np.newaxis].astype(float), 3, -1)
    expected = expected.reshape(41, 2, 60, 2, 3).mean((1, 3))
    monkeypatch.setattr(images, "_LARGE", 6000)  # the image has 10,043
    pixels, shape = decode(data, window=(1, 2, 39, 55))
    assert shape == (42, 61)
    assert images.defect(data) == ""
    difference = np.abs(pixels - expected[1:40, 2:57])
    assert difference.max() <= (40 if kind == "JPEG" else 0.5)
    assert difference.mean() < 2


def test_files_that_are_not_read(tmp_path):
    path = tmp_path / "long.png"
    with path.open("wb") as file:
        file.truncate(2**28 + 1)
    assert images.file_defect(path) == "has 268,435,457 bytes; expected at most 268,435,456"
    assert images.file_defect(tmp_path / "none.png") == "is no file, or a link to none"
