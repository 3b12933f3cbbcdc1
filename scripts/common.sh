# Sourced by the other scripts. Sets $root and defines
#   python ARGS…        the Python of .venv where there is one, else $PYTHON, else python3
#   make_venv FILE      makes or reuses .venv and installs the requirements in FILE under constraints.txt
#   train_rows ARGS…    trains a table of runs
#   train_once FOLDER …   trains one run, once
#   folders NAME…, attack_tables …   for the scripts that attack what is trained
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;; esac  # the script's own head
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv/bin/python

python() { if [ -x "$venv" ]; then "$venv" "$@"; else command "${PYTHON:-python3}" "$@"; fi; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# What an installation of FILE is known by.
stamp_of() { (cd "$root" && echo "$1" && cat requirements.txt requirements/*.txt constraints.txt) | sha256sum; }

make_venv() {
  local stamp=$root/.venv/installed held
  if [ -x "$venv" ] && grep -qsxF "$(stamp_of "$1")" "$stamp"; then return; fi
  if ! { new_enough "$venv" && "$venv" -m pip --version >/dev/null 2>&1; }; then  # none, half made, or too old
    if ! new_enough "${PYTHON:-python3}"; then
      echo "error: ${PYTHON:-python3}: Python 3.11 or newer is needed: name one with PYTHON=/path/to/python" >&2
      exit 2
    fi
    "${PYTHON:-python3}" -m venv --clear "$root/.venv"
  fi
  echo "installing $1 into .venv (torch with CUDA: some 5 GB, a minute or more)"
  "$venv" -m pip install -q --disable-pip-version-check -r "$root/$1" -c "$root/constraints.txt"
  stamp_of "$1" >"$stamp"
  for held in requirements.txt $(sed -n 's#^-r \([^.].*\)#requirements/\1#p' "$root/$1"); do  # which FILE includes
    stamp_of "$held" >>"$stamp"
  done
}

# `train_rows [NAME…] [FLAGS…]`: of the rows on standard input, each the NAME of a run and its flags, trains those that are
# named, or every one, into trained_models/NAME. FLAGS go to every train.py.
train_rows() {
  local row name flags names=() rows
  while [ $# -gt 0 ] && [[ $1 != -* ]]; do names+=("$1") && shift; done
  mapfile -t rows
  for name in "${names[@]}"; do
    if ! printf '%s\n' "${rows[@]%% *}" | grep -qxF -- "$name"; then
      echo "error: $name: no row of this script, which has: $(printf '%s\n' "${rows[@]}" | cut -d' ' -f1 | xargs)" >&2
      exit 2
    fi
  done
  for row in "${rows[@]}"; do
    read -r name flags <<<"$row"
    if [ ${#names[@]} -gt 0 ] && [[ " ${names[*]} " != *" $name "* ]]; then continue; fi
    # shellcheck disable=SC2086  # the flags are words
    python "$root/train.py" $flags --seed 0 --data_root "$root/data" --savepath "$root/trained_models/$name" --resume "$@"
  done
}

# `train_once FOLDER FLAGS…`: trains it with images in $data, and rounds its weights to float16, once. A folder that is there goes on
# with its own flags, whatever a recipe has become since.
train_once() {
  local folder=$1
  shift
  if [ -e "$folder/config.json" ]; then set -- --config "$folder"; fi
  python "$root/train.py" "$@" --data_root "$data" --savepath "$folder" --resume
  if [ -z "$(find "$folder" -name 'eval_*.json' -print -quit)" ]; then python "$root/scripts/round_weights.py" "$folder"; fi
}

# Whether trained_models/NAME has a network; says so if not.
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
folders() { for name; do if trained "$name" >&2; then echo "$root/trained_models/$name"; fi; done; }

declare -A help  # evaluator -> what its --help prints

# `attack EVALUATOR FLAGS…`: evaluate_on_EVALUATOR.py, with those of the user's arguments, $extra, that it knows.
attack() {
  local own=() word take=''
  for word in "${extra[@]}"; do
    if [[ $word == --* ]]; then [[ ${help[$1]} =~ ${word%%=*}[^a-z_] ]] && take=yes || take=''; fi
    if [ -n "$take" ]; then own+=("$word"); fi
  done
  python "$root/evaluate_on_$1.py" "${@:2}" --dataset "$dataset" --data_root "$root/data" "${own[@]}"
}

# `attack_tables [NAME…] [FLAGS…]`: what the published tables of $dataset need, cheap things first, on those of its runs that are
# trained, or of the NAMEs; then the tables. Each of FLAGS goes to the evaluations that know it.
# Radii: $linf, $l2 (several) and, for AutoAttack, $l2_autoattack.
attack_tables() {
  local run paper=(--nb_iter 100 --nb_restart 10) names=() runs_linf runs_l2 evaluator word
  while [ $# -gt 0 ] && [[ $1 != -* ]]; do names+=("$1") && shift; done
  extra=("$@")
  for evaluator in pgd_attacks transfer minimum_norm autoattack; do
    if [ $# -gt 0 ]; then help[$evaluator]=$(python "$root/evaluate_on_$evaluator.py" --help); fi
  done
  for word; do
    if [[ $word == --* ]] && ! [[ ${help[*]} =~ ${word%%=*}[^a-z_] ]]; then
      echo "error: $word: no evaluation has this flag: leave it out" >&2 && exit 2
    fi
  done
  if [ ${#names[@]} = 0 ]; then
    mapfile -t names < <(sed -n "s/^\($dataset-[^ ]*\) .*/\1/p" "$root/scripts/run_$dataset"_{training,baselines}.sh)
  fi
  for name in "${names[@]}"; do
    [[ $name =~ -L(inf|2)- ]] || { echo "error: $name: is the name of no run, which has -Linf- or -L2- in it" >&2 && exit 2; }
  done
  mapfile -t runs_linf < <(for name in "${names[@]}"; do [[ $name != *-Linf-* ]] || folders "$name"; done)
  mapfile -t runs_l2 < <(for name in "${names[@]}"; do [[ $name != *-L2-* ]] || folders "$name"; done)
  for run in "${runs_linf[@]}"; do attack pgd_attacks --norm Linf --eps "$linf" "${paper[@]}" --save_adv --model "$run"; done
  for run in "${runs_l2[@]}"; do attack pgd_attacks --norm L2 --eps "${l2[@]}" "${paper[@]}" --model "$run"; done
  for run in "${runs_linf[@]}"; do attack pgd_attacks --norm Linf --eps grid "${paper[@]}" --save_adv --model "$run"; done
  for run in "${runs_l2[@]}"; do attack pgd_attacks --norm L2 --eps grid "${paper[@]}" --model "$run"; done
  if [ ${#runs_linf[@]} -gt 1 ]; then attack transfer "${runs_linf[@]}" --norm Linf --eps grid; fi
  for run in "${runs_l2[@]}"; do attack minimum_norm --norm L2 --attacks cw --test_size 1000 --model "$run"; done
  for run in "${runs_linf[@]}"; do attack autoattack --norm Linf --eps "$linf" --model "$run"; done
  for run in "${runs_l2[@]}"; do attack autoattack --norm L2 --eps "$l2_autoattack" --model "$run"; done
  if [ ${#runs_linf[@]} -gt 0 ] || [ ${#runs_l2[@]} -gt 0 ]; then
    python "$root/reports/make_tables.py" "${runs_linf[@]}" "${runs_l2[@]}"
  fi
}
