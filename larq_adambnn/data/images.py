"""Encoded images: decoding a part of one in a TensorFlow graph, and saying why one cannot be."""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin  # Pillow loads neither of the two by itself for named formats
import tensorflow as tf

from larq_adambnn.machine import give_back

__all__ = [
    "MAX_PIXELS",
    "convert",
    "decode",
    "defect",
    "file_defect",
    "manageable",
    "rotation",
]

# A few bytes may claim an image that fills the memory, and a process is to take at most 1 GB.
# Images of more pixels than _LARGE are decoded one at a time, and reduced.  ImageNet's largest
# has 61 million.  WebP's decoder holds several whole images, that of a progressive JPEG two.
_LARGE, _LARGE_WEBP = 2**23, 2**22
MAX_PIXELS, _MAX_PROGRESSIVE, _MAX_WEBP = 2**26, 3 * 2**24, 3 * 2**22
_MAX_FILE = 2**28  # bytes; what MAX_PIXELS take without a compression
_ONE_AT_A_TIME = threading.Lock()
# What torchvision's image folders hold (and GIF, which TFDS knows).  Naming the formats keeps
# Pillow from the ones that start other programs, such as EPS.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_HEADER = b"\x89PNG\r\n\x1a\n", 33  # the latter in bytes
_PNG_COLOUR, _GREY = 25, (b"\0", b"\4")  # where a PNG has its kind; the kinds without colour
_LUMA = (19595, 38470, 7471)  # of red, green and blue, in 1/65536, as Pillow's mode L has them

Window = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def decode(encoded: tf.Tensor, channels: int, window: Window) -> tuple[tf.Tensor, tf.Tensor]:
    """The part of an image that a window gives, undoing as little of the encoding as possible.

    Of a JPEG only the window is decoded; its first and last column may differ by a few
    1/255 from those of the whole image, whose colours are interpolated from beyond.  What is
    neither PNG nor a JPEG that ends as one goes through Pillow: other formats, JPEGs with
    bytes after their end, damaged ones, and all of more than 8 million pixels, which are
    decoded to a half or a quarter of their size.  A rotation noted in EXIF is not applied, as
    torchvision's image folders do not.

    Args:
        encoded: the file's bytes, a string scalar; its content tells its format.
        channels: 1 or 3; grey, palette, alpha and CMYK images are converted, as Pillow's
            modes L and RGB are.  Of 16 bits the upper 8 are taken.
        window: function from (height, width) to int32 (top, left, height, width).

    Returns:
        uint8 (h, w, channels), and int32 (height, width) of the whole image as it is decoded.

    Raises:
        tf.errors.OpError: when run, on what is no image; `defect` says why.
    """
    length = tf.strings.length(encoded)
    start = tf.strings.substr(encoded, 0, 8)
    end = tf.strings.substr(encoded, tf.maximum(length - 2, 0), 2)
    is_jpeg = (tf.strings.substr(start, 0, 3) == _JPEG_START) & (end == _JPEG_END)

    def converted(decoded, is_grey):
        """What a decoder gives; it would make colours grey in ways of its own."""
        if channels == 3:
            return decoded(3)
        return tf.cond(is_grey, lambda: decoded(1), lambda: convert(decoded(3), 1))

    def png():
        is_grey = tf.reduce_any(tf.strings.substr(encoded, _PNG_COLOUR, 1) == _GREY)
        return converted(lambda channels: tf.io.decode_png(encoded, channels), is_grey)

    def pillow():
        image = tf.numpy_function(
            # eagerly, the bytes come as an array
            lambda data: _pillow(np.asarray(data, object).item(), channels),
            [encoded],
            tf.uint8,
            stateful=False,
        )
        return tf.ensure_shape(image, (None, None, channels))

    def small_png():
        size = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, False)
        return _is_small(size)

    def whole():
        is_png = (start == _PNG_START) & (length > _PNG_HEADER)
        image = tf.cond(is_png & tf.cond(is_png, small_png, lambda: False), png, pillow)
        return image, tf.shape(image)

    # The window is asked for once, outside of the conditions: it has many operators.
    header = tf.cond(
        is_jpeg, lambda: tf.io.extract_jpeg_shape(encoded), lambda: tf.zeros(3, tf.int32)
    )
    by_parts = is_jpeg & _is_small(header[:2])
    nothing = tf.zeros((0, 0, channels), tf.uint8)
    image, shape = tf.cond(by_parts, lambda: (nothing, header), whole)
    part = window(shape[0], shape[1])

    def crop(channels):
        # The accurate DCT is as fast here, and gives Pillow's values exactly.
        return tf.io.decode_and_crop_jpeg(
            encoded, part, channels=channels, dct_method="INTEGER_ACCURATE"
        )

    def cut():
        top, left, height, width = tf.unstack(part)
        return image[top : top + height, left : left + width]

    pixels = tf.cond(by_parts, lambda: converted(crop, header[2] == 1), cut)
    return tf.ensure_shape(pixels, (None, None, channels)), shape[:2]


