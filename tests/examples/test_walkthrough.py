"""The notebook, run from its first cell to its last on tiny phantoms."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "walkthrough.ipynb"
TINY = {
    "WALKTHROUGH_PHANTOMS": "4",
    "WALKTHROUGH_SHAPE": "64,64,10",
    "WALKTHROUGH_SIZE": "32",
    "WALKTHROUGH_BACKBONE": "tiny",
    "WALKTHROUGH_EPOCHS": "1",
}


def test_the_stored_outputs_are_of_the_cells_as_they_are():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    figures = runpy.run_path(str(ROOT / "docs" / "figures.py"))
    assert notebook.metadata["sources_sha256"] == figures["sources_sha256"](notebook), (
        "cells were changed since the notebook was run: python docs/figures.py notebook"
    )
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {o.output_type for o in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 10
    text = NOTEBOOK.read_text("utf-8")
    assert len(text) < 4e6 and not re.search(r'"name": "stderr"|/home/|/tmp/|/root/', text)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_promises(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name, value in {**TINY, "WALKTHROUGH_OUTPUT": str(tmp_path / "out")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 9
    printed = "".join(o.get("text", "") for o in outputs if o.output_type == "stream")
    assert "tumour_voxels" in printed and "report.html" in printed
    for made in ("run/model.keras", "report.html", "explained/explanation.json"):
        assert (tmp_path / "out" / made).is_file()
