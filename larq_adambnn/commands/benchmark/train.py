"""--benchmark=train: training iterations of a config, beside the published network in PyTorch.

PyTorch runs as published, with images in channels_last (and under autocast, where the precision
is bfloat16), and compiled on top of that.

Each network has a process of its own, so that the peak memory is its own.  They take one
iteration each in turns, so that whatever else the machine does slows both down.
"""

import collections
import contextlib
import dataclasses
import functools
import glob
import importlib.util
import math
import multiprocessing.connection
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from larq_adambnn.errors import UsageError
from larq_adambnn.machine import cores, processor, quiet
from larq_adambnn.runs.config import Config

__all__ = ["Contender", "contenders", "epoch_times", "main", "operator_times", "take_turns"]

_WARM_UP, _ROUNDS = 2, 10  # iterations of each network
_LISTED = 8
_PATIENCE = 10  # seconds for a process to end by itself
_EPOCHS = 3  # of which the one in the middle counts: it neither traces nor finishes the run
_OURS = "larq_adambnn"
_RIVALS = {  # options of `twin.Training`
    "PyTorch as published": {},
    "PyTorch, channels_last": {"channels_last": True},
    "PyTorch, compiled": {"channels_last": True, "compiled": True},
}
_PUBLISHED = next(iter(_RIVALS))
_IN_LINE = "larq_adambnn, one operator at a time"  # so that their times add up to an iteration's
_HOOKS = (
    "on_epoch_begin",
    "on_epoch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_begin",
    "on_test_end",
)
# The event of an operator that takes a callback; in a training those that XLA compiled
_LAUNCH = "ExecutorState::ProcessAsync::Start"
_MATRIX = ("Conv2D", "DepthwiseConv", "MatMul")  # what a kernel's name has that multiplies matrices


@dataclasses.dataclass
class Contender:
    """A network in a process of its own, which trains an iteration on demand.

    Attributes:
        first: seconds of its first iteration, with tracing.
        seconds: of its later ones.
    """

    connection: multiprocessing.connection.Connection
    first: float
    seconds: list[float] = dataclasses.field(default_factory=list)

    def ask(self, request: str):
        """What the process answers to a request, see `_serve`."""
        self.connection.send(request)
        return self.connection.recv()


def main(config: Config) -> None:
    """Prints speed and memory of both steps, and what an iteration and an epoch consist of."""
    import tensorflow as tf

    from larq_adambnn.runs import strategies

    print(
        f"{config.model}, width {config.width:g}, {config.image_size} x {config.image_size}, batch "
        f"{config.batch_size}, {config.precision}, {cores()} cores; "
        f"{_ROUNDS} iterations each, in turns\n{processor()}"
    )
    strategies.say_devices(tf.distribute.get_strategy())
    names = [_OURS, *_rivals(config)]
    for step, weights in ((1, "real"), (2, "binary")):
        print(
            f"\nstep {step} ({weights} weights)".ljust(33)
            + f"{'images/s':>9}{'range':>17}{'first':>12}{'peak memory':>13}"
            + f"{'ratio':>8}{'pays after':>12}" * (len(names) > 1)
        )
        with contenders(config, step, names) as found:
            take_turns(found.values(), _ROUNDS)
            for name, contender in found.items():
                _print_speed(name, contender, config.batch_size, found)
        if len(names) > 1:
            print(
                f"ratio: how many times as fast {_OURS} is; pays after: so many iterations, with "
                f"the first one, take no longer than those of {_PUBLISHED}"
            )
        with contenders(config, step, [_IN_LINE]) as found:
            _print_operators(
                *(found[_IN_LINE].ask(name) for name in ("operators", "work", "limits"))
            )
    _print_epoch(config)


def _rivals(config: Config) -> list[str]:
    """The rows of PyTorch that can run here; says why where there are fewer."""
    if config.model != "reactnet_a":
        print("(the published network is reactnet_a, so there is nothing to compare with)")
        return []
    if importlib.util.find_spec("torch") is None:
        print("(nothing to compare with without torch: pip install -r requirements-dev.txt)")
        return []
    compiler = os.environ.get("CXX", "g++")  # as PyTorch looks for it
    if shutil.which(compiler) is None:
        print(f"(PyTorch cannot compile without {compiler})")
        return [name for name, options in _RIVALS.items() if "compiled" not in options]
    return list(_RIVALS)


