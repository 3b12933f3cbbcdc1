#!/usr/bin/env bash
# From an empty machine to trained and attacked networks on scikit-learn's digits, in minutes on two CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_venv requirements/report.txt
exec "$venv" "$root/scripts/quickstart.py" "$@"  # so that a signal reaches it
