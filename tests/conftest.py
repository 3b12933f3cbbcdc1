"""Shared by the tests: a trained network, the data that a machine may lack, and the command line in a subprocess."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

import train
from command_lines import SMALL
from ranks import set_root_powers
from support import ROOT

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


@pytest.fixture(scope="session")
def mnist_root():
    """The folder that holds MNIST/raw; tests that need real MNIST are skipped where MMA_TEST_DATA does not name it."""
    root = os.environ.get("MMA_TEST_DATA")
    if not root:
        pytest.skip("MMA_TEST_DATA is not set: no real MNIST here")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a small finished run, 30 steps of MMA on digits, ε up to 0.3 under ℓ∞: to be read, not written into."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train.main([*SMALL, "--quiet", "--max_steps", "30", "--savepath", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that folder, to do with what a test likes."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def file_modes_count():
    """Also for root."""
    set_root_powers(False)
    yield
    set_root_powers(True)


@pytest.fixture
def command(tmp_path):
    """Run `python SCRIPT ARGS…` in an empty folder: (exit status, standard output, standard error)."""

    def run(script, *args, cwd=tmp_path, timeout=240):
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, args)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run
