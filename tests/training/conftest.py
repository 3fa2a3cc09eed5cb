"""What the tests of training share: a recipe of seconds, and a run that has finished."""

import pytest

import liverseg_tf as ls
from tests.training.runs import FINISHED, Record, options


@pytest.fixture(scope="session")
def cases(phantom_folder):
    return ls.find_cases(phantom_folder)


@pytest.fixture(scope="session")
def finished(cases, tmp_path_factory):
    record = Record()
    output = tmp_path_factory.mktemp("runs") / "run"
    return ls.train(cases, output, FINISHED, callbacks=[record], **options()), record
