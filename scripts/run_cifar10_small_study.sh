#!/usr/bin/env bash
# CIFAR-10 on a CPU: the small residual network by `--recipe fast`, every method at about the same passes.
# Pictures in DATA: train/<class>/* and test/<class>/*, 32x32; as JPEG they are named CIFAR-10 (JPEG).
# Every run is trained and its weights rounded to float16 before the next begins, then all are attacked. On two CPU cores a run
# takes 15 to 20 minutes, and its attacks as long. Started again, it skips what is done and goes on with what is not.
# TIERS: 1 seven networks by four methods, 2 second seeds; TIERS="1" does the first alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
data=${DATA:-data}
radii=(4/255 8/255 12/255 16/255 20/255 24/255 28/255 32/255)

folder() { echo "trained_models/cifar10jpeg-Linf-$1-sd${2:-0}-fast"; }

# `run FOLDER FLAGS…`: all images in memory, as warm starts want it.
run() { train_once "$1" --dataset imagefolder --norm Linf --network small_resnet --recipe fast --test_size 1000 --no-streaming "${@:2}"; }

# `attack_run FOLDER`: 5 restarts of 50 steps at every radius on 1 000 test images; the paper's protocol and AutoAttack on 200.
attack_run() {
  local pgd=(python evaluate_on_pgd_attacks.py --model "$1" --eps "${radii[@]}" --precision bf16 --data_root "$data")
  "${pgd[@]}" --test_size 1000 --nb_restart 5 --nb_iter 50 --save_adv  # which the transfer attack replays
  "${pgd[@]}" --test_size 200
  python evaluate_on_autoattack.py --model "$1" --eps 8/255 --test_size 200 --data_root "$data"
}

case ${TIERS:-12} in *1*)
  # Nothing of standard training is robust: its network is the last one.
  run "$(folder STD)" --method std --check_interval 1000 --best_by mean_margin
  run "$(folder PGD-8)" --method pgd --train_eps 8/255
  run "$(folder PGD-16)" --method pgd --train_eps 16/255
  run "$(folder TRADES-8)" --method trades --train_eps 8/255
  for d_max in 12 20 32; do run "$(folder MMA-$d_max)" --hinge_maxeps $d_max/255; done
  runs=()
  for method in STD PGD-8 PGD-16 TRADES-8 MMA-12 MMA-20 MMA-32; do runs+=("$(folder "$method")"); done
  for one in "${runs[@]}"; do attack_run "$one"; done
  python evaluate_on_transfer.py "${runs[@]}" --eps "${radii[@]}" --test_size 1000 --data_root "$data" ;;
esac

case ${TIERS:-12} in *2*)
  run "$(folder PGD-8 1)" --method pgd --train_eps 8/255 --seed 1
  run "$(folder MMA-20 1)" --hinge_maxeps 20/255 --seed 1
  for method in PGD-8 MMA-20; do attack_run "$(folder "$method" 1)"; done ;;
esac

python reports/make_tables.py trained_models/cifar10jpeg-*-fast --out trained_models/cifar10jpeg.md
