"""Every public name says what it takes, gives and raises, and shows an example that runs."""

import ast
import dataclasses
import doctest
import inspect
import re
import textwrap

import pytest

import liverseg_tf as ls

CALLABLES = sorted(name for name in ls.__all__ if callable(getattr(ls, name)))
# Names with an example, or a part of one, that does not run as a test.
NOT_RUN = {
    "ServingClient": "segmenting needs a server",
    "find_learning_rate": "tracing a training step takes longer than all other examples together",
    "train": "tracing a training step takes longer than all other examples together",
}


def _examples(name):
    return doctest.DocTestParser().get_examples(inspect.getdoc(getattr(ls, name)) or "")


def _can_raise(cls):
    """Whether making an object of the class raises an error in code of its own."""
    method = vars(cls).get("__post_init__" if dataclasses.is_dataclass(cls) else "__init__")
    source = textwrap.dedent(inspect.getsource(method)) if method else ""
    return any(isinstance(node, ast.Raise) for node in ast.walk(ast.parse(source)))


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_name_has_the_sections_that_it_needs(name):
    thing = getattr(ls, name)
    sections = set(re.findall(r"^(\w+):$", inspect.getdoc(thing), re.MULTILINE))
    if not inspect.isclass(thing):
        gives = inspect.signature(thing).return_annotation != "None"
        assert {"Args", "Raises"} | ({"Returns"} if gives else set()) <= sections
    elif not issubclass(thing, Exception):
        # a Keras layer takes further keywords of its base class
        takes = [one for one in inspect.signature(thing).parameters.values() if one.kind is not one.VAR_KEYWORD]
        assert not takes or sections & {"Args", "Attributes"}
        assert not _can_raise(thing) or "Raises" in sections


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_name_has_an_example_that_runs(name):
    examples = _examples(name)
    assert examples
    assert any(doctest.SKIP in one.options for one in examples) == (name in NOT_RUN)


@pytest.mark.parametrize("name", sorted(NOT_RUN))
def test_an_example_that_does_not_run_calls_what_exists(name):
    for example in _examples(name):
        for node in ast.walk(ast.parse(example.source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in CALLABLES:
                keywords = {one.arg: None for one in node.keywords}
                inspect.signature(getattr(ls, node.func.id)).bind(*node.args, **keywords)
