"""The paper's experiments as data: which runs each study consists of."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from larq_adambnn.errors import UsageError
from larq_adambnn.files import read_rows
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.recipes import BEST, PARTS

__all__ = ["CLAIMS", "OPTIMIZERS", "SWEEPS", "Claim", "Row", "matrix", "rows"]

_TWO_STEPS = {"order": "activations_first", "weight_decay": (5e-6, 0.0)}
OPTIMIZERS = {  # and the learning rates that are tried of each; AdamW without decay is Adam
    "adam": (3e-3, 1e-2, 3e-2, 1e-1),
    "sgd": (5e-2, 1.5e-1, 3e-1, 5e-1),
    "rmsprop": (3e-3, 1e-2, 3e-2),
    "amsgrad": (1e-2, 3e-2, 1e-1),
}
_TOGETHER = "the best together"
_RECIPE_RATES = (1e-2, 2e-2)
# The study by which the rates of another are chosen, on the images that are held out
SWEEPS = {"optimizers": "learning_rate", "recipes": "recipe_rates"}


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that is said: a column is higher in one row than in another."""

    text: str
    column: str
    higher: str
    lower: str


CLAIMS = {
    "optimizers": (
        Claim("Adam is above SGD, in one step", "top1", "adam one step", "sgd one step"),
        Claim("Adam is above SGD, in two steps", "top1", "adam two steps", "sgd two steps"),
        Claim("two steps are above one, with Adam", "top1", "adam two steps", "adam one step"),
        Claim("two steps are above one, with SGD", "top1", "sgd two steps", "sgd one step"),
        Claim(
            "less is saturated at the end with Adam",
            "saturation_last",
            "sgd one step",
            "adam one step",
        ),
        Claim("SDAM is lower with Adam", "sdam_first", "sgd one step", "adam one step"),
    ),
    "weight_decay": (
        Claim("FF rises from 0 to 5e-6", "ff_ratio", "one step 5e-06", "one step 0"),
        Claim("FF rises from 5e-6 to 1e-5", "ff_ratio", "one step 1e-05", "one step 5e-06"),
        Claim("FF rises from -1e-4 to 0", "ff_ratio", "one step 0", "one step -0.0001"),
        Claim("C2I falls from 0 to 5e-6", "c2i_step_ratio", "one step 0", "one step 5e-06"),
        Claim("C2I falls from 5e-6 to 1e-5", "c2i_step_ratio", "one step 5e-06", "one step 1e-05"),
        Claim("C2I falls from -1e-4 to 0", "c2i_step_ratio", "one step -0.0001", "one step 0"),
        Claim("two steps flip less than one", "ff_ratio", "one step 5e-06", "two steps 5e-06, 0"),
        Claim("two steps are above one", "top1", "two steps 5e-06, 0", "one step 5e-06"),
    ),
    "order": (
        Claim(
            "activations first is above weights first", "top1", "activations first", "weights first"
        ),
        Claim("activations first is above one step", "top1", "activations first", "one step"),
    ),
    "recipes": tuple(
        Claim(f"{name} is above the paper's recipe", "top1", name, "paper")
        for name in (*(part.name for part in PARTS), _TOGETHER)
    ),
    "learning_rate": (),
    "recipe_rates": (),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a study's table: runs that differ in their seed alone.

    Attributes:
        name: what the line is called.
        arm: what has a learning rate of its own: an optimizer or a recipe.
        changes: settings other than the study's.
        paper: the paper's ImageNet figures by column.
    """

    name: str
    arm: str
    changes: dict
    paper: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def directory(self) -> str:
        """The name of the directory of the line's runs."""
        return self.name.replace(" ", "_").replace(",", "")

    def teacher(self, study: Config) -> tuple[str, ...]:
        """What --teacher names."""
        return self.changes.get("teacher", study.teacher)

    def config(self, study: Config, seed: int, own: Sequence[str]) -> Config:
        """The run of the line with a seed, which sees no test image.

        Args:
            study: its settings.
            seed: of the run.
            own: run directories, each taken for a self of --teacher; with none they stay.
        """
        trained = iter(own)
        changes = {
            **self.changes,
            "teacher": tuple(
                next(trained, name) if name == "self" else name for name in self.teacher(study)
            ),
        }
        return study.replace(
            mode="train",
            study="",
            sweep="",
            rows=(),
            seed=seed,
            export=False,
            split="held_out",
            output_dir=str(pathlib.Path(study.output_dir, "runs", self.directory, f"seed{seed}")),
            **changes,
        )


def rows(config: Config) -> list[Row]:
    """The matrix of the study that a config names, or those of its lines that `--rows` names.

    Raises:
        UsageError: `--rows` names another line, or `--sweep` is no study by which the rates
            can be chosen, or its table is damaged.
    """
    every = matrix(config)
    names = [row.directory for row in every]
    for name in config.rows:
        if name not in names:
            raise UsageError(f"--rows: expected some of {', '.join(names)}; received {name!r}")
    chosen = [row for row in every if not config.rows or row.directory in config.rows]
    for row in chosen:
        if row.changes["learning_rate"] is None:
            raise UsageError(
                f"--sweep: expected a {_sweep(config)} study with a rate for each row; "
                f"{config.sweep} has none for {row.name}"
            )
    return chosen


def matrix(config: Config) -> list[Row]:
    """All rows of a study; the rate of one of which `--sweep` has none is None."""
    return {
        "learning_rate": _learning_rate,
        "optimizers": _optimizers,
        "weight_decay": _weight_decay,
        "order": _order,
        "recipe_rates": _recipe_rates,
        "recipes": _recipes,
    }[config.study](config)


def _one_step(config: Config) -> dict:
    """A step has the given epochs; a training in one step gets as many as both together."""
    return {"order": "one_step", "weight_decay": (0.0, 0.0), "epochs": 2 * config.epochs}


def _learning_rate(config: Config) -> list[Row]:
    sweep = {"order": "one_step", "weight_decay": (0.0, 0.0)}
    return [
        Row(f"{name} {rate:g}", name, {**sweep, "optimizer": name, "learning_rate": rate})
        for name, rates in OPTIMIZERS.items()
        for rate in rates
    ]


def _optimizers(config: Config) -> list[Row]:
    rates = _best_rates(config)
    paper = {
        "adam one step": {
            "top1": 61.49,
            "saturation_first": 35.5,
            "saturation_last": 23.8,
            "sdam_first": 5.6e-3,
        },
        "sgd one step": {
            "top1": 58.98,
            "saturation_first": 42.5,
            "saturation_last": 38.6,
            "sdam_first": 6.2e-3,
        },
        "adam two steps": {"top1": 63.23},
        "sgd two steps": {"top1": 61.25},
    }
    return [
        Row(
            f"{name} {steps}",
            name,
            {
                **changes,
                "optimizer": name,
                "learning_rate": rates.get(name.replace("adamw", "adam")),
            },
            paper.get(f"{name} {steps}", {}),
        )
        for steps, changes, others in (
            ("one step", _one_step(config), ()),
            ("two steps", _TWO_STEPS, ("adamw",)),
        )
        for name in (*OPTIMIZERS, *others)
    ]


def _weight_decay(config: Config) -> list[Row]:
    adam, one_step = _adam(config), _one_step(config)
    decays = (  # Table 1
        (one_step, (1e-5,), 2.33e-3, 0.481, 61.73),
        (one_step, (5e-6,), 1.62e-3, 0.496, 61.89),
        (one_step, (0.0,), 2.86e-4, 0.524, 61.49),
        (one_step, (-1e-4,), 1.07e-7, 0.974, 26.21),
        (_TWO_STEPS, (1e-5, 0.0), 4.89e-4, 0.632, 62.63),
        (_TWO_STEPS, (5e-6, 0.0), 4.50e-4, 0.664, 63.23),
    )
    return [
        Row(
            f"{'one step' if len(decay) == 1 else 'two steps'} "
            f"{', '.join(f'{value:g}' for value in decay)}",
            "adam",
            {**adam, **changes, "weight_decay": (decay * 2)[:2]},
            {"ff_ratio": ff, "c2i_step_ratio": c2i, "top1": top1},
        )
        for changes, decay, ff, c2i, top1 in decays
    ]


def _order(config: Config) -> list[Row]:
    adam = _adam(config)
    weights_first = {**adam, **_TWO_STEPS, "order": "weights_first"}
    return [
        Row("activations first", "adam", {**adam, **_TWO_STEPS}, {"top1": 63.23}),
        Row("weights first", "adam", weights_first, {"top1": 60.30}),
        Row("one step", "adam", {**adam, **_one_step(config)}, {"top1": 61.49}),
    ]


def _recipe_table(config: Config) -> dict[str, dict]:
    """The recipes by name: the paper's, each part added to it, and the best parts together."""
    found = {"paper": {}, **{part.name: dict(part.settings) for part in PARTS}}
    found[_TOGETHER] = {k: v for name in BEST for k, v in found[name].items()}
    return {
        name: {
            **_TWO_STEPS,
            **changes,
            "epochs": config.epochs * (2 if "order" in changes else 1),
        }
        for name, changes in found.items()
    }


def _recipe_rates(config: Config) -> list[Row]:
    return [
        Row(f"{name} {rate:g}", name, {**changes, "learning_rate": rate})
        for name, changes in _recipe_table(config).items()
        for rate in _RECIPE_RATES
    ]


def _recipes(config: Config) -> list[Row]:
    rates = _best_rates(config)
    return [
        Row(name, name, {**changes, "learning_rate": rates.get(name)})
        for name, changes in _recipe_table(config).items()
    ]


def _adam(config: Config) -> dict:
    """Adam at its rate: the best of the sweep, or --learning_rate."""
    rate = _best_rates(config).get("adam") if config.sweep else config.learning_rate
    return {"optimizer": "adam", "learning_rate": rate}


def _sweep(config: Config) -> str:
    return SWEEPS.get(config.study, "learning_rate")


def _best_rates(config: Config) -> dict[str, float]:
    """Each arm's learning rate that is best on the images held out, in the study of --sweep.

    An arm that has no rate which finished with every seed is left out.
    """
    if not config.sweep:
        raise UsageError(
            f"--sweep: expected the directory or the study.csv of a {_sweep(config)} study, since "
            "each row needs its own rate; received nothing"
        )
    found: dict[str, dict[float, list[float]]] = {}
    for row in read_rows(config.sweep_file, required=("arm", "learning_rate")):
        # A rate that diverges with one seed is not a good one, whatever the others give.
        texts = row["learning_rate"], row.get("validation", "")
        try:
            rate, accuracy = float(texts[0]), float(texts[1] or -np.inf)
        except ValueError as error:
            raise UsageError(f"{config.sweep_file}: expected numbers: {error}") from None
        if not 0 < rate < np.inf or not accuracy <= 100:
            raise UsageError(
                f"{config.sweep_file}: expected rates above 0 and accuracies up to 100; received "
                f"{texts[0]} with {texts[1]!r}"
            )
        if row.get("row") not in (None, f"{row['arm']} {rate:g}"):
            raise UsageError(
                f"--sweep: expected a {_sweep(config)} study, with a row such as "
                f"'{row['arm']} {rate:g}'; {config.sweep} has {row['row']!r}"
            )
        found.setdefault(row["arm"], {}).setdefault(rate, []).append(accuracy)
    best = {}
    for name, rates in found.items():
        means = {rate: np.mean(values) for rate, values in rates.items()}
        rate = max(means, key=means.get)
        if means[rate] > -np.inf:
            best[name] = rate
    return best
