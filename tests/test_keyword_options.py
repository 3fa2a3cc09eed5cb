"""Options that are given once: dataclass, keywords and description agree, and errors help."""

import dataclasses
import inspect

import pytest

import liverseg_tf as ls
from liverseg_tf.cohorts.options import PREDICTOR_OPTIONS, PredictChanges, PredictOptions
from liverseg_tf.data.slice_options import SliceChanges, SliceOptions
from liverseg_tf.errors import ConfigError
from liverseg_tf.explanation.options import ExplainChanges, ExplainOptions
from liverseg_tf.keyword_options import with_changes
from liverseg_tf.reporting.options import ReportChanges, ReportOptions
from liverseg_tf.training.options import TrainingChanges, TrainingOptions

PAIRS = [
    (TrainingOptions, TrainingChanges),
    (SliceOptions, SliceChanges),
    (PredictOptions, PredictChanges),
    (ExplainOptions, ExplainChanges),
    (ReportOptions, ReportChanges),
]


@pytest.mark.parametrize(("options", "changes"), PAIRS)
def test_keywords_and_fields_are_the_same(options, changes):
    keywords = {name: hint.__forward_arg__ for name, hint in changes.__annotations__.items()}
    assert keywords == {f.name: f.type for f in dataclasses.fields(options)}


@pytest.mark.parametrize("options", [pair[0] for pair in PAIRS])
def test_each_field_is_described(options):
    lines = inspect.cleandoc(options.__doc__).splitlines()  # Python 3.13 takes the indentation off, earlier ones do not
    described = [line.strip().split(":")[0] for line in lines if line.startswith(" " * 4)]
    assert [f.name for f in dataclasses.fields(options) if f.name not in described] == []


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (ls.train, TrainingOptions),
        (ls.slice_dataset, SliceOptions),
        (ls.predict_folder, PredictOptions),
        (ls.explain, ExplainOptions),
        (ls.report, ReportOptions),
    ],
)
def test_help_shows_each_option_with_its_default(function, options):
    shown = inspect.signature(function).parameters
    for f in dataclasses.fields(options):
        assert shown[f.name].default == f.default and shown[f.name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ls.train([], "r", epoch=3), "train: has no option 'epoch'; did you mean 'epochs'"),
        (lambda: ls.slice_dataset([], banana=1), "slice_dataset: has no option 'banana'; it has classes, channels"),
        (
            lambda: ls.predict_folder("ct.nii", "out", format="seg"),
            "predict_folder: has no option 'format'; did you mean",
        ),
        (lambda: ls.explain("ct.nii", seeds=1), "explain: has no option 'seeds'; did you mean 'seed'"),
        (lambda: ls.report("ct.nii", "p.html", titles="A"), "report: has no option 'titles'; did you mean 'title'"),
    ],
)
def test_an_unknown_keyword_names_what_was_meant(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
    with pytest.raises(TypeError):  # as Python's own
        call()


def test_a_keyword_counts_before_the_options():
    given = TrainingOptions(epochs=2, seed=5)
    assert with_changes(given, TrainingOptions, {"epochs": 3}, "train") == TrainingOptions(epochs=3, seed=5)
    assert with_changes(None, TrainingOptions, {}, "train") == TrainingOptions()
    with pytest.raises(ConfigError, match="expected options of TrainingOptions"):
        with_changes(SliceOptions(), TrainingOptions, {}, "train")
    with pytest.raises(ConfigError, match="split: expected 'patients' or 'slices'"):
        with_changes(given, TrainingOptions, {"split": "voxels"}, "train")


def test_a_predictors_options_have_its_defaults():
    own = {n: p.default for n, p in inspect.signature(ls.Predictor).parameters.items() if n != "model"}
    assert own == {name: getattr(PredictOptions(), name) for name in PREDICTOR_OPTIONS}
    assert own["postprocessing"] is PredictOptions().postprocessing  # which `Predictor` looks at
