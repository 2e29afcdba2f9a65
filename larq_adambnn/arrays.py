"""Files of named arrays."""

import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

__all__ = ["write_arrays"]


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz as `np.savez` does, whose own archive is not closed when the disk is full."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
