"""--strategy, --precision and --tf32: which devices train, and in which arithmetic."""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

import numpy as np
import tensorflow as tf

from larq_adambnn.data import Dataset
from larq_adambnn.errors import UsageError
from larq_adambnn.machine import cores, has_nvidia_card, quiet
from larq_adambnn.runs.config import Config

__all__ = [
    "agree",
    "build",
    "card_notes",
    "check_batch",
    "described",
    "devices",
    "distribute",
    "explained",
    "from_chief",
    "is_chief",
    "precision",
    "prepare",
    "say_devices",
    "together",
    "wait_for_all",
]

_PART = 4096  # numbers that the workers exchange at a time


def prepare(config: Config) -> None:
    """Lets several runs share a card, and sets --tf32; call it before TensorFlow computes."""
    for card in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # it is in use already
            tf.config.experimental.set_memory_growth(card, True)
    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)


def devices(strategy: tf.distribute.Strategy) -> str:
    """What a strategy computes on, such as "GPU:0 (NVIDIA A100-SXM4-40GB)"."""
    cards = _cards()
    if not isinstance(
        strategy, tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy
    ):
        return described([next(iter(cards), "CPU")], cards)
    names = [":".join(name.rsplit(":", 2)[1:]) for name in strategy.extended.worker_devices]
    return described(names, cards, workers=strategy.num_replicas_in_sync // len(names))


def say_devices(
    strategy: tf.distribute.Strategy, flag: str = "", file: TextIO | None = None
) -> None:
    """Prints where TensorFlow computes, and a line for cards that it could use and does not.

    Args:
        strategy: whose devices they are.
        flag: --strategy, for a command that has it.
        file: where the former goes; by default standard output.
    """
    print(f"devices: {devices(strategy)}", file=file, flush=True)
    for note in card_notes(flag):
        print(f"note: {note}", file=sys.stderr)


def _cards() -> dict[str, str]:
    """Models of the GPUs that TensorFlow sees, by its names of them."""
    details = tf.config.experimental.get_device_details
    return {
        f"GPU:{index}": details(card).get("device_name", "unknown")
        for index, card in enumerate(tf.config.list_physical_devices("GPU"))
    }


def described(names: Sequence[str], cards: Mapping[str, str], workers: int = 1) -> str:
    """One line on some devices.

    Args:
        names: of the devices, such as GPU:0; processors begin with CPU.
        cards: the model of each GPU by its name.
        workers: machines that have such devices.
    """
    processors = [name for name in names if name not in cards]
    parts = [f"{name} ({cards[name]})" for name in names if name in cards]
    if processors:
        count = cores()
        parts.append(f"{', '.join(processors)} ({count} {'core' if count == 1 else 'cores'})")
    return ", ".join(parts) + (f" on each of {workers} workers" if workers > 1 else "")


def card_notes(
    strategy: str,
    cards: Sequence[str] | None = None,
    has_card: Callable[[], bool] = has_nvidia_card,
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """A line for cards that TensorFlow could use and does not.

    Args:
        strategy: --strategy; empty for a command that has none.
        cards: names of the GPUs that TensorFlow sees; by default it is asked.
        has_card: whether the machine has one.
        environment: its CUDA_VISIBLE_DEVICES may hide them on purpose.
    """
    cards = list(_cards()) if cards is None else cards
    if len(cards) > 1 and strategy == "one":
        return [f"--strategy: one uses {cards[0]} of {len(cards)} GPUs; mirrored uses all of them"]
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if cards or hidden or not has_card():
        return []
    return [
        "this machine has an NVIDIA GPU that TensorFlow does not see, so the CPU computes; "
        "`pip install -r requirements-gpu.txt` (of the package: its extra `gpu`) installs CUDA "
        "for it, beside the driver"
    ]


def build(config: Config) -> tf.distribute.Strategy:
    """The strategy that a config names; call it before anything else uses TensorFlow.

    Raises:
        UsageError: devices that do not exist, or no TF_CONFIG for several workers.
    """
    prepare(config)
    if config.strategy == "mirrored":
        _make_logical_cpus(config.devices)
        available = [
            f"{d.device_type}:{d.name.split(':')[-1]}" for d in tf.config.list_logical_devices()
        ]
        missing = [device for device in config.devices if device not in available]
        if missing:
            raise UsageError(
                f"--devices: expected some of {', '.join(available)}; received {missing[0]!r}"
            )
        strategy = tf.distribute.MirroredStrategy(list(config.devices) or None)
    elif config.strategy == "multi_worker":
        _check_tf_config()
        with quiet():  # gRPC tells of each connection
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        return tf.distribute.get_strategy()
    return strategy


def check_batch(config: Config, strategy: tf.distribute.Strategy) -> None:
    """Raises UsageError if the batches of a training cannot be split as the config says."""
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % (replicas * config.microbatches):
        raise UsageError(
            f"--batch_size: expected a multiple of {replicas} replicas x {config.microbatches} "
            f"microbatches; received {config.batch_size}"
        )


def _make_logical_cpus(devices: tuple[str, ...]) -> None:
    """Splits the processor when more than one CPU device is asked for."""
    count = sum(device.startswith("CPU:") for device in devices)
    if count > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )


def _check_tf_config() -> None:
    expected = (
        "--strategy=multi_worker: expected TF_CONFIG in the environment, such as "
        '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
        '"task": {"type": "worker", "index": 0}}, where one of the workers may be a "chief"'
    )
    try:
        settings = json.loads(os.environ.get("TF_CONFIG", ""))
        cluster, task = settings["cluster"], settings["task"]
        addresses = cluster[task["type"]]
        valid = (
            cluster.keys() <= {"chief", "worker"}
            and all(isinstance(found, list) for found in cluster.values())
            and all(isinstance(address, str) for found in cluster.values() for address in found)
            and len(cluster.get("chief", [])) <= 1
            and 0 <= int(task["index"]) < len(addresses)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise UsageError(f"{expected}; received {os.environ.get('TF_CONFIG')!r}")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files: it is the chief, or the only one.

    The chief is the task of that name in TF_CONFIG, or the first worker where there is none.
    """
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when every worker has come here."""
    _exchange(strategy, "")


def from_chief(strategy: tf.distribute.Strategy, text: str) -> str:
    """The chief's text, on every worker."""
    return _exchange(strategy, text)[0]


def agree(strategy: tf.distribute.Strategy, facts: Mapping[str, Callable[[], str]]) -> None:
    """Compares what the workers know with what the chief does.

    Args:
        strategy: of the workers.
        facts: what gives each in a few words, by what it is called in a message; it is asked
            where there are several workers.

    Raises:
        UsageError: a worker has another fact than the chief; the same on every worker.
    """
    if not _has_workers(strategy):
        return
    with together(strategy):
        own = json.dumps({name: fact() for name, fact in facts.items()})
    chief, *others = map(json.loads, _exchange(strategy, own))
    for number, other in enumerate(others, start=1):
        for name in {**chief, **other}:
            expected, received = (which.get(name, "none") for which in (chief, other))
            if expected != received:
                raise UsageError(
                    f"--strategy=multi_worker: expected the chief's {name} on every worker, "
                    f"{expected}; received {received} on worker {number}"
                )


@contextlib.contextmanager
def together(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """What every worker does for itself; if it is an error on one, it is one on all.

    Raises:
        UsageError: that of this worker, or else that of the first one that has one.
    """
    found = None
    try:
        yield
    except UsageError as error:
        found = error
    reasons = _exchange(strategy, "" if found is None else str(found))
    if found is not None:
        raise found
    for number, reason in enumerate(reasons):
        if reason:
            raise UsageError(f"--strategy=multi_worker: worker {number} stopped: {reason}")


def _has_workers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _exchange(strategy: tf.distribute.Strategy, text: str) -> list[str]:
    """The text of each worker, the chief's first; returns when every worker has come here."""
    if not _has_workers(strategy):
        return [text]
    gather = _gatherer(strategy)
    encoded = np.frombuffer(text.encode(), np.uint8)
    own = np.array([len(encoded), *encoded], np.int32)
    parts = [gather(own[:_PART])]
    while len(parts) * _PART <= parts[0][:, 0].max():
        parts.append(gather(own[len(parts) * _PART :][:_PART]))
    rows = np.concatenate(parts, axis=1)
    return [row[1:][: row[0]].astype(np.uint8).tobytes().decode() for row in rows]


@functools.cache
def _gatherer(strategy: tf.distribute.Strategy) -> Callable[[np.ndarray], np.ndarray]:
    """What gives the numbers of every worker, the chief's first.

    They are int32 (_PART,), in which fewer are padded: what is of one shape is traced once.
    """
    cluster = strategy.cluster_resolver.cluster_spec()
    devices = strategy.num_replicas_in_sync // sum(map(cluster.num_tasks, cluster.jobs))

    @tf.function(autograph=False)
    def gather(values: tf.Tensor) -> tf.Tensor:
        return strategy.gather(strategy.run(lambda: values[tf.newaxis]), axis=0)

    def of_workers(values: np.ndarray) -> np.ndarray:
        rows = gather(tf.constant(np.pad(values, (0, _PART - len(values)))))
        return rows.numpy()[::devices]  # those of a worker's first device

    return of_workers


def distribute(strategy: tf.distribute.Strategy, dataset: Dataset, first_iteration: int) -> dict:
    """The data arguments of `fit`: each worker reads its own part of every batch."""
    replicas = strategy.num_replicas_in_sync
    # Without it Keras opens the data twice for each evaluation.  The last batches may be
    # empty on some replicas; they count nothing there.
    steps = {"validation_steps": -(-len(dataset.test_source) // dataset.settings.batch_size)}
    if replicas == 1:
        return {
            "x": dataset.train(first_iteration),
            "validation_data": dataset.evaluation(),
            **steps,
        }
    size = dataset.settings.batch_size // replicas

    def shard(context):
        return context.input_pipeline_id, context.num_input_pipelines

    def train(context):
        return dataset.train(first_iteration, shard=shard(context)).rebatch(size)

    def test(context):
        return dataset.evaluation(batch_size=size, shard=shard(context))

    return {
        "x": strategy.distribute_datasets_from_function(train),
        "validation_data": strategy.distribute_datasets_from_function(test),
        **steps,
    }


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns the loss of another worker into one line that says what to do."""
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
    ) as error:
        raise UsageError(
            "--strategy: expected every worker to go on; another worker stopped. Give the same "
            "command again on every worker; a training resumes from its last checkpoint"
        ) from error


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Builds layers in a mixed-precision policy: float32, bfloat16 or float16."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(name if name == "float32" else f"mixed_{name}")
    try:
        yield
    finally:
        # A policy once set ends that of floatx, unless it is taken back.
        own = before.name != tf.keras.backend.floatx()
        tf.keras.mixed_precision.set_global_policy(before if own else None)
