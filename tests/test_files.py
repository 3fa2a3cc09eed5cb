import os
import time

import pytest

from liverseg_tf.errors import OutputError
from liverseg_tf.files import atomic_write, is_partial, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with pytest.raises(ValueError, match="broken"), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ValueError("broken")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.txt"]


def test_folders_are_replaced_whole(tmp_path):
    for content in ("one", "two"):
        with atomic_write(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)
    assert (tmp_path / "model" / "file").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_another_process_may_finish_with_the_same_file_meanwhile(tmp_path):
    # its temporary file is listed, and gone when it is looked at: as a link to nothing is
    (tmp_path / ".0123abcd.partial.result.txt").symlink_to(tmp_path / "gone")
    write_text(tmp_path / "result.txt", "new")
    assert (tmp_path / "result.txt").read_text() == "new"


@pytest.mark.parametrize(("age_seconds", "swept"), [(3500, False), (3700, True)])
def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path, age_seconds, swept):
    left = tmp_path / ".0123abcd.partial.result.txt"
    left.write_text("half")
    os.utime(left, (time.time() - age_seconds,) * 2)
    write_text(tmp_path / "result.txt", "new")
    assert left.exists() != swept


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="could not be written"):
        write_text(tmp_path / "file" / "below", "x")


@pytest.mark.parametrize("letter", ["x", "ä", "字"])
def test_names_as_long_as_the_file_system_allows_are_written(tmp_path, letter):
    size = len(letter.encode())
    name = "a" * ((255 - 7) % size) + letter * ((255 - 7) // size) + ".nii.gz"
    assert len(name.encode()) == 255
    write_text(tmp_path / name, "old")
    with atomic_write(tmp_path / name) as temporary:
        assert temporary.name.endswith(".nii.gz") and is_partial(temporary)
        temporary.write_text("new")
    assert (tmp_path / name).read_text() == "new" and len(list(tmp_path.iterdir())) == 1
