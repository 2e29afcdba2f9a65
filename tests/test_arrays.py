"""Files of arrays."""

import gc
import pathlib
import sys

import numpy as np
import pytest

from larq_adambnn import arrays


def test_what_is_written_is_what_numpy_reads(tmp_path):
    path = tmp_path / "a.npz"
    expected = {"model/0": np.arange(6.0).reshape(2, 3), "step": np.int64(3), "empty": np.zeros(0)}
    arrays.write_arrays(path, expected)
    with np.load(path, allow_pickle=False) as file:
        received = dict(file)
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        assert received[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(received[name], array)


def test_a_full_disk_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with pytest.raises(OSError, match="No space left"):
        arrays.write_arrays(pathlib.Path("/dev/full"), {"a": np.zeros(10**5)})
    gc.collect()
    assert not told
