"""Encoded images: decoding a part of one in a TensorFlow graph, and saying why one cannot be."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin  # Pillow loads neither of the two by itself for named formats
import tensorflow as tf

__all__ = ["MAX_PIXELS", "convert", "decode", "defect", "rotation", "upright"]

# A few bytes may claim an image that fills the memory.
_MEMORY = 3 * 2**28  # bytes that decoding may take; ImageNet's largest image has 61 million pixels
_BYTES = 12  # a pixel: as Pillow holds it, and as an array and its copy
_WEBP_BYTES = 32  # its decoder holds several whole images
MAX_PIXELS = _MEMORY // _BYTES
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
    bytes after their end, damaged ones.  A rotation noted in EXIF is not applied, as
    torchvision's image folders do not.

    Args:
        encoded: the file's bytes, a string scalar; its content tells its format.
        channels: 1 or 3; grey, palette, alpha and CMYK images are converted, as Pillow's
            modes L and RGB are.  Of 16 bits the upper 8 are taken.
        window: function from (height, width) to int32 (top, left, height, width).

    Returns:
        uint8 (h, w, channels), and int32 (height, width) of the whole image.

    Raises:
        tf.errors.OpError: when run, on what is no image; `defect` says why.
    """
    length = tf.strings.length(encoded)
    start = tf.strings.substr(encoded, 0, 8)
    end = tf.strings.substr(encoded, tf.maximum(length - 2, 0), 2)
    is_jpeg = (tf.strings.substr(start, 0, 3) == _JPEG_START) & (end == _JPEG_END)
    is_png = (start == _PNG_START) & (length > _PNG_HEADER)

    def jpeg():
        *shape, components = tf.unstack(tf.io.extract_jpeg_shape(encoded))
        with tf.control_dependencies([_check_size(shape)]):
            part = window(*shape)

        def crop(channels):
            # The accurate DCT is as fast here, and gives Pillow's values exactly.
            return tf.io.decode_and_crop_jpeg(
                encoded, part, channels=channels, dct_method="INTEGER_ACCURATE"
            )

        return converted(crop, components == 1), tf.stack(shape)

    def png():
        size = tf.reverse(tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, False), [0])
        is_grey = tf.reduce_any(tf.strings.substr(encoded, _PNG_COLOUR, 1) == _GREY)
        with tf.control_dependencies([_check_size(size)]):
            return converted(lambda channels: tf.io.decode_png(encoded, channels), is_grey)

    def converted(decoded, is_grey):
        """What a decoder gives; it would make colours grey in ways of its own."""
        if channels == 3:
            return decoded(3)
        return tf.cond(is_grey, lambda: decoded(1), lambda: convert(decoded(3), 1))

    def pillow():
        image = tf.numpy_function(
            # eagerly, the bytes come as an array
            lambda data: _pillow(np.asarray(data, object).item(), channels),
            [encoded],
            tf.uint8,
            stateful=False,
        )
        return tf.ensure_shape(image, (None, None, channels))

    def whole():
        image = tf.cond(is_png, png, pillow)
        shape = tf.shape(image)[:2]
        top, left, height, width = tf.unstack(window(shape[0], shape[1]))
        return image[top : top + height, left : left + width], shape

    part, shape = tf.cond(is_jpeg, jpeg, whole)
    return tf.ensure_shape(part, (None, None, channels)), shape


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


def _check_size(shape: tf.Tensor) -> tf.Operation:
    pixels = tf.reduce_prod(tf.cast(shape, tf.int64))
    return tf.debugging.assert_less_equal(pixels, tf.constant(MAX_PIXELS, tf.int64))


class _RefusedError(ValueError):
    """A whole image of a kind that is not taken; the message follows the file's name."""


def _pillow(encoded: bytes, channels: int, *, upright: bool = False) -> np.ndarray:
    """The pixels (H, W, channels); upright: turned as EXIF says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PIL.Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            limit = _MEMORY // (_WEBP_BYTES if image.format == "WEBP" else _BYTES)
            if image.width * image.height > limit:
                raise _RefusedError(f"claims more than {limit:,} pixels")
            if upright:
                PIL.ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "F":
                raise _RefusedError("has pixels of type float; expected 8 or 16 bits")
            if image.mode.startswith("I"):
                image = PIL.Image.fromarray(_high_bytes(np.asarray(image)))
            mode = "RGB" if channels == 3 else "L"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def _high_bytes(pixels: np.ndarray) -> np.ndarray:
    """16-bit pixels as 8-bit ones, as TensorFlow reads PNGs."""
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise _RefusedError("has pixels of 32 bits; expected 8 or 16 bits")
    return (pixels >> 8).astype(np.uint8)


def upright(encoded: bytes, channels: int) -> bytes:
    """The image turned as its EXIF data say, as a PNG; the same bytes if it is upright."""
    if rotation(encoded) == 1:
        return encoded
    pixels = _pillow(encoded, channels, upright=True)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


def defect(encoded: bytes, channels: int = 3) -> str:
    """Why a file's bytes cannot be decoded, in one line; "" if they can."""
    if not encoded:
        return "is empty (0 bytes)"
    try:
        _pillow(encoded, channels)
        decode(tf.constant(encoded), channels, lambda height, width: (0, 0, height, width))
    except PIL.UnidentifiedImageError:
        return f"is not an image: it begins with {encoded[:16]!r}"
    except _RefusedError as error:
        return str(error)
    except PIL.Image.DecompressionBombError:
        return f"claims more than {MAX_PIXELS:,} pixels"
    except Exception as error:  # Pillow's readers raise nearly any kind on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"is truncated or damaged: {reason}"
    return ""


def rotation(encoded: bytes) -> int:
    """The orientation that an image's EXIF data give it: 1 is upright, 2 to 8 are not."""
    with PIL.Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        try:
            found = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # damaged EXIF data: the image may be whole
            return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
