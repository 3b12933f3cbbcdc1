"""Command lines of our programs, read and not carried out."""

import argparse
import runpy
import sys

import pytest

from flags import parse_train
from support import ROOT


class Parsed(Exception):
    """The command line was taken."""


def parses(program, argv, monkeypatch):
    """Start a program of ours, up to the end of its command line; train.py's settings are checked, and come back."""
    if program == "train.py":
        return parse_train(argv)[0]
    known = argparse.ArgumentParser.parse_known_args

    def parse(self, args=None, namespace=None):
        _, unknown = known(self, args, namespace)
        assert not unknown, f"{program}: {unknown}"
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        patch.setattr(sys, "argv", [program, *argv])
        patch.setattr(sys, "path", [str((ROOT / program).parent), *sys.path])
        runpy.run_path(str(ROOT / program), run_name="__main__")
    return None
