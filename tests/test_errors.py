"""What no message of ours tells."""

import warnings

import pytest

from liverseg_tf.errors import DataWarning, ServerError, without_secrets


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
