"""Runs of main.py with the small network, and of other programs of the tests, as real processes
that begin with their imports done.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

SMALL = pathlib.Path(__file__).with_name("small.py")


class Server:
    """A process that forks one for each run (`small.serve`).

    Args:
        environment: variables that have to be set when TensorFlow is imported.
    """

    def __init__(self, environment=None):
        self._process = subprocess.Popen(
            [sys.executable, SMALL, "serve"],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"

    def start(self, *arguments, program=None, environment=None, cwd=".", eager=False) -> "Process":
        """Starts main.py, or another program of Python, with arguments in a working directory.

        Most of a short training is tracing, which an eager main.py does without.
        """
        return Process(
            self,
            arguments=list(map(str, arguments)),
            program=program and str(program),
            environment=environment or {},
            cwd=os.path.abspath(cwd),
            eager=eager,
        )

    def ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


class Process:
    """One run; its output goes to files."""

    def __init__(self, server, **request):
        self._server, self.status = server, None
        self._folder = tempfile.TemporaryDirectory()
        for name in ("out", "err"):
            pathlib.Path(self._folder.name, name).touch()
        self._number = server.ask(folder=self._folder.name, **request)

    @property
    def out(self) -> str:
        return pathlib.Path(self._folder.name, "out").read_text()

    @property
    def err(self) -> str:
        return pathlib.Path(self._folder.name, "err").read_text()

    def running(self) -> bool:
        if self.status is None:
            self.status = self._server.ask(poll=self._number)
        return self.status is None

    def finish(self, timeout: float = 300) -> tuple[int, str, str]:
        """(status, standard output, standard error) when it has ended."""
        self.wait_until(lambda: False, timeout)
        return self.status, self.out, self.err

    def wait_for(self, text: str) -> str:
        """The first line with a text that it prints."""

        def found():
            return [line for line in self.out.splitlines(keepends=True) if text in line]

        self.wait_until(lambda: any(line.endswith("\n") for line in found()))
        assert found(), f"ended without {text!r}: {self.out} {self.err}"
        return found()[0].rstrip()

    def wait_until(self, condition, timeout: float = 300) -> None:
        """Returns when a condition holds or the process has ended."""
        end = time.monotonic() + timeout
        while not condition() and self.running():
            assert time.monotonic() < end, f"still running after {timeout} s: {self.err}"
            time.sleep(0.02)

    def send_signal(self, number: int) -> None:
        if self.running():
            os.kill(self._number, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.finish()