@contextlib.contextmanager
def contenders(config: Config, step: int, names) -> Iterator[dict[str, Contender]]:
    """The networks of the given names after their first iteration, warmed up."""
    from larq_adambnn.runs import datasets

    class_names, channels = datasets.describe(config)  # here, since PyTorch needs no TensorFlow
    context = multiprocessing.get_context("spawn")
    found, processes = {}, []
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    try:
        for name in names:
            connection, theirs = context.Pipe()
            arguments = (theirs, name, folder.name, config, step, channels, len(class_names))
            processes.append(context.Process(target=_serve, args=arguments))
            processes[-1].start()
            theirs.close()
            try:
                found[name] = Contender(connection, connection.recv())
            except EOFError:
                raise UsageError(
                    f"--benchmark: the process of {name} ended; expected memory for an iteration "
                    f"of {config.batch_size} images (--batch_size)"
                ) from None
            for _ in range(_WARM_UP):
                found[name].ask("iteration")
        yield found
        for contender in found.values():
            contender.connection.close()  # upon which its process ends, with those it has begun
        for process in processes:
            process.join(_PATIENCE)
    finally:
        for process in processes:
            process.terminate()
            process.join()
        folder.cleanup()


def take_turns(found, rounds: int) -> None:
    """Lets each contender train an iteration, again and again."""
    found = list(found)
    for _ in range(rounds):
        for contender in found:
            contender.seconds.append(contender.ask("iteration"))


def _ratio(ours: Contender, theirs: Contender) -> float:
    """How many times as fast ours is: the median over the rounds."""
    pairs = zip(theirs.seconds, ours.seconds, strict=True)
    return statistics.median(their / our for their, our in pairs)


def _print_speed(name: str, contender: Contender, images: int, found) -> None:
    slow, fast = images / max(contender.seconds), images / min(contender.seconds)
    row = (
        f"{name:<32}{images / statistics.median(contender.seconds):9.1f}"
        f"{f'{slow:.1f} - {fast:.1f}':>17}{contender.first:10.1f} s"
        f"{contender.ask('memory') / 2**30:9.2f} GiB"
    )
    if name in _RIVALS:
        row += f"{_ratio(found[_OURS], contender):8.2f}"
    elif len(found) > 1:
        row += " " * 8
    if _PUBLISHED in found and name != _PUBLISHED:
        after = pays_after(contender, found[_PUBLISHED])
        row += f"{'never' if after is None else after:>12}"
    print(row)


def pays_after(contender: Contender, other: Contender) -> int | None:
    """The first number of iterations that takes a contender no longer; None if none does."""
    saved = statistics.median(other.seconds) - statistics.median(contender.seconds)
    lost = contender.first - other.first
    if lost <= 0:
        return 1
    return 1 + math.ceil(lost / saved) if saved > 0 else None


def _print_operators(
    times: dict[str, float], work: tuple[float, float], limits: tuple[float, float]
) -> None:
    """What an iteration consists of, with one operator at a time.

    Args:
        times: see `operator_times`.
        work, limits: see `roofline`.
    """
    total = sum(times.values())
    multiplied = sum(seconds for name, seconds in times.items() if _multiplies(name))
    flops, size = work
    print(
        f"\nin convolutions and matrix products: {100 * multiplied / total:.0f} % of an iteration: "
        f"{flops / 1e9:,.0f} GFLOP at {flops / multiplied / 1e9:,.0f} a second, of "
        f"{limits[0] / 1e9:,.0f} in a large product\n"
        f"in all else {size / 1e9:.1f} GB at {size / (total - multiplied) / 1e9:.1f} a second, of "
        f"{limits[1] / 1e9:.1f} in a large addition; the limits alone take "
        f"{flops / limits[0] + size / limits[1]:.2f} of {total:.2f} s"
    )
    others = [item for item in times.items() if not _multiplies(item[0])]
    for name, seconds in sorted(others, key=lambda item: -item[1])[:_LISTED]:
        print(f"  {name:<30}{100 * seconds / total:5.1f} %")


