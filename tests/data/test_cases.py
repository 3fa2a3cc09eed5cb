import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liverseg_tf.data.cases import Case, case_number, find_cases, folds_by_patient, split_by_patient, with_masks
from liverseg_tf.errors import CaseError, ConfigError, DataWarning, InputFileError


def _touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_pairs_by_number_over_several_folders(tmp_path):
    _touch(tmp_path, "a/volume-1.nii", "a/deep/volume-10.nii.gz", "b/volume-2.nii.gz")
    _touch(tmp_path, "masks/segmentation-1.nii.gz", "masks/segmentation-10.nii")
    cases = find_cases(tmp_path / "a", tmp_path / "b", tmp_path / "masks")
    assert [c.id for c in cases] == [1, 2, 10]
    assert [c.segmentation and c.segmentation.name for c in cases] == [
        "segmentation-1.nii.gz",
        None,
        "segmentation-10.nii",
    ]
    assert [c.patient for c in cases] == ["1", "2", "10"]
    assert [c.id for c in with_masks(cases)] == [1, 10]


def test_decathlon_layout(tmp_path):
    _touch(tmp_path, "imagesTr/liver_3.nii.gz", "labelsTr/liver_3.nii.gz", "imagesTs/liver_4.nii.gz")
    _touch(tmp_path, "imagesTr/._liver_3.nii.gz")  # what a Mac leaves behind
    _touch(tmp_path, ".Trash/imagesTr/liver_3.nii.gz", ".0123abcd.partial.x/imagesTr/liver_5.nii.gz")
    cases = find_cases(tmp_path)
    assert [(c.id, c.segmentation is not None) for c in cases] == [(3, True), (4, False)]


def test_overlapping_folders_are_no_duplicates(tmp_path):
    _touch(tmp_path, "a/volume-1.nii")
    assert len(find_cases(tmp_path, tmp_path / "a")) == 1


def test_a_folder_by_two_names_is_no_double(tmp_path):
    _touch(tmp_path, "a/volume-1.nii")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert len(find_cases(tmp_path / "a", tmp_path / "link")) == 1
    assert len(find_cases(tmp_path / "a", tmp_path / "a" / ".." / "a")) == 1


def test_names_with_more_behind_the_number_are_no_cases(tmp_path):
    _touch(tmp_path, "volume-7.nii", "volume-7_old.nii", "segmentation-7.bak.nii", "imagesTr/liver_8_old.nii.gz")
    assert [(case.id, case.segmentation) for case in find_cases(tmp_path)] == [(7, None)]


def test_duplicates_are_an_error_that_names_both(tmp_path):
    _touch(tmp_path, "a/volume-1.nii", "b/volume-1.nii.gz")
    with pytest.raises(CaseError, match=r"volume 1 is there twice: .*a.volume-1.nii and .*b.volume-1.nii.gz"):
        find_cases(tmp_path)


def test_orphan_masks_are_warned_of(tmp_path):
    _touch(tmp_path, "volume-1.nii", "segmentation-1.nii", "segmentation-2.nii")
    with pytest.warns(DataWarning, match=r"1 mask has no volume.*segmentation-2.nii"):
        assert len(find_cases(tmp_path)) == 1


def test_nothing_found_says_what_was_expected(tmp_path):
    with pytest.raises(CaseError, match="expected CTs named volume-<number>"):
        find_cases(_touch(tmp_path, "ct.nii"))
    with pytest.raises(InputFileError, match="expected a folder of CTs, there is none"):
        find_cases(tmp_path / "missing")
    with pytest.raises(CaseError, match="got none"):
        find_cases()


def test_groups_file(tmp_path):
    _touch(tmp_path, "volume-1.nii", "volume-2.nii")
    groups = tmp_path / "patients.csv"
    groups.write_text("id,patient\n1,Anna\n")
    assert [c.patient for c in find_cases(tmp_path, patients=groups)] == ["Anna", "2"]
    groups.write_text("number,who\n1,Anna\n")
    with pytest.raises(InputFileError, match="header id,patient"):
        find_cases(tmp_path, patients=groups)
    groups.write_text("id,patient\n1,Anna\n1,Berta\n")
    with pytest.raises(InputFileError, match="line 3: case 1 is there twice"):
        find_cases(tmp_path, patients=groups)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("segmentation-7.nii", 7),
        ("volume-7_seg.nii.gz", 7),
        ("liver_7.nii.gz", 7),
        ("liver_7_seg.nii", 7),
        ("ct.nii", None),
        ("volume-7_old.nii", None),
        ("liver_7_seg_2.nii", None),
        ("old_volume-7.nii", None),
    ],
)
def test_case_numbers(name, number):
    assert case_number(name) == number


def _cases(patients):
    return [Case(i, p, f"volume-{i}.nii") for i, p in enumerate(patients)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30).filter(lambda p: len(set(p)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 1000),
)
def test_splitting_by_patient_never_leaks(patients, fraction, seed):
    training, validation = split_by_patient(_cases(patients), fraction, seed)
    assert training
    assert validation
    assert not {c.patient for c in training} & {c.patient for c in validation}
    assert len(training) + len(validation) == len(patients)
    assert (training, validation) == split_by_patient(_cases(patients), fraction, seed)


@pytest.mark.parametrize(
    ("patients", "fraction", "count"), [(8, 0.2, 2), (9, 0.2, 2), (7, 0.2, 1), (10, 0.01, 1), (3, 0.99, 2)]
)
def test_the_share_of_patients_is_rounded(patients, fraction, count):
    assert len(split_by_patient(_cases("abcdefghij"[:patients]), fraction)[1]) == count


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=30).filter(lambda p: len(set(p)) > 3), st.integers(2, 4)
)
def test_each_patient_is_validated_on_in_exactly_one_fold(patients, folds):
    cases = _cases(patients)
    sides = folds_by_patient(cases, folds)
    assert sorted(c.id for _, validation in sides for c in validation) == [c.id for c in cases]
    for training, validation in sides:
        assert not {c.patient for c in training} & {c.patient for c in validation}


def test_splits_that_cant_be_made():
    with pytest.raises(CaseError, match="at least two patients"):
        split_by_patient(_cases("aa"))
    with pytest.raises(ConfigError, match="validation fraction"):
        split_by_patient(_cases("ab"), 0)
    with pytest.raises(CaseError, match="3 patients for 3 folds"):
        folds_by_patient(_cases("ab"), 3)
