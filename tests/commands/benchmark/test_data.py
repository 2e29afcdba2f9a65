"""--benchmark=data: what it prints, and that both sides do the same work."""

import os

import numpy as np
import PIL.Image
import pytest
from photographs import write_folder

from larq_adambnn.commands import benchmark as benchmarks
from larq_adambnn.commands.benchmark import data as benchmark
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import datasets
from larq_adambnn.runs.config import Config


def settings(**changes):
    return Config(mode="benchmark", batch_size=16, **changes)


def test_photographs_are_jpegs_of_500_x_375(tmp_path):
    size = benchmark.make_photographs(tmp_path, 6, quality=80)
    paths = sorted(tmp_path.glob("train/*/*.jpg"))
    assert len(paths) == 6
    assert size == pytest.approx(np.mean([path.stat().st_size for path in paths]))
    for path in paths:
        with PIL.Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
    assert len({path.read_bytes() for path in paths}) == 6


def test_the_pillow_loop_makes_what_the_pipeline_makes(tmp_path):
    """As distributions: each draws its own crops."""
    benchmark.make_photographs(tmp_path, 32)
    dataset = datasets.load(
        settings(dataset="image_folder", data_dir=str(tmp_path), lighting=0.0, image_size=64)
    )
    pillow = benchmark.pillow_batches(dataset)
    ours = np.concatenate([images for images, _ in dataset.train().take(20).as_numpy_iterator()])
    theirs = np.concatenate([next(pillow) for _ in range(20)])
    assert ours.shape == theirs.shape == (320, 64, 64, 3)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours.mean((0, 1, 2)), theirs.mean((0, 1, 2)), atol=0.1)
    np.testing.assert_allclose(ours.std((0, 1, 2)), theirs.std((0, 1, 2)), rtol=0.1)


def test_all_parts_are_compared_on_one_core(tmp_path, monkeypatch):
    benchmark.make_photographs(tmp_path, 16)
    cores = os.sched_getaffinity(0)
    measured, speed = [], benchmark._speed
    monkeypatch.setattr(
        benchmark,
        "_speed",
        lambda *arguments: measured.append((speed(*arguments), len(os.sched_getaffinity(0))))
        or measured[-1][0],
    )
    config = settings(dataset="image_folder", data_dir=str(tmp_path), image_size=32)
    speeds, ratio = benchmark.compare(config, rounds=3, seconds=0.02)
    assert os.sched_getaffinity(0) == cores
    rounds = np.array([value for value, _ in measured[:-1]]).reshape(3, 7)
    assert (rounds > 0).all()
    assert [count for _, count in measured] == [1] * 21 + [len(cores)]
    np.testing.assert_array_equal(list(speeds.values())[:7], np.median(rounds, 0))
    assert ratio == np.median(rounds[:, 5] / rounds[:, 6])
    assert {"lighting", "RandAugment,", "cutmix"} <= set(" ".join(speeds).split())


def test_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "compare", lambda config: ({config.data_dir: 1234.5}, 2.345))
    folder = write_folder(tmp_path)
    benchmarks.main(settings(dataset="image_folder", data_dir=str(folder)))
    out = capsys.readouterr().out
    assert f"{folder}" in out and "1,234 images/s" in out
    assert "2.35\n" in out or "2.34\n" in out
    monkeypatch.setattr(benchmark, "_PHOTOGRAPHS", 4)
    benchmarks.main(settings())
    assert "4 JPEGs of 500 x 375 from two photographs" in capsys.readouterr().out


def test_only_folders(tmp_path):
    with pytest.raises(UsageError, match="--dataset: expected image_folder with --benchmark=data"):
        benchmarks.main(settings(dataset="digits", data_dir=str(tmp_path)))
