"""Examples in docstrings run as tests, each in an empty folder of its own."""

import pytest
from _pytest.doctest import DoctestItem

# Programs that tests start, not modules to import.
collect_ignore = ["tests/serving_endpoint.py", "tests/training/worker.py"]


@pytest.fixture(autouse=True)
def _empty_folder(request):
    if isinstance(request.node, DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
