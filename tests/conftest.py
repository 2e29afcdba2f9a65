"""Shared by the tests: Keras 2 before anything else, and quiet libraries."""

import contextlib
import faulthandler
import gc
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"
# Sums are rounded by the number of threads: the same one whatever the machine's cores are.
os.environ["TF_NUM_INTRAOP_THREADS"] = "2"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's would wait for each other beside others
# In the processes that follow, large tensors go back to the system when they are freed.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))

import exports
import filelock
import processes
import pytest
import small
import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.framework.config import disable_op_determinism

from larq_adambnn import machine, models, progress
from larq_adambnn.runs import training
from larq_adambnn.runs.config import parse
from larq_adambnn.runs.directory import Run

progress.show()  # as the command line does

_HANGS = 1200  # seconds after which a test is taken for one that never ends
_LONG = ("test_checkpoint", "test_golden", "test_strategies", "test_recipes")


def pytest_collection_modifyitems(items):
    """The files that take minutes go first, so that the processes end at the same time."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else 9)


@pytest.fixture(autouse=True)
def _ends():
    """A test that never ends says where it stands, and fails with its process."""
    faulthandler.dump_traceback_later(_HANGS, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same seed, in float32, without what a training switched on."""
    tf.keras.utils.set_random_seed(0)
    yield
    disable_op_determinism()
    tf.config.run_functions_eagerly(False)
    tf.keras.mixed_precision.set_global_policy(None)  # which follows floatx
    tf.keras.backend.set_floatx("float32")
    tf.keras.backend.clear_session()


@pytest.fixture(autouse=True, scope="module")
def _collected():
    """No file leaves its models behind for the next.

    TensorFlow registers the gradient of each traced call of a custom gradient for ever, and with
    it the graph and the weights that it has to do with.
    """
    yield
    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith("CustomGradient-")]:
        del gradients[name]
    gc.collect()
    gc.freeze()  # what is left stays, so that collecting what comes is quick
    machine.give_back()


@pytest.fixture
def eager():
    """Nothing is traced in one test; most of a short training would be tracing."""
    tf.config.run_functions_eagerly(True)


@pytest.fixture
def float64():
    """Layers compute in float64 for one test."""
    tf.keras.backend.set_floatx("float64")


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory):
    """A directory that all test processes have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def data_dir(shared_dir):
    """Where the tests prepare TFDS data sets."""
    return str(shared_dir / "data")


@contextlib.contextmanager
def _as_reactnet18(network):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._NETWORKS, "reactnet18", network)
        yield


@pytest.fixture(scope="module")
def tiny_network():
    """--model=reactnet18 is `exports.tiny` in a file that uses this."""
    with _as_reactnet18(exports.tiny):
        yield


@pytest.fixture(scope="module")
def small_network():
    """--model=reactnet18 is `small.network` in a file that uses this."""
    with _as_reactnet18(small.network):
        yield


@pytest.fixture(scope="session")
def digits_run(shared_dir, data_dir):
    """A finished run of `exports.tiny` that knows the digits; copy it before changing it."""
    directory = shared_dir / "digits_run"
    with filelock.FileLock(f"{directory}.lock"), _as_reactnet18(exports.tiny):
        if not directory.exists():  # another test process may have made it
            flags = ("--dataset=digits", f"--data_dir={data_dir}")
            exports.make_run(directory, *flags, train=exports.fit)
    return directory


def _trained(directory, data_dir, *flags):
    """A finished run of `small.network`; copy it before changing it."""
    flags = small.flags_of(directory, data_dir, *flags, "--nodeterministic")
    with filelock.FileLock(f"{directory}.lock"), _as_reactnet18(small.network):
        if not directory.exists():  # another test process may have made it
            tf.config.run_functions_eagerly(True)  # most of so short trainings would be tracing
            training.train(parse(flags))
            tf.config.run_functions_eagerly(False)
    return Run(directory)


@pytest.fixture(scope="session")
def two_step_run(shared_dir, data_dir):
    """A run with its own teacher, of three epochs a step."""
    flags = ("--epochs=3", "--loss=distribution", "--teacher=self", "--teacher_epochs=1")
    return _trained(shared_dir / "two_step_run", data_dir, *flags)


@pytest.fixture(scope="session")
def one_step_run(shared_dir, data_dir):
    """A run in one step, with another learning rate."""
    flags = ("--loss=cross_entropy", "--order=one_step", "--learning_rate=0.1")
    return _trained(shared_dir / "one_step_run", data_dir, *flags)


@pytest.fixture(scope="session")
def server():
    """Starts runs of the small network as processes of their own."""
    server = processes.Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser():
    """A browser for the pages that runs and studies leave behind."""
    import browsers  # Selenium, which not every set of versions has

    browser = browsers.Browser()
    yield browser
    browser.close()
