"""--mode=analyze: draws what a run's files allow into RUN/plots and its report."""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from larq_adambnn import layers
from larq_adambnn.analysis import figures, style, surfaces, toy
from larq_adambnn.callbacks.measurements import (
    binary_input,
    binary_kernels,
    latent_weights,
)
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import datasets, examination, provenance, report, strategies
from larq_adambnn.runs.config import Config, load_run, named_run
from larq_adambnn.runs.directory import Run, locked
from larq_adambnn.runs.recording import Snapshot, snapshots
from larq_adambnn.runs.students import build_student, load_student

__all__ = ["main"]

_SURFACE_IMAGES = 96  # whose losses at each point take most of the time
_ACTIVATION_IMAGES = 64

Drawn = Iterator[tuple[str, str, Figure]]  # (file name without its ending, caption, figure)


def main(config: Config) -> None:
    """Draws the figures of a run, one after the other, and writes its report again.

    Raises:
        UsageError: the run has no finished step, or one of its files cannot be read.
    """
    run = Run(config.run or config.output_dir)
    if run.last_step() == 0:
        raise UsageError(f"--run: expected a run with a finished step; {run.directory} has none")
    with locked(run):
        _draw(run, _Analysis(run, config))
    strategies.say_devices(tf.distribute.get_strategy(), file=sys.stderr)


def _draw(run: Run, analysis: "_Analysis") -> None:
    entries = []
    for draw in (
        analysis.surfaces,
        analysis.path,
        analysis.accuracies,
        analysis.activations,
        analysis.kernels,
        analysis.toy,
        analysis.weights,
        analysis.learning_rates,
    ):
        for name, caption, figure in draw():
            path = run.plots / f"{name}.png"
            with run.replace(path) as temporary:
                style.save(figure, temporary)
            print(path, flush=True)
            entries.append(report.Plot(path.name, caption))
    with run.replace(run.analysis) as path:
        path.write_text(json.dumps(list(map(dataclasses.asdict, entries)), indent=1))
    with run.replace(run.compared) as path:
        path.write_text(json.dumps(analysis.compared()))
    examination.examine(run, analysis.config, analysis.dataset)
    report.write(run, load_run(run.directory))
    print(run.report)
    print(run.page)


