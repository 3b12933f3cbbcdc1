#!/usr/bin/env bash
# MNIST by `--recipe fast`, in tiers: each run is trained, its weights rounded to float16, and attacked before the next begins.
# On two CPU cores a run takes about an hour and its attacks another. Started again, it skips what is done and goes on with what
# is not. "scale1" stands for smaller steps of PGD, "4150steps" for the fewest passes. TIERS="1" stops after the first tier; DATA
# names the folder of the data set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
data=${DATA:-$root/data}

# `run NAME FLAGS…`: train it and round its weights, once.
run() {
  local name=$1
  shift
  python "$root/train.py" --dataset mnist --recipe fast --data_root "$data" --savepath "$root/trained_models/$name" --resume "$@"
  if [ -z "$(find "$root/trained_models/$name" -name 'eval_*.json' -print -quit)" ]; then
    python "$root/scripts/round_weights.py" "$root/trained_models/$name"
  fi
}

# `attack_run PROGRAM NAME FLAGS…`; a run that is committed without its network has been attacked.
attack_run() {
  if trained "$2"; then python "$root/evaluate_on_$1.py" --model "$root/trained_models/$2" "${@:3}" --data_root "$data"; fi
}

# The paper's protocol: `grid NAME` at its radii on 1 000 images, `whole_test_set NAME EPS…`; `attack_linf NAME IMAGES` and
# `attack_l2 NAME`: the grid and the other attacks.
grid() { attack_run pgd_attacks "$1" --eps grid --test_size 1000 --precision bf16; }
whole_test_set() { attack_run pgd_attacks "$1" --eps "${@:2}" --precision bf16; }
attack_linf() {
  grid "$1"
  attack_run autoattack "$1" --eps 0.3 --test_size "$2"
}
attack_l2() {
  grid "$1"
  attack_run minimum_norm "$1" --attacks cw --test_size 200
  attack_run minimum_norm "$1" --attacks ddn,fmn --test_size 1000
}

case ${TIERS:-12} in *1*)
  run mnist-Linf-MMA-0.45-sd0-fast --norm Linf --hinge_maxeps 0.45
  attack_linf mnist-Linf-MMA-0.45-sd0-fast 1000
  whole_test_set mnist-Linf-MMA-0.45-sd0-fast 0.3 0.4
  run mnist-Linf-MMA-0.45-sd0-fast-scale1 --norm Linf --hinge_maxeps 0.45 --eps_iter_scale 1.0
  attack_linf mnist-Linf-MMA-0.45-sd0-fast-scale1 1000
  whole_test_set mnist-Linf-MMA-0.45-sd0-fast-scale1 0.3 0.4
  run mnist-Linf-MMA-0.45-sd0-fast-scale1-4150steps --norm Linf --hinge_maxeps 0.45 --eps_iter_scale 1.0 --max_steps 4150
  whole_test_set mnist-Linf-MMA-0.45-sd0-fast-scale1-4150steps 0.3
  for d_max in 2.0 4.0; do
    run mnist-L2-MMA-$d_max-sd0-fast --norm L2 --hinge_maxeps $d_max
    attack_l2 mnist-L2-MMA-$d_max-sd0-fast
    whole_test_set mnist-L2-MMA-$d_max-sd0-fast 2.0
  done ;;
esac

case ${TIERS:-12} in *2*)
  run mnist-L2-MMA-6.0-sd0-fast --norm L2 --hinge_maxeps 6.0
  attack_l2 mnist-L2-MMA-6.0-sd0-fast
  for d_max in 2.0 4.0 6.0; do
    run mnist-L2-OMMA-$d_max-sd0-fast --norm L2 --method omma --hinge_maxeps $d_max
    grid mnist-L2-OMMA-$d_max-sd0-fast
    attack_run minimum_norm mnist-L2-OMMA-$d_max-sd0-fast --attacks ddn,fmn --test_size 500
  done
  run mnist-Linf-OMMA-0.45-sd0-fast --norm Linf --method omma --hinge_maxeps 0.45
  run mnist-Linf-PGD-0.3-sd0-fast --norm Linf --method pgd --train_eps 0.3 --nb_iter 10
  run mnist-Linf-PGD-0.45-sd0-fast --norm Linf --method pgd --train_eps 0.45 --nb_iter 10
  run mnist-Linf-TRADES-0.3-sd0-fast --norm Linf --method trades --train_eps 0.3 --nb_iter 10
  run mnist-Linf-STD-sd0-fast --norm Linf --method std --best_by mean_margin
  for name in OMMA-0.45 PGD-0.3 PGD-0.45 TRADES-0.3 STD; do attack_linf mnist-Linf-$name-sd0-fast 500; done
  networks=(mnist-Linf-{MMA-0.45,OMMA-0.45,PGD-0.3,PGD-0.45,STD,TRADES-0.3}-sd0-fast mnist-Linf-MMA-0.45-sd0-fast-scale1)
  mapfile -t models < <(folders "${networks[@]}")
  if [ ${#models[@]} = ${#networks[@]} ]; then
    python "$root/evaluate_on_transfer.py" "${models[@]}" --eps 0.1 0.2 0.3 0.4 --nb_restart 1 --test_size 1000 --data_root "$data"
  fi
  for seed in 1 2; do
    run mnist-Linf-MMA-0.45-sd$seed-fast --norm Linf --hinge_maxeps 0.45 --seed $seed
    run mnist-Linf-PGD-0.3-sd$seed-fast --norm Linf --method pgd --train_eps 0.3 --nb_iter 10 --seed $seed
    run mnist-Linf-MMA-0.45-sd$seed-fast-scale1 --norm Linf --hinge_maxeps 0.45 --seed $seed --eps_iter_scale 1.0
    for name in MMA-0.45-sd$seed-fast MMA-0.45-sd$seed-fast-scale1 PGD-0.3-sd$seed-fast; do attack_linf mnist-Linf-$name 500; done
  done ;;
esac

python "$root/reports/make_tables.py" "$root"/trained_models/mnist-* --out "$root/trained_models/mnist.md"
