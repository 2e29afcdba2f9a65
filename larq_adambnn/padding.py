"""What "same" pads."""

__all__ = ["same_padding"]


def same_padding(size: int, span: int, stride: int) -> tuple[int, int]:
    """Number of zeros that "same" adds before and after one axis of an image.

    Args:
        size: pixels of the image.
        span: pixels from a kernel's first tap to its last, both counted.
        stride: pixels from one output to the next.
    """
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + span - size, 0)
    return total // 2, total - total // 2
