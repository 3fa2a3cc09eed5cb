"""What no message of ours tells."""

import warnings

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.errors import DataWarning, ServerError, warn, without_secrets


@pytest.mark.parametrize(
    "text",
    [
        "s3://anna:hush@host/x",
        "https://host/ct.nii.gz?X-Amz-Credential=hush%2F20300101&X-Amz-Date=20300101&X-Amz-Signature=hush",
        "https://host/ct.nii.gz?X-Goog-Signature=hush",
        "https://account.blob.core.windows.net/c/ct.nii.gz?sv=2024-11-04&sr=b&SIG=hu%2Bsh%3D",
        "https://host/ct?AWSAccessKeyId=hush&Expires=1",
        "https://host/ct?a=1;access_token=hush",
        "https://host/f?code=hush",
        "Max retries exceeded with url: /ct.nii.gz?sig=hush (Caused by NewConnectionError)",
        "404, message='Not Found', url='https://host/ct?sig=hush'",
    ],
)
def test_secrets_of_urls_stand_in_no_error_and_no_warning(text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(f"{text}: strange", DataWarning, 2)
    for told in (str(ServerError(f"{text}: refused")), str(caught[0].message), without_secrets(text)):
        assert "hush" not in told and "hu%2B" not in told
        assert told.startswith(text[:5])


def test_what_is_no_secret_stays():
    for text in (
        "https://host/ct.nii.gz?versionId=4&part=2",
        "/data/signature=x/ct.nii.gz",
        "s3://bucket/what?.nii: which key = is it",
        "gs://bucket/scan@home.nii",
    ):
        assert without_secrets(text) == text


def test_a_warning_names_the_line_of_the_program_that_called(tmp_path):
    import liverseg_tf as ls

    hu = np.full((4, 4, 4), 500, np.int16)
    hu[0] = 0
    nib.save(nib.Nifti1Image(hu, np.diag([1, 1, 2, 1])), tmp_path / "ct.nii")
    for call in (
        lambda: ls.CTVolume.from_array(hu, (1, 1, 1)),
        lambda: ls.CTVolume.load(tmp_path / "ct.nii"),
        lambda: warn("strange", DataWarning),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [(w.filename, w.lineno) for w in caught] == [(__file__, call.__code__.co_firstlineno)]