def _multiplies(kernel: str) -> bool:
    return any(name in kernel for name in _MATRIX)


def _serve(connection, name: str, folder: str, *sizes) -> None:
    """Answers requests until the other end is closed.

    Args:
        folder: where PyTorch keeps what it compiles, so that the next one compiles it again.
        sizes: config, step, channels of the images and number of classes.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=folder)
    with quiet():
        if name in _RIVALS:
            iteration = _theirs(*sizes, **_RIVALS[name])
        else:
            iteration = {_OURS: _Ours, _IN_LINE: _ours_in_line}[name](*sizes)
        first = _seconds(iteration)
    requests: dict[str, Callable] = {
        "iteration": lambda: _seconds(iteration),
        "memory": _peak_memory,
        "operators": lambda: operator_times(iteration),
        "work": lambda: iteration.work(),
        "limits": lambda: iteration.limits(),
    }
    connection.send(first)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(requests[connection.recv()]())


def _peak_memory() -> int:
    """Bytes; on Linux getrusage would count what the parent had when it started this process."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class _Ours:
    """Our training on one batch; a call is an iteration."""

    def __init__(self, config: Config, step: int, channels: int, classes: int):
        import tensorflow as tf

        from larq_adambnn import distillation, layers, losses, optimizers
        from larq_adambnn.runs import strategies, students

        strategies.prepare(config)
        with strategies.precision(config.precision):
            student = students.build(config, channels, classes)
            layers.binarize(student, True, step == 2)
            images = tf.random.stateless_normal(
                (config.batch_size, *student.input_shape[1:]), (0, 0)
            )
            target = tf.random.stateless_normal((config.batch_size, classes), (0, 1))
            self._model = distillation.Distiller(student, lambda _: target)
            self._model.compile(
                optimizer=optimizers.Adam(config.learning_rate, config.weight_decay[step - 1]),
                loss=losses.DistributionLoss(),
                jit_compile=config.jit_compile,
            )
        labels = tf.zeros(config.batch_size, tf.int64)
        self._batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
        self._train = self._model.make_train_function()
        self._dtype = tf.as_dtype(student.compute_dtype)

    def __call__(self) -> float:
        return self._train(self._batches)["loss"].numpy()

    def work(self) -> tuple[float, float]:
        from larq_adambnn.commands.benchmark import roofline

        graph = self._train.get_concrete_function(self._batches).graph
        return roofline.work(graph, {name for name, _, _ in _executed(self)})

    def limits(self) -> tuple[float, float]:
        from larq_adambnn.commands.benchmark import roofline

        return roofline.limits(self._dtype)


def _ours_in_line(*sizes) -> _Ours:
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    return _Ours(*sizes)


def _theirs(
    config: Config, step: int, channels: int, classes: int, channels_last=False, compiled=False
) -> Callable[[], object]:
    import torch

    from larq_adambnn.commands.benchmark import twin

    torch.manual_seed(0)
    network = twin.ReActNetA(
        channels,
        classes,
        config.width,
        stem_stride=config.stem_stride or (2 if config.image_size >= 64 else 1),
        binary=step == 2,
    )
    train = twin.Training(
        network,
        config.learning_rate,
        config.weight_decay[step - 1],
        channels_last=channels_last,
        autocast=channels_last and config.precision == "bfloat16",
        compiled=compiled,
    )
    images = torch.randn(config.batch_size, channels, config.image_size, config.image_size)
    target = torch.randn(config.batch_size, classes)
    return lambda: train(images, target)


def operator_times(function: Callable[[], object]) -> dict[str, float]:
    """Seconds that TensorFlow's profiler counts in each kind of operator during a call.

    All operators of Winograd's convolution, its gradients' too, are of the kind WinogradConv2D.
    """
    from larq_adambnn.kernels import winograd

    times = collections.Counter()
    for name, kind, seconds in _executed(function):
        times["WinogradConv2D" if winograd.SCOPE in name.split("/") else kind] += seconds
    return times


