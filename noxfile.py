"""Sessions for development: ``nox -s lint types tests parity bench``."""

import nox

nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package."""
    session.install("mypy", "numpy>=2.0")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default suite; arguments after ``--`` go to pytest."""
    session.install("-e", ".[data,numba,plot,progress,testing]", "safetensors")
    session.run("pytest", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Compare with PyTorch."""
    session.install("-e", ".[testing]", "torch==2.13.0")
    session.run("pytest", "tests/parity", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time training steps beside PyTorch."""
    session.install("-e", ".", "torch==2.13.0")
    session.run("python", "-m", "bench", "training", "--peer", "torch", *session.posargs)
