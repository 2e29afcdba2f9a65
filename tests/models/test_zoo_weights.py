"""--weights=imagenet: the file that larq-zoo downloads, made here."""

import larq_zoo
import numpy as np
import pytest
from larq_zoo.core import utils

from larq_adambnn import backbone, commands, data, models
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import students
from larq_adambnn.runs.config import parse

NAME = "QuickNetSmall"


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """The network of a file that the download gives."""
    network = larq_zoo.sota.QuickNetSmall(weights=None)
    path = tmp_path_factory.mktemp("zoo") / "quicknet_small.h5"
    network.save_weights(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "download_pretrained_model", lambda **_: str(path))
        yield network


def student(classes):
    """What a training of so many classes begins with."""
    flags = ["--image_size=32", "--dataset=image_folder", "--data_dir=photos", "--output_dir=run"]
    config = parse([f"--model={NAME}", "--weights=imagenet", "--loss=cross_entropy", *flags])
    names = tuple(f"class {number}" for number in range(classes))
    return students.initial_student(config, _Images(names))


class _Images:
    """What `initial_student` asks of a data set."""

    def __init__(self, class_names):
        self.class_names = class_names
        self.preparation = data.Preparation(32, "none", 3, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("classes", [1000, 3])
def test_a_training_begins_with_them(downloaded, classes):
    """By way of `models.build` with weights="imagenet"."""
    assert models.options(NAME) == ("weights",)
    model = student(classes)
    new = {weight.name for layer in backbone.classifier(model) for weight in layer.weights}
    assert len(new) == 2
    for ours, theirs in zip(model.weights, downloaded.weights, strict=True):
        if classes == 1000 or ours.name not in new:
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours.shape[-1] == 3


def test_a_download_that_fails_is_one_line(monkeypatch):
    def fail(**_):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(utils, "download_pretrained_model", fail)
    with pytest.raises(UsageError, match=r"^--weights: Expected the ImageNet .*URL fetch failure$"):
        student(3)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model=reactnet_a"], "--weights: expected a network of larq-zoo"),
        ([f"--model={NAME}", "--weights=other"], "--weights: expected one of"),
    ],
)
def test_mistakes(flags, expected, capsys):
    assert commands.main(["--weights=imagenet", "--output_dir=run", *flags]) == 2
    assert expected in capsys.readouterr().err
