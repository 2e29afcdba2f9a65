"""Decoding: what Pillow reads, from any format, and why a file cannot be decoded."""

import re
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from photographs import crops, encoded, opened, photograph

from larq_adambnn.data import images


def decode(data, channels=3, window=None):
    """Inside a tf.data pipeline, as training does."""

    def part(value):
        return images.decode(
            value, channels, window or (lambda height, width: tf.stack([0, 0, height, width]))
        )

    dataset = tf.data.Dataset.from_tensors(data).map(part)
    pixels, shape = dataset.get_single_element()
    return pixels.numpy(), tuple(shape.numpy())


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
        pixels, shape = decode(data, window=lambda *_, w=(top, left, height, width): tf.stack(w))
        assert shape == expected.shape[:2]
        difference = np.abs(pixels.astype(int) - expected[top : top + height, left : left + width])
        # libjpeg interpolates the colours of the outer columns without their neighbours
        assert difference.max() <= 10
        assert difference[:, 1:-1].max() == 0


def test_grey_jpeg_gives_equal_channels_and_colour_gives_luma():
    image = photograph("china").resize((61, 43))
    grey = encoded(image.convert("L"))
    pixels, _ = decode(grey)
    np.testing.assert_array_equal(pixels, opened(grey))
    pixels, _ = decode(encoded(image), channels=1)
    # libjpeg takes the stored luma, Pillow computes it from decoded colours
    assert np.abs(pixels.astype(int) - opened(encoded(image), "L")).max() <= 3


def test_cmyk_jpeg_is_converted_as_pillow_does():
    data = encoded(photograph("flower").resize((93, 71)).convert("CMYK"))
    for window in (None, lambda height, width: tf.stack([11, 5, 40, 60])):
        pixels, _ = decode(data, window=window)
        expected = opened(data) if window is None else opened(data)[11:51, 5:65]
        # both compute ink * black / 255, one rounds and one cuts off
        assert np.abs(pixels.astype(int) - expected).max() <= 1


OTHERS = {
    "PNG": ("RGB", "L", "P", "RGBA", "1"),
    "BMP": ("RGB", "L", "P"),
    "GIF": ("P",),
    "PPM": ("RGB", "L"),
    "TIFF": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB",),
}


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in OTHERS.items() for mode in modes]
)
def test_other_formats_are_what_pillow_reads(kind, mode):
    data = encoded(photograph("flower").resize((57, 33)).convert(mode), kind)
    pixels, shape = decode(data, window=lambda height, width: tf.stack([3, 7, 20, 31]))
    assert shape == (33, 57)
    np.testing.assert_array_equal(pixels, opened(data)[3:23, 7:38])


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
    "PNG of 60,000 x 60,000": (png_of(60_000, 60_000), "claims more than 178,956,970 pixels"),
    "JPEG of 60,000 x 60,000": (jpeg_of(60_000, 60_000), "claims more than 178,956,970 pixels"),
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
    for end in range(2, len(data), 37):
        with pytest.raises(tf.errors.OpError):
            decode(data[:end], window=lambda height, width: tf.stack([0, 0, 8, 8]))
