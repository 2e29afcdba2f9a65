"""--mode=export: the .tflite of a run, its check and what is known about it."""

import tensorflow as tf

from larq_adambnn.errors import UsageError
from larq_adambnn.export import describe
from larq_adambnn.runs import exporting, report, strategies
from larq_adambnn.runs.config import Config, named_run
from larq_adambnn.runs.directory import Run, locked

__all__ = ["main"]

# Settings of this command, which the run was not made with
_OWN = (
    "int8",
    "io_type",
    "int8_epochs",
    "check_images",
    "allow_float_fallback",
    "device_profile",
    "step",
    "best",
)


def main(config: Config) -> None:
    """Exports the run of a config (--run, or --output_dir).

    Raises:
        UsageError: as `export_run`; or the .tflite is not the same network.
    """
    exporting.check_installed()
    directory = config.run or config.output_dir
    run = Run(directory)
    run_config = named_run(
        config,
        **config.given("split"),
        **{name: getattr(config, name) for name in _OWN},
    )
    with locked(run):
        result = exporting.export_run(run, run_config)
        report.write(run, run_config)
    strategies.say_devices(tf.distribute.get_strategy())
    print("\n".join(describe(result)))
    if not result.check.passed:
        raise UsageError(
            f"{directory}/{result.file} does not compute what the network computes: "
            + "; ".join(result.check.failures)
        )
