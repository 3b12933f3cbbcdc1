"""A run folder to be evaluated, made once."""

import pytest

from linear import elsewhere as here  # noqa: F401  of every test
from linear import save_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A linear network of the digits."""
    return save_run(tmp_path_factory.mktemp("trained") / "run")