def convert(pixels: tf.Tensor, channels: int) -> tf.Tensor:
    """uint8 or float32 pixels (H, W, C) of 1 or 3 channels in the other number of them.

    Colours become grey as Pillow's mode L, uint8 ones with its rounding.
    """
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return tf.repeat(pixels, 3, axis=-1)
    if pixels.dtype == tf.uint8:
        luma = tf.reduce_sum(tf.cast(pixels, tf.int32) * _LUMA, -1, keepdims=True)
        return tf.cast((luma + 2**15) // 2**16, tf.uint8)
    return tf.reduce_sum(pixels * (tf.constant(_LUMA, pixels.dtype) / 2**16), -1, keepdims=True)


def _is_small(shape: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(tf.cast(shape, tf.int64)) <= _LARGE


class _RefusedError(ValueError):
    """A whole image of a kind that is not taken; the message follows the file's name."""


@contextlib.contextmanager
def _opened(source: str | bytes) -> Iterator[PIL.Image.Image]:
    """Pillow's image of a path or of a file's bytes; its pixels are freed at the end."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.closing(PIL.Image.open(file, formats=_FORMATS)) as image:
            yield image


def _pillow(source: str | bytes, channels: int) -> np.ndarray:
    """The pixels (H, W, channels) of a path or of a file's bytes."""
    with _opened(source) as image:
        limit = _MAX_PROGRESSIVE if image.info.get("progressive") else MAX_PIXELS
        limit = _MAX_WEBP if image.format == "WEBP" else limit
        if image.width * image.height > limit:
            raise _RefusedError(f"claims more than {limit:,} pixels")
        if not _is_large(image):
            return _array(image, channels)
    with _ONE_AT_A_TIME:
        try:
            return _reduced(source, channels)
        finally:
            give_back()


def _is_large(image: PIL.Image.Image) -> bool:
    limit = _LARGE_WEBP if image.format == "WEBP" else _LARGE
    return image.width * image.height > limit


def _reduced(source: str | bytes, channels: int) -> np.ndarray:
    """The pixels of a large image at a half or a quarter of its size."""
    with _opened(source) as image:
        size = image.size
        factor = 2 if image.width * image.height <= 2 * _LARGE else 4
        image.draft(None, tuple(max(1, side // factor) for side in size))  # which JPEGs know
        if image.size != size:
            return _array(image, channels)
        image.load()  # which turns a TIFF
        rows = max(1, _LARGE // 8 // image.width // factor) * factor
        strips = (
            image.crop((0, top, image.width, min(top + rows, image.height)))
            for top in range(0, image.height, rows)
        )
        return np.concatenate([_array(strip, channels, reduce=factor) for strip in strips])


def _array(image: PIL.Image.Image, channels: int, *, reduce: int = 1) -> np.ndarray:
    """An image's pixels (H, W, channels), each the mean of so many by so many."""
    if image.mode == "F":
        raise _RefusedError("has pixels of type float; expected 8 or 16 bits")
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray(_high_bytes(np.asarray(image)))
    mode = "RGB" if channels == 3 else "L"
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.asarray(image if reduce == 1 else image.reduce(reduce))
    return pixels.reshape(*pixels.shape[:2], channels)


def _high_bytes(pixels: np.ndarray) -> np.ndarray:
    """16-bit pixels as 8-bit ones, as TensorFlow reads PNGs."""
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise _RefusedError("has pixels of 32 bits; expected 8 or 16 bits")
    return (pixels >> 8).astype(np.uint8)


def manageable(path: str | bytes | os.PathLike, channels: int) -> bytes:
    """A file's image, turned as its EXIF data say, of at most 8 million pixels.

    Returns:
        The file's bytes, or those of a PNG if it is rotated or larger.

    Raises:
        OSError, ValueError, SyntaxError: it cannot be read; `file_defect` says why.
    """
    path = os.fsdecode(path)
    with _opened(path) as image:
        large, turned = _is_large(image), image.format == "TIFF"  # Pillow turns those
        orientation = 1 if turned else _orientation(image)
    if orientation == 1 and not large:
        with open(path, "rb") as file:
            return file.read()
    pixels = _pillow(path, channels)
    image = PIL.Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    image.getexif()[_ORIENTATION] = orientation
    file = io.BytesIO()
    PIL.ImageOps.exif_transpose(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def file_defect(path: str | bytes | os.PathLike, channels: int = 3) -> str:
    """Why a file's image cannot be decoded, in one line; "" if it can."""
    if not os.path.isfile(path):
        return "is no file, or a link to none"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_FILE:
                return f"has {size:,} bytes; expected at most {_MAX_FILE:,}"
            if size <= _LARGE:
                return defect(file.read(), channels)
            return _reason(lambda: _pillow(os.fsdecode(path), channels), file.read(16))
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def defect(encoded: bytes, channels: int = 3) -> str:
    """Why a file's bytes cannot be decoded, in one line; "" if they can."""

    def read():
        _pillow(encoded, channels)
        decode(tf.constant(encoded), channels, lambda height, width: (0, 0, height, width))

    return _reason(read, encoded[:16]) if encoded else "is empty (0 bytes)"


def _reason(read: Callable[[], object], start: bytes) -> str:
    """Why an image that begins so cannot be read; "" if it can."""
    try:
        read()
    except PIL.UnidentifiedImageError:
        return f"is not an image: it begins with {start!r}"
    except _RefusedError as error:
        return str(error)
    except PIL.Image.DecompressionBombError:
        return f"claims more than {MAX_PIXELS:,} pixels"
    except MemoryError:
        return "takes more memory than there is"
    except Exception as error:  # Pillow's readers raise nearly any kind on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"is truncated or damaged: {reason}"
    return ""


def rotation(encoded: bytes) -> int:
    """The orientation that an image's EXIF data give it: 1 is upright, 2 to 8 are not."""
    with _opened(encoded) as image:
        return _orientation(image)


def _orientation(image: PIL.Image.Image) -> int:
    if image.format == "PNG" and _is_large(image) and "exif" not in image.info:
        return 1  # Pillow would decode the image to look behind it
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data: the image may be whole
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
