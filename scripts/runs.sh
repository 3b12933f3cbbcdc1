# Sourced by the scripts of published runs: sets $root, makes `python` the one of .venv where there is one (else
# $PYTHON, else python3), and defines `trained NAME` and `folders NAME…`.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
[ -x "$python" ] || python=${PYTHON:-python3}

python() { command "$python" "$@"; }

# Whether trained_models/NAME has a model; says so if not.
trained() {
  local folder=$root/trained_models/$1
  if [ -e "$folder/model_best.pt" ]; then return 0; fi
  if [ -e "$folder/README.md" ] && [ ! -e "$folder/last.pt" ]; then
    echo "$1: skipped, its network is not committed: move the folder away to train it again"
  else
    echo "$1: skipped, not trained yet"
  fi
  return 1
}

# The folders of those NAMEs that are trained, one a line; the others are named on standard error.
folders() {
  for name; do
    if trained "$name" >&2; then echo "$root/trained_models/$name"; fi
  done
}

# The baselines of DATASET-NORM that are trained: the tables put them beside the paper's runs.
baselines() {
  for model in "$root"/trained_models/"$1"-{STD,PGD,PGDLS,TRADES}{,-*}-sd0/model_best.pt; do
    if [ -e "$model" ]; then dirname "$model"; fi
  done
}
