"""The parts that a recipe may have beside the paper's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["BEST", "PARTS", "Part"]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a training; the network that it gives has the same operators.

    Attributes:
        name: in a few words.
        settings: of a `Config` that add it to any other, with values to begin from.
        source: where it comes from.
    """

    name: str
    settings: Mapping[str, Any]
    source: str


PARTS = (
    Part(
        "warm-up and cosine",
        {"schedule": "cosine", "warmup": 0.1},
        "SGDR (arXiv 1608.03983); 5 of 512 epochs in BNext (arXiv 2211.12933)",
    ),
    Part("wider sign gradient", {"activation_clip": 2.5}, "PokeBNN (arXiv 2112.00133)"),
    Part("wider weight gradient", {"weight_clip": 1.5}, "BNext (arXiv 2211.12933)"),
    Part(
        "labels beside the teacher",
        {"loss": "weighted_sum", "label_weight": 0.7},
        "Hinton et al. (arXiv 1503.02531)",
    ),
    Part(
        "label smoothing",
        {"loss": "weighted_sum", "label_smoothing": 0.1},
        "Szegedy et al. (arXiv 1512.00567, section 7)",
    ),
    Part("gradient clipping", {"clip_norm": 1}, "Pascanu et al. (arXiv 1211.5063)"),
    Part("raised gradients", {"gradient_floor": 0.04}, "OvSW (arXiv 2407.05257)"),
    Part(
        "decay of silent weights",
        {"silent_decay": 9e-4, "silent_iterations": 100},
        "OvSW (arXiv 2407.05257)",
    ),
    Part(
        "sign descent",
        {"optimizer": "diode", "diode_momenta": (0.95, 0.997)},
        "Diode (Guo et al., ECCV 2024)",
    ),
    Part("averaged weights", {"ema": 0.99}, "Polyak and Juditsky, 1992"),
    Part(
        "averaged weights and batch norm computed anew",
        {"ema": 0.99, "batch_norm_batches": 20},
        "SWA (arXiv 1803.05407, section 3.2)",
    ),
    Part(
        "batch norm computed anew",
        {"batch_norm_batches": 20},
        "Nagel et al. (arXiv 2203.11086, section 4)",
    ),
    Part(
        "several teachers by image",
        {"teacher": ("self", "self")},
        "BNext (arXiv 2211.12933)",
    ),
    Part(
        "step 1 as the teacher of step 2",
        {"step2_teacher": "step1"},
        "Real-to-Binary (arXiv 2003.11535, section 4.2)",
    ),
    Part(
        "attention matching",
        {"attention": 30},
        "Real-to-Binary (arXiv 2003.11535, section 4.2)",
    ),
    Part(
        "the teacher's weights",
        {"init_from": "teacher"},
        "Bi-Real Net (arXiv 1808.00278) begins with a trained real-valued network",
    ),
    Part("one step", {"order": "one_step"}, "PokeBNN, QuickNet (larq-zoo)"),
    Part("progressive weights", {"order": "progressive"}, "BNext (arXiv 2211.12933)"),
)
# Those of configs/recipe_best.cfg, see docs/recipes.md
BEST = (
    "one step",
    "the teacher's weights",
    "warm-up and cosine",
    "wider sign gradient",
    "labels beside the teacher",
)
