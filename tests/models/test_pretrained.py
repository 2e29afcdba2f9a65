"""The trained networks that come with the package: whole, small, and as accurate as they say."""

import json
import pathlib
import re

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from larq_adambnn import commands, data, inference, layers, models
from larq_adambnn.export import description

FOLDER = pathlib.Path(__file__).parents[2] / "pretrained"
FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
TESTED = {"digits": 360, "fashion_mnist": 1000}  # images; the interval is that of all


@pytest.fixture(scope="module", params=models.PRETRAINED)
def network(request, data_dir):
    """(name, what `pretrained` gives, the data set)."""
    name = request.param
    if name == "fashion_mnist" and not FASHION.is_dir():
        pytest.skip(f"{FASHION} is not there (apt-get install dataset-fashion-mnist)")
    source, where, crop = {
        "digits": ("digits", data_dir, "padded"),
        "fashion_mnist": ("idx", str(FASHION), "none"),
    }[name]
    known = models.pretrained(name)
    size = known.preparation.image_size
    dataset = data.load(source, where, image_size=size, crop=crop)
    return name, known, dataset


def card(name):
    """By file: the size, the accuracy and its interval that the card tells."""
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    row = r"\| `\w+/(\S+)` \| ([\d,]+) bytes \| (\S+) % \| (\S+) to (\S+) % \|"
    return {
        file: (int(size.replace(",", "")), *map(float, numbers))
        for file, size, *numbers in re.findall(row, text)
    }


def logits(network, images):
    return np.concatenate(list(inference.logits(network, [images])))


@pytest.mark.parametrize("file", ["model.tflite", "model_int8.tflite"])
def test_a_file_is_small_and_as_accurate_as_its_card_says(network, file):
    name, (_, class_names, preparation), dataset = network
    path = FOLDER / name / file
    size, accuracy, low, high = card(name)[file]
    assert path.stat().st_size == size < 500_000
    assert low < accuracy < high
    known = description.find(path, path.read_bytes())
    assert known.check.failures == ()
    assert tuple(known.class_names) == class_names
    assert len(class_names) == len(dataset.class_names)
    assert known.preprocessing.preparation == preparation
    images, labels = dataset.examples(TESTED[name])
    found = logits(path.read_bytes(), images).argmax(-1)
    right = 100 * np.mean(found == labels)
    # of fewer images the share varies by so much more, which three deviations allow for
    deviation = 100 * np.sqrt(accuracy / 100 * (1 - accuracy / 100) / len(labels))
    assert abs(right - accuracy) <= (0.01 if len(labels) == 360 else 3 * deviation)


def test_the_weights_are_those_of_the_file(network):
    name, (model, class_names, preparation), dataset = network
    assert layers.binarization(model) == (True, True)
    assert model.output_shape == (None, len(class_names))
    assert preparation == dataset.preparation
    images, _ = dataset.examples(32)
    tflite = logits((FOLDER / name / "model.tflite").read_bytes(), images)
    np.testing.assert_allclose(model.predict(images, verbose=0), tflite, atol=0.02)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"^Expected name to be one of digits, fashion_mnist"):
        models.pretrained("imagenet")


def test_predict_finds_it_anywhere(tmp_path, monkeypatch, capsys):
    """As after an installation, where it is beside the package."""
    monkeypatch.chdir(tmp_path)
    digits = sklearn.datasets.load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:10], digits.target, strict=False)):
        pixels = (image * 255 / 16).round().astype(np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}_{label}.png")
    tflite = "--tflite=pretrained/digits/model_int8.tflite"
    assert commands.main(["--mode=predict", tflite, "--images=.", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    right = [f"_{entry['predictions'][0]['class']}.png" in entry["image"] for entry in found]
    assert len(found) == 10
    assert sum(right) >= 9
