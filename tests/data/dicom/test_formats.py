"""Names of what a mask may be written as."""

import pytest

from liverseg_tf.data.dicom.formats import parse_formats
from liverseg_tf.errors import ConfigError


def test_formats():
    assert parse_formats("seg, NIFTI,seg") == ("nifti", "seg")
    for text, words in (("", "expected some of"), ("seg,stl", "expected some of"), ("sr", "expected both")):
        with pytest.raises(ConfigError, match=words):
            parse_formats(text)
