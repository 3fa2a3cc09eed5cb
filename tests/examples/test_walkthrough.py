"""The notebook, run from its first cell to its last on tiny phantoms."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "walkthrough.ipynb"
TINY = {
    "WALKTHROUGH_PHANTOMS": "4",
    "WALKTHROUGH_SHAPE": "64,64,10",
    "WALKTHROUGH_SIZE": "32",
    "WALKTHROUGH_BACKBONE": "resnet18",
    "WALKTHROUGH_EPOCHS": "1",
}


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_promises(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name, value in {**TINY, "WALKTHROUGH_OUTPUT": str(tmp_path / "out")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
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
