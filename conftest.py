"""Examples in docstrings run as tests, each in an empty folder of its own."""

import pytest
from _pytest.doctest import DoctestItem

# A program that tests start, not a module to import.
collect_ignore = ["tests/serving_endpoint.py"]


def pytest_configure(config):
    # Several processes take files in the order below, not those of many tests first.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files of slow tests first: several processes then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _empty_folder(request):
    if isinstance(request.node, DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
