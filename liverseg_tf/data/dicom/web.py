"""DICOMweb: copies series from an archive, sends objects to it (QIDO-RS, WADO-RS, STOW-RS)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from liverseg_tf.data.dicom.files import files_of
from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.errors import ConfigError, InputFileError, OutputError, ServerError, require
from liverseg_tf.files import atomic_write

TOKEN_VARIABLE = "LIVERSEG_DICOMWEB_TOKEN"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TIMEOUT_S = (10, 300)


def fetch_series(
    url: str,
    study: str,
    folder: str | Path,
    series: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Copy a study's CT series from a DICOMweb archive into a folder, one file per image; a series whole or not at all.

    Args:
        url: the service's root, as https://host/dicom-web.
        study: StudyInstanceUID.
        folder: to write to; each series becomes a folder in it, named by its UID, and must not exist yet.
        series: SeriesInstanceUID; by default every series of modality CT.
        progress: called with the number of images written.

    Returns:
        The series' folders.

    Raises:
        ConfigError: for a URL that carries credentials or that isn't encrypted.
        ServerError: if the archive can't be reached, refuses, or sends fewer images than it lists.
        InputFileError: if the study has no such series.
        OutputError: if a folder exists already or can't be written.
        MissingDependencyError: if dicomweb-client is missing.
    """
    client = _client(url)
    with _errors_as_ours(url), quiet():
        filters: dict[str, Any] = {} if series else {"Modality": "CT"}
        listed = client.search_for_series(study_instance_uid=study, search_filters=filters)
        found = {_value(row, "0020000E"): row for row in listed}
    wanted = [uid for uid in found if uid and series in (None, uid)]
    if not wanted:
        raise InputFileError(f"{url}: holds no {f'series {series}' if series else 'CT series'} of study {study}")
    folders, written = [], 0
    for uid in wanted:
        target = Path(folder, uid)
        if target.exists():
            raise OutputError(f"{target}: exists already; choose another output, or move the folder away")
        with _errors_as_ours(url), quiet():
            expected = {_value(r, "00080018") for r in client.search_for_instances(study, uid)}
        with atomic_write(target) as temporary:
            temporary.mkdir()
            got = set()
            with _errors_as_ours(url), quiet():
                for data in client.iter_series(study, uid):
                    got.add(str(data.SOPInstanceUID))
                    data.save_as(temporary / f"{len(got):05d}.dcm", enforce_file_format=True)
                    written += 1
                    if progress is not None:
                        progress(written)
            if got != expected:
                raise ServerError(f"{url}: expected {len(expected)} images of series {uid}, {len(got)} came; try again")
        folders.append(target)
    return folders


def send_objects(
    paths: Sequence[str | Path], url: str, progress: Callable[[int, int], None] | None = None
) -> list[dict]:
    """Send DICOM objects that this library wrote to a DICOMweb archive, and ask it whether it has them.

    Args:
        paths: files, or folders that are searched; objects that this library did not write are left out.
        url: the service's root, as https://host/dicom-web.
        progress: called with the number of objects sent and their total.

    Returns:
        One row per object: `file`, `modality`, `study`, `series`, `instance`.

    Raises:
        InputFileError: if there is nothing to send.
        ConfigError, ServerError, MissingDependencyError: as `fetch_series`; also if the archive does not list an object
            that it took.
    """
    client = _client(url)
    objects = [found for path in paths for found in _own_objects(Path(path))]
    if not objects:
        raise InputFileError(f"{', '.join(map(str, paths))}: expected DICOM objects of this library (.dcm), got none")
    rows = []
    for count, (path, data) in enumerate(objects, 1):
        study, series, instance = str(data.StudyInstanceUID), str(data.SeriesInstanceUID), str(data.SOPInstanceUID)
        with _errors_as_ours(url), quiet():
            client.store_instances([data])
            there = {_value(row, "00080018") for row in client.search_for_instances(study, series)}
        if instance not in there:
            raise ServerError(f"{url}: took {path.name} but does not list it; look into the archive's log")
        rows.append(
            {"file": str(path), "modality": data.Modality, "study": study, "series": series, "instance": instance}
        )
        if progress is not None:
            progress(count, len(objects))
    return rows


def _own_objects(path: Path) -> Iterator[tuple[Path, Any]]:
    import pydicom

    for file in files_of(path):
        try:
            if not file.looks_like_dicom():
                continue
            with quiet():
                data = pydicom.dcmread(file.path)
        except Exception:  # not DICOM, so none of ours
            continue
        if data.get("Manufacturer") == "liverseg_tf":
            yield file.path, data


def _client(url: str) -> Any:
    api = require("dicomweb_client.api", "dicomweb", "DICOMweb")
    require("pydicom", "dicom", "DICOMweb")
    import requests

    parts = urlsplit(url)
    if parts.username or parts.password:
        host = parts.hostname
        raise ConfigError(
            f"https://{host}: expected a URL without a password; put it into ~/.netrc, or a token into {TOKEN_VARIABLE}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url}: expected the URL of a DICOMweb service, as https://host/dicom-web")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ConfigError(f"{url}: expected https://; patients' data go over a network encrypted or not at all")
    session = requests.Session()  # TLS is verified, and ~/.netrc is read, by default
    if token := os.environ.get(TOKEN_VARIABLE):
        session.headers["Authorization"] = f"Bearer {token}"
        session.trust_env = False  # else requests would put netrc's password in the token's place
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    client = api.DICOMwebClient(url.rstrip("/"), session=session, timeout=_TIMEOUT_S)
    client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=200)
    return client


@contextlib.contextmanager
def _errors_as_ours(url: str) -> Iterator[None]:
    import requests

    try:
        yield
    except requests.exceptions.SSLError:
        raise ServerError(
            f"{url}: its certificate can't be verified; name the hospital's own CA in REQUESTS_CA_BUNDLE"
        ) from None
    except requests.exceptions.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        advice = (
            f"check ~/.netrc or {TOKEN_VARIABLE}" if status in (401, 403) else "check the URL and the archive's log"
        )
        raise ServerError(f"{url}: answered {status}; {advice}") from None
    except requests.exceptions.JSONDecodeError:
        raise ServerError(f"{url}: expected a DICOMweb service, its answer can't be read; check the URL") from None
    except (requests.exceptions.RequestException, OSError) as error:
        raise ServerError(f"{url}: can't be reached ({type(error).__name__}); check the address") from None
    except (ServerError, InputFileError, OutputError):
        raise
    except Exception as error:  # what the client raises for an answer that is not DICOMweb
        raise ServerError(
            f"{url}: expected a DICOMweb service, its answer can't be read ({type(error).__name__})"
        ) from None


def _value(row: dict, tag: str) -> str:
    return str((row.get(tag, {}).get("Value") or [""])[0])
