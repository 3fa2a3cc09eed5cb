"""Checks on several Pythons: `nox`, or one of them with `nox -s quick-3.12`."""

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "docs", "quick"]
PYTHONS = ["3.11", "3.12", "3.13"]


@nox.session
def lint(session: nox.Session) -> None:
    session.install("ruff", "codespell")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict")


@nox.session(python=PYTHONS)
def quick(session: nox.Session) -> None:
    session.install("-e", ".[dev,serving,cloud,dicom]")
    session.run("pytest", "-m", "not slow", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    session.install("-e", ".[dev,serving,cloud,ray,dicom]")
    session.run("pytest", "-n", "2", "--dist", "loadfile", "--cov", *session.posargs)
