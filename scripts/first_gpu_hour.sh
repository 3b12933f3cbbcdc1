#!/usr/bin/env bash
# Does this GPU train and attack as it should? Tests, benchmark, MNIST by the fast recipe and some steps of CIFAR-10, each attacked.
#   bash scripts/first_gpu_hour.sh [OUT]     logs, figures and runs go to OUT (default: runs/gpu)
# 70 minutes at most (not measured), each step within its own limit; a step that fails is told, and the next begins.
# DATA: where the data sets are, or are downloaded to (default: data). PICTURES: a folder train/<class>/*, test/<class>/* to take
# instead of CIFAR-10. DEVICE=cpu tries the script itself. Started again it skips what is finished and goes on with what is not.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
interpreter=$venv
[ -x "$interpreter" ] || interpreter=${PYTHON:-python3}
out=$(realpath -m "${1:-$root/runs/gpu}") data=$(realpath -m "${DATA:-$root/data}") device=${DEVICE:-cuda} failed=0
pictures=(--dataset cifar10 --data_root "$data")
if [ -n "${PICTURES:-}" ]; then pictures=(--dataset imagefolder --data_root "$(realpath -m "$PICTURES")"); fi
mkdir -p "$out" && cd "$root" || exit 2

# `step NAME MINUTES ARGS…`: Python with these, its output in OUT/NAME.log.
step() {
  local name=$1 minutes=$2 status=0
  shift 2
  timeout --signal=TERM --kill-after=60 "$((60 * minutes))" "$interpreter" "$@" >"$out/$name.log" 2>&1 </dev/null || status=$?
  echo "$name: status $status, $(date -u +%H:%M:%S)" | tee -a "$out/steps.txt"
  [ $status = 0 ] || failed=1
}

step tests 10 -m pytest -q tests/hardware tests/test_trainer.py
step benchmark 15 benchmarks/benchmark.py --device "$device" --out "$out/benchmark.json"
step mnist.train 15 train.py --dataset mnist --norm Linf --recipe fast --hinge_maxeps 0.45 --device "$device" \
  --data_root "$data" --savepath "$out/mnist-Linf-MMA-0.45-sd0-fast" --resume
step mnist.attack 10 evaluate_on_pgd_attacks.py --model "$out/mnist-Linf-MMA-0.45-sd0-fast" --eps 0.3 --precision bf16 \
  --device "$device" --data_root "$data"
step cifar10.train 10 train.py "${pictures[@]}" --norm Linf --recipe fast --hinge_maxeps 32/255 --max_steps 200 --device "$device" \
  --savepath "$out/cifar10-Linf-MMA-32-sd0-200steps" --resume
step cifar10.attack 10 evaluate_on_pgd_attacks.py --model "$out/cifar10-Linf-MMA-32-sd0-200steps" --eps 8/255 --test_size 1000 \
  --precision bf16 --device "$device" --data_root "${pictures[3]}"
echo "logs, figures and runs: $out"
exit $failed
