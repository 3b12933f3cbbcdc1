#!/usr/bin/env bash
# What each part of `--recipe fast` is worth: MMA-0.45 on MNIST at about 3 million passes, with the recipe, without each of its
# parts, and by the paper's recipe stopped there; PGD on 1 000 validation images. Run folders and the table go to
# benchmarks/mnist_ablation, the picture of robust accuracy against passes to docs. 22 runs. Started again, it skips what
# is done and goes on with what is not. DATA names the folder of the data set, SEEDS the further seeds of the five that
# have some.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
data=${DATA:-$root/data}
out=$root/benchmarks/mnist_ablation

# `run SEED NAME FLAGS…`; a committed run has no network to attack.
run() {
  local seed=$1 folder=$out/mnist-Linf-MMA-0.45-sd$1-$2
  shift 2
  python "$root/train.py" --dataset mnist --norm Linf --hinge_maxeps 0.45 --seed "$seed" --data_root "$data" --savepath "$folder" \
    --check_interval 100 --check_nb_iter 40 --check_size 1000 --test_size 0 --resume "$@"
  if [ -e "$folder/config.json" ] && [ ! -e "$folder/model_best.pt" ]; then return 0; fi
  python "$root/evaluate_on_pgd_attacks.py" --model "$folder" --split val --eps 0.3 0.4 --test_size 1000 --precision bf16 --data_root "$data"
}
fast() { run "$1" "$2" --recipe fast "${@:3}"; }

# Steps for 3 million passes: with everything 970 a step; without rests 1 200; with bisection 1 560; by the paper 2 650.
fast 0 fast --max_steps 3100
fast 0 fast-constant_rate --max_steps 3100 --no-one_cycle --lr 1e-3
fast 0 fast-random_starts --max_steps 3100 --no-keep_directions --refresh_interval 0
fast 0 fast-small_steps --max_steps 3100 --eps_iter_scale 1.0
fast 0 fast-never_refreshed --max_steps 3100 --refresh_interval 0
fast 0 fast-bisection --max_steps 1920 --search bisection --num_search_steps 10
fast 0 fast-no_rests --max_steps 2500 --rest_interval 1
fast 0 fast-averaged --max_steps 3100 --average_decay 0.999
fast 0 fast-float32 --max_steps 3100 --precision fp32
fast 0 fast-bf16_all --max_steps 3100 --precision bf16_all
run 0 paper --max_steps 1132
# The whole fast run's passes, for the picture.
run 0 paper-3300steps --max_steps 3300 --check_interval 1

for seed in ${SEEDS-1 2}; do
  fast "$seed" fast --max_steps 3100
  run "$seed" paper --max_steps 1132
  fast "$seed" fast-random_starts --max_steps 3100 --no-keep_directions --refresh_interval 0
  fast "$seed" fast-bisection --max_steps 1920 --search bisection --num_search_steps 10
  fast "$seed" fast-bf16_all --max_steps 3100 --precision bf16_all
done

runs=("$out"/mnist-Linf-MMA-0.45-sd?-fast "$out"/mnist-Linf-MMA-0.45-sd?-fast-* "$out"/mnist-Linf-MMA-0.45-sd?-paper)
for eps in 0.3 0.4; do
  [ "$eps" = 0.3 ] || echo
  python "$root/reports/compare_runs.py" "${runs[@]}" --eps "$eps" --split val
done > "$root/benchmarks/mnist_ablation.md"
whole=$root/trained_models/mnist-Linf-MMA-0.45-sd0-fast
