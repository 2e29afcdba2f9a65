"""data.json: what a run was trained on and by whom it was taught, so that another is noticed."""

import dataclasses
import json
import math

from larq_adambnn.data import Dataset, Description
from larq_adambnn.data.catalog import class_changes
from larq_adambnn.errors import UsageError
from larq_adambnn.files import read_json
from larq_adambnn.runs.directory import Run

__all__ = ["Provenance", "check_same", "of", "read", "write"]

_DIGEST = 64  # characters of a checksum, which says nothing to a reader


@dataclasses.dataclass(frozen=True)
class Provenance(Description):
    """What a run was trained on.

    Attributes:
        dataset: its name.
        split: the one that the training is evaluated on, and its best weights chosen by.
        examples: the fingerprint (see `Source`) of the training split and of that one; empty
            if the run was imported.
        teacher: SHA-256 of the weights of a teacher that was given; empty if there is none, or
            if it was trained in the run.
    """

    dataset: str
    split: str = ""
    examples: dict[str, dict[str, int | str]] = dataclasses.field(default_factory=dict)
    teacher: str = ""


def of(dataset: Dataset, *, trained: bool = True, teacher: str = "") -> Provenance:
    """The provenance of a run on a data set.

    Args:
        dataset: of a training, whose files' sizes are read then.
        trained: False if the weights were imported; then it need not have images.
        teacher: see `Provenance`.
    """
    preparation = dataset.preparation
    split = dataset.split_name() if trained else ""
    splits = ("train", split) if trained else ()
    return Provenance(
        dataset=dataset.name,
        class_names=dataset.class_names,
        channels=preparation.channels,
        mean=preparation.mean,
        std=preparation.std,
        split=split,
        examples={name: dataset.source(name).fingerprint() for name in splits},
        teacher=teacher,
    )


def read(run: Run) -> Provenance | None:
    """What a run remembers; None if it was made before runs did.

    Raises:
        UsageError: its data.json is damaged.
    """
    if not run.data.exists():
        return None
    found = read_json(run.data, Provenance, "what a training wrote")
    if not _is_sound(found):
        raise UsageError(
            f"{run.data}: expected what a training wrote: its values do not fit each other"
        )
    return found


def _is_sound(found: Provenance) -> bool:
    numbers = [parts.get("examples") for parts in found.examples.values()]
    return (
        bool(found.class_names)
        and len(found.mean) == len(found.std) == found.channels
        and all(map(math.isfinite, (*found.mean, *found.std)))
        and min(found.std) > 0
        and set(found.examples) in (set(), {"train", found.split})
        and all(isinstance(number, int) for number in numbers)
    )


def write(run: Run, provenance: Provenance) -> None:
    """Replaces a run's data.json, whole or not at all."""
    with run.replace(run.data) as path:
        text = json.dumps(dataclasses.asdict(provenance), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def check_same(run: Run, before: Provenance, now: Provenance) -> None:
    """Raises UsageError with the first difference if a run would go on with other data.

    Or with another teacher, where both are known.
    """
    if before.teacher and now.teacher not in ("", before.teacher):
        raise UsageError(
            f"--teacher: expected the weights that {run.directory} was begun with (SHA-256 "
            f"{before.teacher[:12]}...) to resume it, or another --output_dir; received others "
            f"({now.teacher[:12]}...)"
        )
    difference = _difference(before, now)
    if difference:
        was, received = difference
        raise UsageError(
            f"--output_dir: {run.directory} holds a run on {was}; expected the same data to resume "
            f"it, or another directory; received {received}"
        )


def _difference(before: Provenance, now: Provenance) -> tuple[str, str] | None:
    """What the run was trained on, and what is there now instead."""
    if changes := class_changes(before.class_names, now.class_names):
        return f"{len(before.class_names)} classes", f"them {changes}"
    if now.split != before.split:
        return f"data evaluated on {before.split}", f"data evaluated on {now.split}"
    for split, parts in before.examples.items():
        whole = f"{parts['examples']:,} examples of {split}"
        for part, value in parts.items():
            other = now.examples[split].get(part)
            if other == value:
                continue
            if part == "examples":
                return whole, f"{other:,}"
            if len(str(value)) == _DIGEST:
                return whole, f"as many with other {part}"
            return f"{split} with {part} {value}", f"{part} {other}"
    for name in ("channels", "mean", "std"):
        value, other = getattr(before, name), getattr(now, name)
        if value != other:
            return f"images with {name}={value}", f"{name}={other}"
    return None
