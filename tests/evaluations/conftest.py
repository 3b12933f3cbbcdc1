"""A run folder to be evaluated, made once."""

import shutil

import pytest

from linear import elsewhere as here  # noqa: F401  of every test
from linear import save_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A linear network of the digits."""
    return save_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, the current folder's `run`."""
    return shutil.copytree(trained, tmp_path / "run")
