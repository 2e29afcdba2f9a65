"""A network of two binary convolutions, so that tests of whole runs stay short.

As a program it is main.py with this network in the place of --model=reactnet18.
"""

import contextlib
import json
import os
import runpy
import shutil
import signal
import sys
import traceback
import warnings
from typing import NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

FLAGS = (
    "--model=reactnet18",
    "--dataset=digits",
    "--image_size=32",
    "--crop=padded",
    "--noflip",
    "--batch_size=128",
    "--train_images=512",
    "--epochs=2",
    "--learning_rate=2.5e-3",
    "--noexport",
)


def flags_of(output_dir, data_dir, *flags):
    """The arguments of a run."""
    return [*FLAGS, f"--data_dir={data_dir}", f"--output_dir={output_dir}", *flags]


def network(
    input_shape, num_classes, width=1.0, *, pad_values=0.0, activation_clip=1.0, weight_clip=1.0
):
    """Rotation, real stem and two binary 3 x 3 convolutions of 8 channels."""
    import tensorflow as tf

    from larq_adambnn import layers
    from larq_adambnn.quantizers import ApproxSign, ScaledSign, Switchable

    def binary_conv(name):
        return layers.BinaryConv2D(
            8,
            3,
            input_quantizer=Switchable(ApproxSign(activation_clip)),
            kernel_quantizer=Switchable(ScaledSign(weight_clip)),
            pad_values=pad_values,
            name=name,
        )

    batch_norm = tf.keras.layers.BatchNormalization
    images = x = tf.keras.Input(input_shape, name="images")
    x = layers.Rotate180(name="rotate")(x)
    x = tf.keras.layers.Conv2D(8, 3, 4, "same", use_bias=False, name="stem_conv")(x)
    x = batch_norm(name="stem_bn")(x)
    for block in ("block1", "block2"):
        y = layers.Shift(name=f"{block}_shift")(x)
        y = binary_conv(f"{block}_conv3x3")(y)
        y = batch_norm(name=f"{block}_bn")(y)
        x = layers.RPReLU(name=f"{block}_rprelu")(tf.keras.layers.Add(name=f"{block}_add")([x, y]))
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    dtype = tf.keras.mixed_precision.global_policy().variable_dtype
    logits = tf.keras.layers.Dense(num_classes, name="classifier", dtype=dtype)(x)
    return tf.keras.Model(images, logits, name="small")


def use() -> None:
    """Puts `network` in the place of reactnet18."""
    from larq_adambnn import models

    models._NETWORKS["reactnet18"] = network


def serve() -> None:
    """Forks a process for each run that a line of JSON on standard input asks for.

    The imports, which take most of the time of a short run, are then done once.  See
    `processes.Server`, which asks.
    """
    import gc

    import larq_compute_engine  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    import larq_adambnn.runs.training  # noqa: F401
    from larq_adambnn.runs.page import render

    render.library()  # which takes longer than a short training
    gc.freeze()  # what was imported is no garbage
    print("ready", flush=True)
    children = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            number, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if number else None
            children.discard(number)
        else:
            answer = os.fork()
            if answer == 0:
                _become(**request)
            children.add(answer)
        print(json.dumps(answer), flush=True)
    for number in children:  # of tests that failed
        os.kill(number, signal.SIGKILL)


def _become(arguments, folder, program, environment, cwd, eager) -> NoReturn:
    """What `python small.py`, or another program, does, with its output in a folder."""
    import tensorflow as tf

    from larq_adambnn.runs import directory

    status = 1
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY), descriptor)
        os.environ.update(environment)
        os.chdir(cwd)
        if "SEEN_SECONDS" in environment:
            directory._SEEN_SECONDS = float(environment["SEEN_SECONDS"])
        if "COPIES_OF" in environment:
            _copy_after_each_write(environment["COPIES_OF"], environment["COPIES_IN"])
        if program is None:
            use()
            command = main.main
            if eager:
                warnings.filterwarnings("ignore", "Even though")  # tf.data traces all the same
                tf.config.run_functions_eagerly(True)
                command = tf.autograph.experimental.do_not_convert(command)
            status = command(arguments)
        else:
            sys.argv = [program, *arguments]
            runpy.run_path(program, run_name="__main__")
            status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _copy_after_each_write(run, folder) -> None:
    """Keeps a copy of a run after each file of it, under a number and the file's name."""
    from larq_adambnn.runs import directory

    original = directory.replace_file

    @contextlib.contextmanager
    def replace_file(path, **options):
        with original(path, **options) as temporary:
            yield temporary
        number = len(os.listdir(folder))
        shutil.copytree(run, f"{folder}/{number:03d} {path.name}")

    os.makedirs(folder)
    directory.replace_file = replace_file


if __name__ == "__main__":
    import main
    from larq_adambnn import machine

    with machine.quiet():
        import larq_adambnn.models  # noqa: F401
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        use()
        sys.exit(main.main(sys.argv[1:]))
