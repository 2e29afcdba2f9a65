"""A process of `workers`: reads a file and then images from standard input, and writes outputs."""

import contextlib
import os
import pickle
import sys

from larq_adambnn.export import interpreter


def serve() -> None:
    """Answers until its input ends."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not a result
    network = interpreter.load(pickle.load(sys.stdin.buffer))
    with contextlib.suppress(EOFError):
        while True:
            pickle.dump(interpreter.run(network, pickle.load(sys.stdin.buffer)), results)
            results.flush()


if __name__ == "__main__":
    serve()
