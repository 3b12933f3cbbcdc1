#!/usr/bin/env bash
# The long fault loops, in .venv: random kills, random damage, torchrun's processes that die. Arguments as benchmarks/soak.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
make_venv requirements/dev.txt
"$python" "$root/benchmarks/soak.py" "$@"
