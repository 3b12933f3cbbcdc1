"""A run folder to be evaluated, made once."""

import shutil

import pytest
import torch

from linear import save_run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """In an empty folder, on one thread: these networks are too small for more."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A linear network of the digits."""
    return save_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, the current folder's `run`."""
    return shutil.copytree(trained, tmp_path / "run")
