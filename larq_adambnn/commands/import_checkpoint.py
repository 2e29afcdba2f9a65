"""--mode=import: a PyTorch checkpoint becomes a run like any other."""

from larq_adambnn import checkpoints, weights
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import datasets, provenance, students
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import open_run

__all__ = ["main"]


def main(config: Config) -> None:
    """Writes a run directory with the weights of --source, or nothing if they do not fit.

    Raises:
        UsageError: the file is no checkpoint of this network, or torch is missing.
    """
    dataset = datasets.without_images(config)
    class_names, channels = dataset.class_names, dataset.preparation.channels
    try:
        state_dict = checkpoints.load_torch(config.source)
        _check_classes(config, state_dict, len(class_names))
        model = students.build(config, channels, len(class_names))
        checkpoints.load_state_dict(model, state_dict)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(f"--source: {error}") from error
    step = config.import_step or len(config.steps)
    with open_run(config) as run, run.replace(run.weights(step)) as path:
        provenance.write(run, provenance.of(dataset, trained=False))
        weights.save(model, path)
    zeros, binary = checkpoints.count_zeros(model)
    print(
        f"{config.model}, {model.count_params():,} parameters, {len(class_names)} classes: "
        f"{config.output_dir} holds the end of its step {step}"
    )
    if zeros:
        print(f"{zeros:,} of {binary:,} binary weights are 0: PyTorch's sign is 0 there, here +1")
    elif binary:
        print(f"none of the {binary:,} binary weights is 0, so every sign is PyTorch's")


def _check_classes(config: Config, state_dict, classes: int) -> None:
    bias = state_dict.get("fc.bias")
    if bias is not None and bias.shape != (classes,):
        raise UsageError(
            f"--dataset: expected {bias.size} classes, as {config.source} has; {config.dataset} "
            f"has {classes} (import it with the name of its own data set; --init_from then takes "
            "it to others)"
        )
