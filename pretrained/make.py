"""Trains the networks of this folder, or takes a finished run of the same settings, and packs them.

    python pretrained/make.py                                         # all, by way of runs/pretrained
    python pretrained/make.py fashion_mnist --run=runs/mine           # one, from its finished run

A packed network is a run directory of what is needed: every command takes it as --run.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import h5py  # noqa: E402
import numpy as np  # noqa: E402

from larq_adambnn import commands, inference, models, weights  # noqa: E402
from larq_adambnn.export import description  # noqa: E402
from larq_adambnn.files import add_sum  # noqa: E402
from larq_adambnn.runs import datasets, provenance, students  # noqa: E402
from larq_adambnn.runs.config import Config, load_run  # noqa: E402
from larq_adambnn.runs.directory import Run  # noqa: E402

HERE = ROOT / "pretrained"
FILES = ("model.tflite", "model_int8.tflite")


@dataclasses.dataclass(frozen=True)
class Network:
    """How a network is trained, and what its card says of the data."""

    flags: tuple[str, ...]
    title: str
    data: str
    licence: str
    limits: str
    class_names: tuple[str, ...] = ()  # where the data has numbers only


NETWORKS = {
    "digits": Network(
        (
            "--flagfile=configs/base.cfg",
            "--dataset=digits",
            "--image_size=32",
            "--crop=padded",
            "--noflip",
            "--model=reactnet18",
            "--stem_stride=2",
            "--width=0.25",
            "--batch_size=32",
            "--learning_rate=2.5e-3",
            "--epochs=14",
            "--teacher=self",
            "--teacher_epochs=6",
        ),
        "Handwritten digits",
        "scikit-learn's digits, 1,797 real images of 8 x 8 pixels (UCI's Optical Recognition of Handwritten "
        "Digits, the part written by 13 people), enlarged to 32 x 32; 1,437 to learn from, 360 to test with",
        "of the data: CC BY 4.0 (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository)",
        "One digit in an image, light on dark, upright, as large as the image. Photographs of digits, other "
        "scripts and empty images get one of the ten classes all the same",
    ),
    "fashion_mnist": Network(
        ("--flagfile=configs/recipe_best.cfg", "--epochs=8", "--teacher_epochs=4", "--seed=100"),
        "Clothes (Fashion-MNIST)",
        "Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747), 60,000 grey images of 28 x 28 pixels to learn "
        "from and 10,000 to test with, enlarged to 48 x 48",
        "of the data: MIT (Zalando SE)",
        "One piece of clothing in an image, light on black, from the front, as large as the image, as a shop "
        "shows it. Photographs of people, and all that is not one of the ten classes, get one of them all the "
        "same. Shirts, T-shirts, pullovers and coats are mixed up most",
        (
            "T-shirt",
            "trousers",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
}


def wilson(right: int, images: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share, as E. B. Wilson has it."""
    share, scale = right / images, 1 + z**2 / images
    middle = (share + z**2 / (2 * images)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return middle - half, middle + half


def pack(name: str, run: Run) -> None:
    """Writes the folder of a network from its finished run."""
    config = load_run(run.directory, mode="train")
    dataset = datasets.load(config, provenance.read(run))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoints").mkdir(parents=True)
    path = Run(folder).weights(len(config.steps))
    weights.save(students.load_student(run, config, dataset), path)
    _halve(path)
    data_dir = config.data_dir if config.dataset == "idx" else ""
    packed = dataclasses.replace(config, output_dir=f"pretrained/{name}", data_dir=data_dir)
    (folder / "flags.cfg").write_text("\n".join(packed.lines()) + "\n")
    shutil.copy(run.directory / "data.json", folder)
    names = (name for name in models.options(config.model) if getattr(config, name, 0))
    options = {name: getattr(config, name) for name in names}
    known = {
        "weights": str(path.relative_to(folder)),
        "model": config.model,
        "options": options,
        "class_names": NETWORKS[name].class_names or dataset.class_names,
        "preparation": dataclasses.asdict(dataset.preparation),
    }
    (folder / "network.json").write_text(json.dumps(known, indent=1) + "\n")
    for flags in ((), ("--int8",)):
        export = ["--mode=export", f"--run={folder}", f"--data_dir={config.data_dir}", *flags]
        if commands.main(export):
            raise SystemExit(f"{name} could not be exported")
    for path in map(description.info_path, (folder / file for file in FILES)):
        told = dataclasses.replace(description.read(path), class_names=list(known["class_names"]))
        path.write_text(told.to_json())
    for left in (".lock", "report.md", "plots"):
        _remove(folder / left)
    (folder / "README.md").write_text(_card(name, config, dataset, known["class_names"], folder))


def _halve(path: pathlib.Path) -> None:
    """Rounds the weights in a file to float16, by which it takes half the space."""
    with h5py.File(path, "r") as file:
        content, attributes = {}, {"": dict(file.attrs)}

        def visit(key, item):
            attributes[key] = dict(item.attrs)
            if isinstance(item, h5py.Dataset):
                content[key] = item[()]

        file.visititems(visit)
    with h5py.File(path, "w") as file:
        for key in attributes:
            if key and key not in content:
                file.create_group(key)
        for key, values in content.items():
            half = values.astype(np.float16) if values.dtype == np.float32 else values
            file.create_dataset(key, data=half)
        for key, values in attributes.items():
            (file[key] if key else file).attrs.update(values)
    add_sum(path)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _card(name: str, config: Config, dataset, class_names, folder: pathlib.Path) -> str:
    network = NETWORKS[name]
    rows = []
    for file in FILES:
        accuracy = inference.evaluate((folder / file).read_bytes(), dataset)
        low, high = wilson(round(accuracy.top1 * accuracy.images), accuracy.images)
        rows.append(
            f"| `{name}/{file}` | {os.path.getsize(folder / file):,} bytes | {100 * accuracy.top1:.2f} % | "
            f"{100 * low:.2f} to {100 * high:.2f} % |"
        )
    steps = "in two steps" if len(config.steps) == 2 else "in one step"
    epochs = f"{config.teacher_epochs or config.epochs} and {len(config.steps)} x {config.epochs}"
    used = f"{len(dataset.train_source):,} of them"
    return "\n".join(
        [
            f"# {network.title}",
            "",
            f"A binary {config.model} of {config.width:g} of the width for {dataset.preparation.image_size} x "
            f"{dataset.preparation.image_size} images of {dataset.preparation.channels} channel, with the classes "
            f"{', '.join(class_names)}.",
            "",
            f"| file | size | top-1 on {len(dataset.source('test')):,} test images | 95 % interval (Wilson) |",
            "|---|--:|--:|--:|",
            *rows,
            "",
            f"- **Data**: {network.data}; trained on {used}.",
            f"- **Recipe**: {steps}, the network's real-valued form as the teacher; {epochs} epochs (teacher, and network) "
            f"of batches of {config.batch_size}, learning rate {config.learning_rate:g}, seed {config.seed}: "
            f"`{' '.join(network.flags)}`. `flags.cfg` has every setting.",
            f"- **Command**: `python pretrained/make.py {name}`.",
            "- **Weights**: `checkpoints/*.weights.h5`, in Keras's format, rounded to float16 before the export.",
            f"- **Limits**: {network.limits}.",
            f"- **Licence**: of the network Apache 2.0, {network.licence}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", choices=[*NETWORKS, []], help="networks; all by default"
    )
    parser.add_argument("--run", help="a finished run of the one network that is named")
    given = parser.parse_args()
    os.chdir(ROOT)
    if given.run and len(given.names) != 1:
        parser.error("expected the name of one network with --run")
    for name in given.names or NETWORKS:
        run = given.run or f"runs/pretrained/{name}"
        if not given.run and commands.main([*NETWORKS[name].flags, f"--output_dir={run}"]):
            raise SystemExit(f"{name} could not be trained")
        pack(name, Run(run))


if __name__ == "__main__":
    main()
