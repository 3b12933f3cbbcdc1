#!/usr/bin/env bash
# ruff and the whole test suite, in .venv. Extra arguments go to pytest.
# MMA_TEST_DATA: a folder that holds MNIST/raw, for the tests on real MNIST; they are skipped without it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
make_venv requirements-dev.txt
cd "$root"
"$python" -m ruff check --no-cache .
"$python" -m ruff format --check .
"$python" -m pytest "$@"
