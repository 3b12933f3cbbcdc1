#!/usr/bin/env bash
# ruff, types and the whole test suite, in .venv. With arguments pytest alone: `bash scripts/test.sh -m "not slow"`.
# MMA_TEST_DATA: a folder that holds MNIST/raw, for the tests on real MNIST; they are skipped without it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_venv requirements/dev.txt
if [ -n "${MMA_TEST_DATA:-}" ]; then MMA_TEST_DATA=$(realpath "$MMA_TEST_DATA") && export MMA_TEST_DATA; fi
cd "$root"
if [ $# = 0 ]; then
  python -m ruff check --no-cache .
  python -m ruff format --check .
  python -m mypy
fi
if [ $# = 0 ] || [ "$1" = -m ]; then
  # One process a core and one thread each: these networks are too small for more, and threads that wait spin.
  export OMP_NUM_THREADS=1
  set -- -n auto --dist loadfile "$@"
fi
python -m pytest "$@"
