"""What is tuned for a processor, behind one switch.

Each function here is a TensorFlow operation in a form that is faster where `tuned` holds, and
the plain operation elsewhere.
"""

import tensorflow as tf

__all__ = ["tuned"]


def tuned() -> bool:
    """Whether to use the forms tuned for CPUs: where TensorFlow sees no other device.

    Asked whenever an operation is built, so that a test can replace it.
    """
    return all(device.device_type == "CPU" for device in tf.config.get_visible_devices())