class _Analysis:
    """A run with its data set, its student and the runs it is compared with."""

    def __init__(self, run: Run, config: Config):
        self.run, self.resolution = run, config.resolution
        given = config.given("data_dir")
        self.config = named_run(config)
        self.others = {directory: load_run(directory, **given) for directory in config.compare}
        # Training images in a random order, prepared as for evaluation.
        dataset = datasets.load(self.config, provenance.read(run))
        plain = dataclasses.replace(dataset.settings, augment=False)
        self.dataset = dataclasses.replace(dataset, settings=plain)
        batch = self.dataset.train().unbatch().take(_SURFACE_IMAGES).batch(_SURFACE_IMAGES)
        self.images, self.labels = next(iter(batch))
        self.student = load_student(run, self.config, self.dataset)
        self.snapshots = [s for s in snapshots(run) if s.step <= run.last_step()]
        self.first = next(iter(binary_kernels(self.student)), None)

    @functools.cached_property
    def spare(self) -> tf.keras.Model:
        """A student that each figure gives the weights that it looks at."""
        return build_student(self.config, self.dataset)

    def compared(self) -> dict[str, list[dict[str, float]]]:
        """The rows of metrics.csv of the runs that this one is compared with, by their names."""
        return {self._name(directory): Run(directory).read_metrics() for directory in self.others}

    def _name(self, directory) -> str:
        return Run(directory).directory.resolve().name

    # Figure 1

    def surfaces(self) -> Drawn:
        networks = {**self._real_network(), self._title(self.student): self.student}
        found = {
            title: surfaces.loss_surface(
                model, self.images, self.labels, resolution=self.resolution
            )
            for title, model in networks.items()
        }
        depth = "; ".join(
            f"{title}: {surface['loss'].min():.3g} to {surface['loss'].max():.3g} nats"
            for title, surface in found.items()
        )
        yield (
            "loss_surface",
            f"Loss on {len(self.labels)} training images along two random, filter-normalized "
            f"directions from the trained weights. {depth}.",
            surfaces.draw_surfaces(found),
        )

    def _title(self, model: tf.keras.Model) -> str:
        binary = binary_kernels(model) and self.config.order != "real_valued"
        return "binary network" if binary else "real-valued network"

    def _real_network(self) -> dict[str, tf.keras.Model]:
        """The real-valued network to compare with: a teacher, or the first such run given."""
        if self.config.order == "real_valued":
            return {}
        candidates = [self.run.teacher(), *self.others]
        if self.config.loss != "cross_entropy":
            candidates = [*self.config.teacher, *candidates]
        for directory in candidates:
            run = Run(directory)
            if not run.flags.is_file() or run.last_step() == 0:
                continue
            config = load_run(directory)
            if config.order == "real_valued" and config.dataset == self.config.dataset:
                return {"real-valued network": load_student(run, config, self.dataset)}
        return {}

    def path(self) -> Drawn:
        if len(self.snapshots) < 2:
            return
        model = self.spare
        states, titles = [], []
        for snapshot in self.snapshots:
            snapshot.load(model)
            states.append([variable.numpy() for variable in model.trainable_variables])
            titles.append(f"step {snapshot.step}" if snapshot.epoch else "start")
        states.append([variable.numpy() for variable in self.student.trainable_variables])
        titles.append(f"step {self.run.last_step()}")
        found, figure = surfaces.trajectory(
            self.student,
            states,
            self.images,
            self.labels,
            titles=titles,
            resolution=self.resolution,
        )
        shares = " and ".join(f"{100 * share:.0f} %" for share in found["explained"])
        yield (
            "trajectory",
            f"The path of the training on the plane of its two principal components ({shares} of "
            "the squared distances to its end), over the loss of the final network there.",
            figure,
        )

    # Figures 2 and 8

    def accuracies(self) -> Drawn:
        series = {}
        for directory in (self.run.directory, *self.others):
            rows = Run(directory).read_metrics()
            values = np.array([100 * row.get("val_accuracy", np.nan) for row in rows])
            if not np.isnan(values).all():
                series[self._name(directory)] = values
        if len(series) > 1:
            _, figure = figures.curves(series, label=f"{self.config.split} accuracy (%)")
            last = ", ".join(
                f"{name} {values[~np.isnan(values)][-1]:.2f} %" for name, values in series.items()
            )
            caption = f"Accuracy on the {self.config.split} images by epoch. At the end: {last}."
            yield "compared_accuracy", caption, figure

    def learning_rates(self) -> Drawn:
        found: dict[str, dict[float, list[float]]] = {}
        for directory, config in {self.run.directory: self.config, **self.others}.items():
            rows = Run(directory).evaluated(len(config.steps))
            same = config.dataset == self.config.dataset and config.order != "real_valued"
            if rows and same:
                by_rate = found.setdefault(config.optimizer, {})
                accuracy = 100 * rows[-1]["val_accuracy"]
                by_rate.setdefault(config.learning_rate, []).append(accuracy)
        if any(len(by_rate) > 1 for by_rate in found.values()):
            split = self.config.split
            _, figure = figures.learning_rates(found, label=f"{split} accuracy (%)")
            yield "learning_rate", f"Final {split} accuracy against the learning rate.", figure

    # Figures 3, 4 and 5

    def _ends(self) -> dict[str, Snapshot]:
        """The first and the last snapshot after an epoch of each step."""
        found = {}
        for step in (1, 2):
            of_step = [s for s in self.snapshots if s.step == step and s.epoch]
            for snapshot in of_step[:1] + of_step[-1:]:
                found[str(snapshot)] = snapshot
        return found

    def activations(self) -> Drawn:
        if self.first is None or not self._ends():
            return
        model = self.spare
        inputs: dict[str, np.ndarray] = {}
        clips: dict[str, float] = {}
        for title, snapshot in self._ends().items():
            snapshot.load(model)
            layers.binarize(model, *self.config.steps[snapshot.step - 1])
            images = self.images[:_ACTIVATION_IMAGES]
            inputs[title], clips[title] = binary_input(model, images, self.first)
        found, figure = figures.activation_histograms(inputs, clips=clips)
        shares = ", ".join(f"{t} {100 * found[f'{t} (saturated)']:.1f} %" for t in inputs)
        yield (
            "activations",
            f"Inputs of {self.first}, the first binary layer, on {_ACTIVATION_IMAGES} training "
            f"images. Saturated: {shares}.",
            figure,
        )

    def kernels(self) -> Drawn:
        if self.first is None or not self._ends():
            return
        model = self.spare
        weights, updates = {}, {}
        for title, snapshot in self._ends().items():
            snapshot.load(model)
            weights[title] = binary_kernels(model)[self.first].numpy()
            updates[title] = snapshot.update()
        _, figure = figures.kernel_values(weights)
        yield (
            "weights",
            f"Latent weights of {self.first}, the first binary layer, with the mean absolute value "
            "of each output channel (CAM) and its standard deviation over them (SDAM).",
            figure,
        )
        _, figure = figures.kernel_values(updates, label="last update of the epoch (no unit)")
        yield (
            "updates",
            f"The same of the last update of {self.first}'s weights in an epoch.",
            figure,
        )

    # Figures 6 and 7

    def toy(self) -> Drawn:
        _, figure = toy.toy_surface()
        yield (
            "toy",
            "Two binary nodes, one of them mostly saturated: their true loss, that of the "
            "approximated gradient, and the paths of SGD and Adam (independent of the run).",
            figure,
        )

    def weights(self) -> Drawn:
        found, clips = {}, {}
        for step in range(1, self.run.last_step() + 1):
            if self.run.weights(step).is_file():
                model = load_student(self.run, self.config, self.dataset, step, into=self.spare)
                title = f"end of step {step}"
                found[title], clips[title] = latent_weights(model)
        for directory, config in self.others.items():
            run = Run(directory)
            if run.last_step() and config.dataset == self.config.dataset:
                title = self._name(directory)
                found[title], clips[title] = latent_weights(load_student(run, config, self.dataset))
        found = {title: weights for title, weights in found.items() if weights.size}
        if not found:
            return
        drawn, figure = figures.weight_histograms(found, clips=clips)
        peaks = "; ".join(
            f"{title}: peaks at {', '.join(f'{p:.2f}' for p in drawn[f'{title} (peaks)'])}"
            for title in found
        )
        yield "final_weights", f"Latent weights of all binary layers. {peaks}.", figure
