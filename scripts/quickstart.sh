#!/usr/bin/env bash
# From an empty machine to three trained and attacked networks on scikit-learn's digits, in a few minutes on a CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_venv requirements/report.txt
python "$root/scripts/quickstart.py" "$@"
