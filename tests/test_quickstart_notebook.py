"""docs/quickstart.ipynb runs from top to bottom, and its last cell draws."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"


@pytest.mark.slow
def test_every_cell(tmp_path: Path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    book.metadata.kernelspec.name = "python3"
    manager = nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    manager.execute()
    drawn = [output for output in book.cells[-1].outputs if "image/png" in output.get("data", {})]
    assert drawn, book.cells[-1].outputs
    assert (tmp_path / "quickstart" / "drafter" / "model.safetensors").is_file()
