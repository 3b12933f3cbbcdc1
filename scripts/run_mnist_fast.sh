#!/usr/bin/env bash
# MNIST by `--recipe fast`: each run is trained, its weights rounded to float16, and attacked before the next begins. Started
# again, it skips what is done and goes on with what is not. A run takes one to three hours of a CPU core, the attacks on all
# test images a day a network. DATA names the folder of the data set; PRECISION=fp32 is for CPUs without bfloat16.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
data=${DATA:-$root/data} precision=(--precision "${PRECISION:-bf16}")

run() { train_once "$root/trained_models/$1" --dataset mnist --recipe fast "${precision[@]}" "${@:2}"; }  # NAME FLAGS…

# `attack_run PROGRAM NAME FLAGS…`; a run that is committed without its network has been attacked.
attack_run() {
  if trained "$2"; then python "$root/evaluate_on_$1.py" --model "$root/trained_models/$2" "${@:3}" --data_root "$data"; fi
}
pgd() { attack_run pgd_attacks "$@" "${precision[@]}"; }
attack_linf() {
  pgd "$1" --eps grid --test_size 1000
  pgd "$1" --eps 0.3 --protocol strong --test_size 1000
  attack_run autoattack "$1" --eps 0.3 --test_size 1000
}
attack_l2() {
  pgd "$1" --eps grid --test_size 1000
  attack_run minimum_norm "$1" --attacks ddn,fmn --test_size 1000
}

for seed in 0 1 2; do
  run mnist-Linf-MMA-0.45-sd$seed-fast --norm Linf --hinge_maxeps 0.45 --seed $seed
  attack_linf mnist-Linf-MMA-0.45-sd$seed-fast
done
for seed in 0 1 2; do
  run mnist-Linf-PGD-0.3-sd$seed-fast --norm Linf --method pgd --train_eps 0.3 --seed $seed
  run mnist-Linf-TRADES-0.3-sd$seed-fast --norm Linf --method trades --train_eps 0.3 --seed $seed
  for method in PGD TRADES; do attack_linf mnist-Linf-$method-0.3-sd$seed-fast; done
done
run mnist-Linf-OMMA-0.45-sd0-fast --norm Linf --method omma --hinge_maxeps 0.45
run mnist-Linf-STD-sd0-fast --norm Linf --method std
for name in OMMA-0.45 STD; do attack_linf mnist-Linf-$name-sd0-fast; done
networks=(mnist-Linf-{MMA-0.45,OMMA-0.45,PGD-0.3,STD,TRADES-0.3}-sd0-fast)
mapfile -t models < <(folders "${networks[@]}")
if [ ${#models[@]} = ${#networks[@]} ]; then
  python "$root/evaluate_on_transfer.py" "${models[@]}" --eps 0.1 0.2 0.3 0.4 --nb_restart 1 --test_size 1000 --data_root "$data"
fi

for d_max in 2.0 4.0 6.0; do
  run mnist-L2-MMA-$d_max-sd0-fast --norm L2 --hinge_maxeps $d_max
  run mnist-L2-OMMA-$d_max-sd0-fast --norm L2 --method omma --hinge_maxeps $d_max
  for method in MMA OMMA; do attack_l2 mnist-L2-$method-$d_max-sd0-fast; done
done
run mnist-L2-DDN-2.0-sd0-fast --norm L2 --method ddn --train_eps 2.0
attack_l2 mnist-L2-DDN-2.0-sd0-fast

for seed in 0 1 2; do  # all test images, last
  pgd mnist-Linf-MMA-0.45-sd$seed-fast --eps 0.3 0.4
  pgd mnist-Linf-MMA-0.45-sd$seed-fast --eps 0.3 0.4 --protocol strong
  attack_run autoattack mnist-Linf-MMA-0.45-sd$seed-fast --eps 0.3
done
python "$root/reports/make_tables.py" "$root"/trained_models/mnist-* --out "$root/trained_models/mnist.md"
