"""docs/tutorial.ipynb runs as it is, and its outputs are there."""

import json
import re
import sys

import documents
import nbclient
import nbformat
from jupyter_client.kernelspec import KernelSpecManager

PATH = documents.ROOT / "docs" / "tutorial.ipynb"


def outputs(notebook):
    """The text that the notebook printed."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return "".join(out.get("text", "") for cell in cells for out in cell.outputs)


def test_the_notebook_runs(tmp_path, monkeypatch):
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    kernel = tmp_path / "kernels" / "here"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({**spec, "display_name": "", "language": ""}))
    monkeypatch.setattr(KernelSpecManager, "kernel_dirs", [str(kernel.parent)])
    monkeypatch.setenv("PYTHONPATH", str(documents.ROOT))
    notebook = nbformat.read(PATH, as_version=4)
    assert len(notebook.cells) == 15
    before = outputs(notebook)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="here", resources=where).execute()
    for text in (before, outputs(notebook)):
        assert "binary now: (True, True)" in text
        assert "the .tflite is the same network" in text
        keras, tflite = (float(top1) for top1 in re.findall(r"top1=(\d\.\d+)", text))
        assert keras > 0.9
        assert abs(keras - tflite) < 0.01
