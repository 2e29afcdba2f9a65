"""Processes of their own, whose libraries say nothing on the terminal."""

import concurrent.futures
import importlib
import multiprocessing
import os
import pathlib
import sys

from larq_adambnn.machine import import_tensorflow

__all__ = ["pool", "start"]


def pool(core: int | None = None) -> concurrent.futures.ProcessPoolExecutor:
    """One process that works for this one, as `concurrent.futures` does.

    Args:
        core: the only one it may use, from its start.  TensorFlow there starts as many threads as
            a core takes; those of a process that is moved to one core hand work to each other.
    """
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, context, _begin, (core,))


def _begin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    import_tensorflow()


def start(log: pathlib.Path, name: str, *arguments) -> multiprocessing.Process:
    """Starts a function in a process that writes to a file, after what the file has.

    Args:
        log: the file; its directory is made.
        name: "module:function"; so that the file has what importing the module says, too.
        arguments: of the function.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(log, name, arguments))
    process.start()
    return process


def _run(log: pathlib.Path, name: str, arguments: tuple) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    module, function = name.split(":")
    getattr(importlib.import_module(module), function)(*arguments)
