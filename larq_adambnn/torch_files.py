"""Reads the weights in PyTorch's .pth files and in .safetensors files, and trusts neither.

Nothing in a file is executed; entries that claim more than the file's size are not read.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from larq_adambnn.files import naming

__all__ = ["import_torch", "load_torch"]

# Where training scripts keep the weights.  An average of them is taken if it is alone.
_CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "network", "module")
_CONTAINERS += ("ema", "model_ema", "state_dict_ema")

# What wrappers put before every name.  No name of the networks here begins so.
_WRAPPERS = ("module.", "model.", "_orig_mod.", "net.", "backbone.")
_COUNTER = "n_averaged"  # which torch.optim.swa_utils.AveragedModel puts beside those names

# Classes and functions that scripts save beside the weights; NotATensor is read in their place.
_BESIDE = ("argparse.Namespace", "numpy.dtype", "numpy.ndarray")
_BESIDE += ("pathlib.PosixPath", "pathlib._local.PosixPath")  # the latter by Python 3.13
_BESIDE += tuple(
    f"numpy.{core}.multiarray.{function}"
    for core in ("core", "_core")
    for function in ("scalar", "_reconstruct")
)

_SAFE = (2, 10)  # the first torch whose weights_only has no known hole
_CHUNK = 1 << 20


class NotATensor:
    """Stands for an object in a file, and keeps nothing of it."""

    def __new__(cls, *args):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


def load_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the state_dict in a .pth file of any format of torch.save, or in a .safetensors file.

    A .pth file holds it bare or, as training scripts save it, under "state_dict", "model",
    "model_state_dict", "net", "network" or "module"; "ema", "model_ema" or "state_dict_ema"
    is taken if there is none of those.  What else it holds (epoch, optimizer, the arguments
    in an argparse.Namespace, NumPy's numbers and arrays) is ignored.  A "module.", "model.",
    "_orig_mod.", "net." or "backbone." before every name is dropped, and so again.

    Nothing in the file is executed.  The checksums of a .pth are checked; .safetensors files
    and those of PyTorch before 1.6 have none.  bfloat16 becomes float32.

    Raises:
        ImportError: torch is not installed or is older than 2.10, or safetensors is missing.
        ValueError: the file holds no state_dict, is damaged, or would have run code.
        OSError: it cannot be read.
    """
    torch = import_torch()
    with naming(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(9)
        file.seek(0)
        if start[8:] == b"{":  # after the eight bytes of the header's length
            content = _read_safetensors(path, file)
        else:
            if start.startswith(b"PK\x03\x04"):  # as torch tells its formats apart
                _check_zip(path, file, size)
                file.seek(0)
            content = _read_pth(torch, path, file)
    if isinstance(content, Mapping):
        found = (content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping))
        content = next(found, content)
        content = {name: value for name, value in content.items() if name != _COUNTER}
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"Expected a state_dict in {path}. Received: {type(content).__name__} without one"
        )
    arrays = {name: _array(torch, path, size, name, value) for name, value in content.items()}
    return _unwrapped(arrays)


def import_torch():
    """The module torch, which is imported only where it is needed."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "PyTorch checkpoints need torch, which is not installed; expected it after: "
            "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        ) from error
    return torch


def _read_safetensors(path, file: BinaryIO):
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError(
            f"Expected safetensors to read {path}. Received: it is not installed; "
            'pip install "safetensors>=0.4" or pip install "larq_adambnn[torch]"'
        ) from error
    try:
        return load(file.read())
    except Exception as error:  # its own, and torch's for types that it does not know
        raise ValueError(
            f"Expected a safetensors file. Received: {path}, which is truncated or damaged "
            f"({_one_line(error)})"
        ) from error


def _check_zip(path, file: BinaryIO, size: int) -> None:
    """Raises ValueError if an entry is damaged, which torch.load does not see, or would expand."""
    entry = None
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            expanded = sum(entry.file_size for entry in entries)
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            expands = packed or expanded > size
            # None has one after torch.serialization.set_crc32_options(False).
            checksums = any(entry.CRC for entry in entries)
            for entry in entries if checksums and not expands else ():
                with archive.open(entry) as stream:
                    while stream.read(_CHUNK):
                        pass
    except Exception as error:  # zipfile too raises nearly anything
        where = f" in the entry {_one_line(entry.filename)}" if entry else ""
        raise ValueError(
            f"Expected a checkpoint of PyTorch. Received: {path}, which is truncated, damaged "
            f"or something else{where} ({_one_line(error)})"
        ) from error
    if expands:
        raise ValueError(
            "Expected a checkpoint of PyTorch, which is not compressed. Received: "
            f"{path}, {size:,} bytes with {'compressed' if packed else 'overlapping'} entries "
            f"of {expanded:,}"
        )


def _read_pth(torch, path, file: BinaryIO):
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version and tuple(map(int, version.groups())) < _SAFE:
        raise ImportError(
            f"Expected torch 2.10 or newer to read {path}: in older ones a file can run code. "
            f'Received: torch {torch.__version__}; pip install "torch>=2.10" or '
            'pip install "larq_adambnn[torch]"'
        )
    beside = [(NotATensor, name) for name in _BESIDE]
    with warnings.catch_warnings(), torch.serialization.safe_globals(beside):
        warnings.simplefilter("ignore")  # torch's notes about formats
        # A foreign or damaged file makes torch raise nearly anything.
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"Expected a checkpoint of PyTorch. Received: {path}, {_reason(error)}"
            ) from error


def _reason(error: Exception) -> str:
    """What is wrong with a file that torch.load refused, without its advice to run it anyway."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return (
            f"which holds code or objects besides tensors ({refused[1]}); nothing of it was run. "
            "Save the weights alone: torch.save(model.state_dict(), path)"
        )
    return f"which is truncated, damaged or something else ({type(error).__name__})"


def _array(torch, path, size: int, name, tensor) -> np.ndarray:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"Expected only tensors in the state_dict of {path}. "
            f"Received: {_one_line(name)}, a {type(tensor).__name__}"
        )
    if tensor.numel() * tensor.element_size() > size:  # a view that repeats its values
        raise ValueError(
            f"Expected tensors no larger than their file {path}. Received: {_one_line(name)} "
            f"of {tensor.numel():,} values"
        )
    try:
        half = tensor.dtype == torch.bfloat16  # which NumPy does not have
        return (tensor.float() if half else tensor).detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"Expected dense tensors in {path}. Received: {_one_line(name)}, {tensor.layout}, "
            f"{tensor.dtype}"
        ) from error


def _unwrapped(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    while common := [w for w in _WRAPPERS if all(name.startswith(w) for name in arrays)]:
        arrays = {name.removeprefix(common[0]): array for name, array in arrays.items()}
    return arrays


def _one_line(text) -> str:
    """Text from a file, short and without line ends."""
    return repr(str(text)[:80])
