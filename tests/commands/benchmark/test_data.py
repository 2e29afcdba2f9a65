"""--benchmark=data: what it prints, and that both sides do the same work."""

import concurrent.futures
import os

import numpy as np
import PIL.Image
import pytest
from photographs import write_folder

from larq_adambnn import processes
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


def test_all_parts_are_compared(tmp_path):
    benchmark.make_photographs(tmp_path, 16)
    config = settings(dataset="image_folder", data_dir=str(tmp_path), image_size=32)
    speeds, ratio = benchmark.compare(config, rounds=1, seconds=0.02)
    assert min(speeds.values()) > 0
    ours, pillow, _ = list(speeds.values())[-3:]
    assert ratio == ours / pillow
    assert {"lighting", "RandAugment,", "cutmix"} <= set(" ".join(speeds).split())
    assert {len(values) for values in benchmark.measure(config, 2, 0.02).values()} == {2}


def test_the_medians_of_rounds(tmp_path, monkeypatch):
    benchmark.make_photographs(tmp_path, 16)
    rounds = {benchmark._PIPELINE: [1.0, 6.0, 4.0], benchmark._PILLOW: [2.0, 2.0, 1.0]}
    monkeypatch.setattr(benchmark, "measure", lambda *arguments: rounds)
    available, asked = os.sched_getaffinity(0), []

    def pool(core):
        asked.append(core)
        return concurrent.futures.ThreadPoolExecutor(max_workers=1)

    monkeypatch.setattr(processes, "pool", pool)
    config = settings(dataset="image_folder", data_dir=str(tmp_path), image_size=32)
    speeds, ratio = benchmark.compare(config, seconds=0.02)
    assert list(speeds.values())[:2] == [4.0, 2.0]
    assert ratio == 3.0
    assert asked == [min(available)]
    assert list(speeds)[2].endswith(f"on {len(available)} cores")
    assert os.sched_getaffinity(0) == available


def test_batches_that_the_images_do_not_fill_are_refused_before_anything_is_measured(tmp_path):
    config = settings(dataset="image_folder", data_dir=str(write_folder(tmp_path)))
    with pytest.raises(UsageError, match=r"batch_size: expected at most the 12 .*; received 600"):
        benchmark.compare(config.replace(batch_size=600))


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
