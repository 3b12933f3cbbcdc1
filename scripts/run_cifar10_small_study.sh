#!/usr/bin/env bash
# CIFAR-10 on a CPU: the small residual network by `--recipe fast`, every method at about the same passes, then what each part of
# the recipe is worth. Pictures in DATA: train/<class>/* and test/<class>/*, 32x32; as JPEG they are named CIFAR-10 (JPEG).
# Every run is trained and its weights rounded to float16 before the next begins, then all are attacked. On two CPU cores a run
# takes 15 to 20 minutes, and its attacks as long. Started again, it skips what is done and goes on with what is not.
# TIERS: 1 seven networks by four methods, 2 second seeds, 3 the ablation on validation images; TIERS="1" does the first alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
cd "$root"
data=${DATA:-data}
models=trained_models
norm=Linf
ablation=benchmarks/cifar10_ablation
radii=(4/255 8/255 12/255 16/255 20/255 24/255 28/255 32/255)

# `train FOLDER FLAGS…`: all images in memory, as kept directions want it.
train() {
  python train.py --dataset imagefolder --norm "$norm" --network small_resnet --recipe fast --no-streaming \
    --data_root "$data" --savepath "$1" --resume "${@:2}"
}

# `run NAME FLAGS…`: train it and round its weights, once.
run() {
  train "$models/$1" "${@:2}"
  if [ -z "$(find "$models/$1" -name 'eval_*.json' -print -quit)" ]; then
    python scripts/round_weights.py "$models/$1"
  fi
}

# `attack NAME`: 5 restarts of 50 steps at every radius on 1 000 test images; the paper's protocol and AutoAttack on 200.
attack() {
  local pgd=(python evaluate_on_pgd_attacks.py --model "$models/$1" --eps "${radii[@]}" --precision bf16 --data_root "$data")
  "${pgd[@]}" --test_size 1000 --nb_restart 5 --nb_iter 50 --save_adv  # which the transfer attack replays
  "${pgd[@]}" --test_size 200
  python evaluate_on_autoattack.py --model "$models/$1" --eps 8/255 --test_size 200 --data_root "$data"
}

name() { echo "cifar10jpeg-Linf-$1-sd${2:-0}-fast"; }
first=(STD PGD-8 PGD-16 TRADES-8 MMA-12 MMA-20 MMA-32)

case ${TIERS:-123} in *1*)
  # Nothing of ordinary training is robust: its network is the last one.
  run "$(name STD)" --method std --check_interval 1000
  run "$(name PGD-8)" --method pgd --train_eps 8/255
  run "$(name PGD-16)" --method pgd --train_eps 16/255
  run "$(name TRADES-8)" --method trades --train_eps 8/255
  for d_max in 12 20 32; do run "$(name MMA-$d_max)" --hinge_maxeps $d_max/255; done
  for method in "${first[@]}"; do attack "$(name "$method")"; done
  folders=()
  for method in "${first[@]}"; do folders+=("$models/$(name "$method")"); done
  python evaluate_on_transfer.py "${folders[@]}" --eps "${radii[@]}" --test_size 1000 --data_root "$data" ;;
esac

case ${TIERS:-123} in *2*)
  run "$(name PGD-8 1)" --method pgd --train_eps 8/255 --seed 1
  run "$(name MMA-20 1)" --hinge_maxeps 20/255 --seed 1
  for method in PGD-8 MMA-20; do attack "$(name "$method" 1)"; done ;;
esac

# `attacked FOLDER EPS FLAGS…`: trained by these flags, then attacked at these radii on validation images. Of the committed runs
# the networks are not kept: they have been attacked, and are made again once their folders have been moved away.
attacked() {
  train "$1" --test_size 0 --check_interval 1000 "${@:3}"
  if [ -e "$1/config.json" ] && [ ! -e "$1/model_best.pt" ]; then return 0; fi
  # shellcheck disable=SC2086  # several radii
  python evaluate_on_pgd_attacks.py --model "$1" --split val --eps $2 --test_size 1000 \
    --nb_restart 5 --nb_iter 50 --precision bf16 --data_root "$data"
}

# `part NAME FLAGS…`: MMA-20 with the recipe, but for these flags; `l2_part` the same of MMA-1 under L2.
part() { attacked "$ablation/cifar10jpeg-Linf-MMA-20-sd0-$1" "4/255 8/255 16/255" --hinge_maxeps 20/255 "${@:2}"; }
l2_part() { norm=L2 attacked "$ablation/cifar10jpeg-L2-MMA-1.0-sd0-$1" "0.25 0.5 1.0" --hinge_maxeps 1.0 "${@:2}"; }

case ${TIERS:-123} in *3*)
  # A quarter of the study's passes, so that sixteen runs are an afternoon. Steps: those that give the passes of the first, by
  # the share of images that it attacks (docs/speed.md).
  part fast --max_steps 2850
  part fast-random_starts --max_steps 2850 --no-keep_directions --refresh_interval 0
  part fast-one_step --max_steps 3200 --nb_iter 1
  part fast-three_steps --max_steps 2575 --nb_iter 3
  part fast-search_train --max_steps 2850 --search_mode train
  part fast-search_batch --max_steps 2850 --search_mode batch
  part fast-averaged --max_steps 2850 --average_decay 0.999
  part fast-weight_decay_2e-4 --max_steps 2850 --weight_decay 2e-4
  part fast-peak_0.1 --max_steps 2850 --lr 0.1
  part fast-constant_rate --max_steps 2850 --no-one_cycle --lr 0.1
  part fast-bisection --max_steps 1725 --search bisection --num_search_steps 10
  part fast-bf16 --max_steps 2850 --precision bf16
  part paper --recipe paper --max_steps 1100 --check_nb_iter 10 --check_size 1000
  runs=("$ablation"/cifar10jpeg-Linf-MMA-20-sd0-{fast,fast-*,paper})
  python reports/compare_runs.py "${runs[@]}" --eps 8/255 --split val --out benchmarks/cifar10_ablation.md
  l2_part fast --max_steps 2850
  l2_part fast-random_starts --max_steps 2850 --no-keep_directions --refresh_interval 0
  l2_part fast-one_random_step --max_steps 3200 --nb_iter 1 --no-keep_directions --refresh_interval 0
  runs=("$ablation"/cifar10jpeg-L2-MMA-1.0-sd0-{fast,fast-*})
  python reports/compare_runs.py "${runs[@]}" --eps 0.5 --split val --out benchmarks/cifar10_ablation_L2.md ;;
esac

case ${TIERS:-123} in *[12]*)
  python reports/make_tables.py "$models"/cifar10jpeg-*-fast --out "$models/cifar10jpeg.md" ;;
esac
