# Sourced by the scripts of published runs: sets $root, makes `python` the one of .venv where there is one (else
# $PYTHON, else python3), and defines `trained NAME`.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
[ -x "$python" ] || python=${PYTHON:-python3}

python() { "$python" "$@"; }

# Whether trained_models/NAME has a model; says so if not.
trained() {
  [ -e "$root/trained_models/$1/model_best.pt" ] || { echo "$1: skipped, not trained yet"; return 1; }
}
