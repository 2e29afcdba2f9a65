"""What is tuned for a processor, behind one switch.

Each function here is a TensorFlow operation in a form that is faster where `tuned` holds, and
the plain operation elsewhere.
"""

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

__all__ = ["compiled", "tuned"]


def tuned() -> bool:
    """Whether to use the forms tuned for CPUs: where TensorFlow sees no other device.

    XLA, which finds forms of its own, gets the plain operations.  Asked whenever an operation
    is built, so that a test can replace it.
    """
    devices = tf.config.get_visible_devices()
    return all(device.device_type == "CPU" for device in devices) and not compiled()


def compiled() -> bool:
    """Whether XLA compiles what is being traced."""
    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )
