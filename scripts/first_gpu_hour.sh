#!/usr/bin/env bash
# What a first hour on a GPU is for, most telling things first, each with its limit; what is worth keeping goes to OUT.
#   bash scripts/first_gpu_hour.sh OUT
#   DRY=1 bash scripts/first_gpu_hour.sh OUT     the same on a CPU with digits, in minutes
# A run is trained and attacked here, in WORK (a temporary folder), from beginning to end; OUT gets its JSON, metrics, logs
# and weights: pieces of at most 15 MB, 64 MB together. Started again with the same WORK it goes on.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
out=${1:?name a folder for what is kept: bash scripts/first_gpu_hour.sh OUT}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=${WORK:-$(mktemp -d)}
mkdir -p "$work/runs"
data=${DATA:-$root/data}
budget=$((64 * 1000 * 1000)) piece=$((15 * 1000 * 1000))
failed=0

# Runs: name, minutes of training, minutes of the attack, flags of train.py. Later issues add lines.
runs() {
  if [ -n "${DRY:-}" ]; then
    echo 'digits-Linf-MMA-0.3-sd0 5 5 --dataset digits --norm Linf --hinge_maxeps 0.3 --max_steps 20 --nb_iter 2 --device cpu'
  else
    echo 'mnist-Linf-MMA-0.45-sd0 15 8 --dataset mnist --norm Linf --hinge_maxeps 0.45 --device cuda'
  fi
}

# `limited MINUTES NAME COMMAND…`: its output in OUT/NAME.log; said whether it came to its end.
limited() {
  local minutes=$1 name=$2 status
  shift 2
  timeout --signal=TERM --kill-after=30 "$((minutes * 60))" "$@" >"$out/$name.log" 2>&1
  status=$?
  echo "$name: status $status, $(date -u +%H:%M:%S)" | tee -a "$out/steps.txt"
  [ $status = 0 ] || [ $status = 75 ] || failed=1
  return $status
}

# `keep FILE NAME`: into OUT in pieces, as long as all of it stays below the budget.
keep() {
  local size held
  [ -f "$1" ] || return 0
  size=$(wc -c <"$1")
  held=$(find "$out" -type f -printf '%s\n' | awk '{ all += $1 } END { print all + 0 }')
  if [ $((held + size)) -gt $budget ]; then
    echo "$2: left out, $size bytes" | tee -a "$out/steps.txt"
  elif [ "$size" -gt $piece ]; then
    split --bytes=$piece --numeric-suffixes "$1" "$out/$2.part"
  else
    cp "$1" "$out/$2"
  fi
}

if [ -n "${DRY:-}" ]; then
  device=cpu tests=(tests/hardware/test_device.py) cases=(--cases mnist-Linf-all --precision fp32 --repeats 1)
else
  device=cuda tests=(tests/hardware tests/test_trainer.py) cases=()
fi

cd "$root" || exit 2
limited 8 tests "$python" -m pytest -q "${tests[@]}"
limited 15 benchmark "$python" benchmarks/benchmark.py --device $device "${cases[@]}" --out "$out/benchmark.json"

while read -r name training attack flags; do
  run=$work/runs/$name
  # shellcheck disable=SC2086  # the flags are words
  limited $((training + 1)) "$name.train" "$python" train.py $flags --data_root "$data" --savepath "$run" --resume --max_minutes "$training" </dev/null
  trained_to_the_end=$?
  for file in config.json metrics.jsonl margins.npy model_best.pt; do keep "$run/$file" "$name.$file"; done
  [ $trained_to_the_end = 0 ] || continue
  limited $((attack + 1)) "$name.attack" "$python" evaluate_on_pgd_attacks.py --model "$run" --device $device ${DRY:+--nb_iter 2 --nb_restart 1 --test_size 20} </dev/null
  for file in "$run"/eval_*.json; do keep "$file" "$name.$(basename "$file")"; done
done < <(runs)
echo "kept in $out; runs in $work/runs"
exit $failed