def _executed(function: Callable[[], object]) -> Iterator[tuple[str, str, float]]:
    """(name, kind, seconds) of each operator that is executed during a call."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            function()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        with open(path, "rb") as file:
            space = xplane_pb2.XSpace.FromString(file.read())
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            for event in line.events:
                # An operator's event is called NAME:KIND, others have C++ names.
                event_name = plane.event_metadata[event.metadata_id].name
                name, _, kind = event_name.rpartition(":")
                if event_name == _LAUNCH:
                    yield "", "XlaLaunch", event.duration_ps / 1e12
                elif name and kind.isidentifier() and not name.endswith(":"):
                    yield name, kind, event.duration_ps / 1e12


def _print_epoch(config: Config) -> None:
    """Prints what a run adds to the iterations of an epoch, if there are the data for one."""
    try:
        times, iterations = epoch_times(config)
    except UsageError as error:
        print(f"\n(no costs of an epoch: {error})")
        return
    total = sum(times.values())
    print(f"\nan epoch of {iterations} iterations, with all that a run does: {total:.1f} s")
    for name, seconds in sorted(times.items(), key=lambda item: -item[1]):
        print(f"  {name:<30}{seconds:8.3f} s{100 * seconds / total:7.2f} %")


def epoch_times(config: Config) -> tuple[dict[str, float], int]:
    """Seconds by what an epoch spends them on, and its iterations.

    Of an epoch of step 2 on the labels, with a run's callbacks and files.

    Raises:
        UsageError: the data set cannot be read.
    """
    import tensorflow as tf

    from larq_adambnn.runs import datasets, strategies, training
    from larq_adambnn.runs.directory import Run

    with tempfile.TemporaryDirectory() as folder:
        config = config.replace(
            mode="train",
            order="one_step",
            weight_decay=(0.0, 0.0),
            loss="cross_entropy",
            attention=0.0,
            init_from="",
            reload_best=False,
            epochs=_EPOCHS,
            output_dir=folder,
        )
        dataset = datasets.load(config)
        model = training.compiled(config, dataset, None)
        clock = _Clock()
        with contextlib.redirect_stdout(None):
            model.fit(
                **strategies.distribute(tf.distribute.get_strategy(), dataset, first_iteration=0),
                epochs=_EPOCHS,
                steps_per_epoch=dataset.iterations_per_epoch,
                callbacks=clock.timed(
                    training.run_callbacks(config, Run(folder), dataset, (_EPOCHS,))
                ),
                verbose=0,
            )
    return clock.epochs[_EPOCHS // 2], dataset.iterations_per_epoch


class _Clock:
    """Measures what each callback, the evaluation and the rest of each epoch take.

    Attributes:
        epochs: seconds by name, of each epoch.
    """

    def __init__(self):
        self.epochs: list[dict[str, float]] = []
        self.times: dict[str, float] = {}

    def timed(self, callbacks) -> list:
        """The callbacks, each hook of them timed, between two that time the epoch."""
        import tensorflow as tf

        for callback in callbacks:
            name = type(callback).__name__.strip("_")
            for hook in _HOOKS:
                setattr(callback, hook, self._count(name, getattr(callback, hook)))
        first = tf.keras.callbacks.LambdaCallback(on_epoch_begin=self._begin)
        first.on_test_begin = self._begin_test
        last = tf.keras.callbacks.LambdaCallback(on_epoch_end=self._end)
        last.on_test_end = self._end_test
        for ours in (first, last):
            ours._supports_tf_logs = True  # or Keras would read the logs of each iteration
        return [first, *callbacks, last]

    def _count(self, name: str, hook: Callable) -> Callable:
        @functools.wraps(hook)  # with the mark by which Keras leaves out empty hooks
        def counted(*arguments):
            start = time.perf_counter()
            hook(*arguments)
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - start

        return counted

    def _begin(self, epoch, logs):
        self.times = {}
        self._start = time.perf_counter()

    def _end(self, epoch, logs):
        total = time.perf_counter() - self._start
        self.epochs.append({"iterations": total - sum(self.times.values()), **self.times})

    def _begin_test(self, logs=None):
        self._test = time.perf_counter(), sum(self.times.values())

    def _end_test(self, logs=None):
        start, counted = self._test
        inside = sum(self.times.values()) - counted
        self.times["evaluation"] = time.perf_counter() - start - inside
