#!/usr/bin/env bash
# What a first hour on a GPU is for, most telling things first, each with its limit (112 minutes if all reach theirs); what is
# worth keeping goes to OUT.
#   bash scripts/first_gpu_hour.sh OUT
#   DRY=1 bash scripts/first_gpu_hour.sh OUT     the same on a CPU with digits, in minutes
#   LIST=day bash scripts/first_gpu_hour.sh OUT  no tests and benchmark, but the rest of CIFAR-10 by --recipe fast, 12 runs
# DATA holds the data sets; JPEG a folder train/<class>/*, test/<class>/* of CIFAR-10's pictures as JPEG to take instead.
# A run is trained and attacked here, in WORK (a temporary folder), from beginning to end; OUT gets its JSON, metrics, logs
# and weights: pieces of at most 15 MB, 64 MB together. Started again with the same WORK it goes on.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
out=${1:?name a folder for what is kept: bash scripts/first_gpu_hour.sh OUT}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=${WORK:-$(mktemp -d)}
mkdir -p "$work/runs"
data=${DATA:-$root/data}
case ${LIST:-hour} in
  hour | day) ;;
  *) echo "error: LIST=$LIST: there are the lists hour and day" >&2 && exit 2 ;;
esac
budget=${BUDGET:-$((64 * 1000 * 1000))} piece=$((15 * 1000 * 1000))
failed=0

# CIFAR-10 by the fast recipe on WRN-28-4, as a line of `runs`: NORM METHOD NUMBER FLAGS…
cifar10() {
  local images=(cifar10 --dataset cifar10)
  if [ -n "${JPEG:-}" ]; then images=(cifar10jpeg --dataset imagefolder --no-streaming --data_root "$JPEG"); fi
  echo "${images[0]}-$1-$2-$3-sd0-fast 12 8 ${images[*]:1} --norm $1 --method ${2,,} --recipe fast ${*:4} --device cuda"
}

# Runs: name, minutes of training, minutes of the attack, flags of train.py. Later issues add lines.
runs() {
  if [ -n "${DRY:-}" ]; then
    echo 'digits-Linf-MMA-0.3-sd0 5 5 --dataset digits --norm Linf --hinge_maxeps 0.3 --max_steps 20 --nb_iter 2 --device cpu'
  elif [ "${LIST:-hour}" = day ]; then
    for d in 12 20; do cifar10 Linf MMA $d --hinge_maxeps $d/255; done
    for d in 12 20 32; do cifar10 Linf OMMA $d --hinge_maxeps $d/255; done
    for d in 2.0 3.0; do cifar10 L2 MMA $d --hinge_maxeps $d; done
    for d in 1.0 2.0 3.0; do cifar10 L2 OMMA $d --hinge_maxeps $d; done
    for method in PGD TRADES; do cifar10 Linf $method 8 --train_eps 8/255; done
  else
    cifar10 Linf MMA 32 --hinge_maxeps 32/255
    cifar10 L2 MMA 1.0 --hinge_maxeps 1.0
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
  effort=(--nb_iter 2 --nb_restart 1 --test_size 20)
else
  device=cuda tests=(tests/hardware tests/test_trainer.py) cases=()
  effort=(--precision bf16)
fi

cd "$root" || exit 2
if [ "${LIST:-hour}" != day ]; then
  limited 8 tests "$python" -m pytest -q "${tests[@]}"
fi

while read -r name training attack flags; do
  run=$work/runs/$name
  # shellcheck disable=SC2086  # the flags are words
  limited $((training + 1)) "$name.train" "$python" train.py --data_root "$data" $flags --savepath "$run" --resume --max_minutes "$training" </dev/null
  trained_to_the_end=$?
  case $name in *-fast) [ $trained_to_the_end = 0 ] && limited 1 "$name.rounded" "$python" scripts/round_weights.py "$run" ;; esac
  for file in config.json metrics.jsonl margins.npy model_best.pt; do keep "$run/$file" "$name.$file"; done
  [ $trained_to_the_end = 0 ] || continue
  case $name in  # the radii of the published figures
    cifar10*-Linf-*) pgd=(--eps 8/255) autoattack=8/255 ;;
    cifar10*-L2-*) pgd=(--eps 0.5 1.0) autoattack=0.5 ;;
    *) pgd=() autoattack='' ;;
  esac
  limited $((attack + 1)) "$name.attack" "$python" evaluate_on_pgd_attacks.py --model "$run" --device $device "${pgd[@]}" "${effort[@]}" </dev/null
  if [ -n "$autoattack" ]; then
    limited 9 "$name.autoattack" "$python" evaluate_on_autoattack.py --model "$run" --eps $autoattack --device $device --test_size 1000 --max_minutes 8 </dev/null
  fi
  for file in "$run"/eval_*.json; do keep "$file" "$name.$(basename "$file")"; done
done < <(runs)
if [ "${LIST:-hour}" != day ]; then
  limited 15 benchmark "$python" benchmarks/benchmark.py --device $device "${cases[@]}" --out "$out/benchmark.json"
fi
echo "kept in $out; runs in $work/runs"
exit $failed
