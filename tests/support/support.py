"""Where this clone lies, for the tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
