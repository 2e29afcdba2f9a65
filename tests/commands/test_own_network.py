"""A run of a network of the user's own (--model=package.module:function), by every command.

The network and the commands are those of docs/guides/networks.md.
"""

import json
import shutil

import documents
import numpy as np
import PIL.Image
import pytest
import small

from larq_adambnn import commands

PAGE = "docs/guides/networks.md"
SHORT = (
    "--train_images=512",
    "--batch_size=128",
    "--epochs=1",
    "--loss=cross_entropy",
    "--init_from=",
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, data_dir):
    """The folder where the page's commands ran, and how many."""
    folder = tmp_path_factory.mktemp("own_network")
    (program,) = documents.programs(PAGE)
    (folder / "my_networks.py").write_text(program)
    (folder / "configs").symlink_to(documents.ROOT / "configs")
    (folder / "photos").mkdir()
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "photos" / "image.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = (*SHORT, "--snapshots=0", f"--data_dir={data_dir}", "--check_images=8")
        yield folder, documents.run_commands(PAGE, training=short, others=["--check_images=8"])


def test_every_command_finds_it_again(ran, capsys):
    folder, count = ran
    run = folder / "runs" / "small"
    assert count == 4
    assert "--model=my_networks:small" in (run / "flags.cfg").read_text().splitlines()
    info = json.loads((run / "export.json").read_text())
    assert info["binary_convolutions"]["converted"] == 2
    assert commands.main(["--flagfile=runs/small/flags.cfg"]) == 0, capsys.readouterr().err
    assert "step 1 (binary)" in capsys.readouterr().out


def test_a_network_that_is_gone_is_one_line(ran, tmp_path, monkeypatch, capsys):
    folder, _ = ran
    shutil.copytree(folder / "runs" / "small", tmp_path / "run")
    text = (tmp_path / "run" / "flags.cfg").read_text()
    (tmp_path / "run" / "flags.cfg").write_text(text.replace("my_networks:", "gone:"))
    monkeypatch.chdir(tmp_path)
    assert commands.main(["--mode=predict", "--run=run", f"--images={folder / 'photos'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --model: Expected gone of gone:small to be a module")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model=nowhere:build", "--noexport"], "--model: Expected nowhere of nowhere:build"),
        (["--model=nowhere"], "--model: expected one of reactnet_a"),
        (["--model=my_networks:small", "--width=2"], "--width=1"),
        (["--model=my_networks:small", "--stem_stride=1"], "--stem_stride: expected 0"),
        (["--model=real:build", "--noexport"], "--model: Expected a model with binary Larq layers"),
    ],
)
def test_mistakes_leave_nothing_behind(ran, flags, expected, data_dir, capsys):
    folder, _ = ran
    (folder / "real.py").write_text(
        "import tensorflow as tf\n\ndef build(input_shape, num_classes):\n"
        "    layers = [tf.keras.Input(input_shape), tf.keras.layers.Flatten()]\n"
        "    return tf.keras.Sequential([*layers, tf.keras.layers.Dense(num_classes)])\n"
    )
    common = ["--loss=cross_entropy", f"--data_dir={data_dir}", "--output_dir=other"]
    assert commands.main([*small.FLAGS, *common, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (folder / "other").exists()
