#!/usr/bin/env bash
# What each published table of CIFAR-10 needs, on the runs that are trained, cheap things first: repeated white-box PGD at the
# table's ε (100 steps, 5 CE + 5 CW restarts), the grid of ε, transfer, smallest distances, AutoAttack. It ends with the tables.
# Extra arguments go to every evaluation: `bash scripts/attack_cifar10_models.sh --test_size 1000`.
# Started again, it skips what is finished and goes on with what is not; runs that are not trained yet are skipped.
# Transfer replays the images that PGD found under Linf: they stay beside the models, 1 GB a run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

mapfile -t linf < <(folders cifar10-Linf-MMA-12-sd0 cifar10-Linf-MMA-20-sd0 cifar10-Linf-MMA-32-sd0 cifar10-Linf-OMMA-12-sd0 cifar10-Linf-OMMA-20-sd0 cifar10-Linf-OMMA-32-sd0 && baselines cifar10-Linf)
mapfile -t l2 < <(folders cifar10-L2-MMA-1.0-sd0 cifar10-L2-MMA-2.0-sd0 cifar10-L2-MMA-3.0-sd0 cifar10-L2-OMMA-1.0-sd0 cifar10-L2-OMMA-2.0-sd0 cifar10-L2-OMMA-3.0-sd0 && baselines cifar10-L2)

for run in "${linf[@]}"; do
  python "$root/evaluate_on_pgd_attacks.py" --dataset cifar10 --norm Linf --eps 8/255 --nb_iter 100 --nb_restart 10 --save_adv --data_root "$root/data" --model "$run" "$@"
done
for run in "${l2[@]}"; do
  python "$root/evaluate_on_pgd_attacks.py" --dataset cifar10 --norm L2 --eps 0.5 1.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --model "$run" "$@"
done

for run in "${linf[@]}"; do
  python "$root/evaluate_on_pgd_attacks.py" --dataset cifar10 --norm Linf --eps grid --nb_iter 100 --nb_restart 10 --save_adv --data_root "$root/data" --model "$run" "$@"
done
for run in "${l2[@]}"; do
  python "$root/evaluate_on_pgd_attacks.py" --dataset cifar10 --norm L2 --eps grid --nb_iter 100 --nb_restart 10 --data_root "$root/data" --model "$run" "$@"
done

if [ ${#linf[@]} -gt 1 ]; then
  python "$root/evaluate_on_transfer.py" "${linf[@]}" --dataset cifar10 --norm Linf --eps grid --data_root "$root/data" "$@"
fi

for run in "${l2[@]}"; do
  python "$root/evaluate_on_minimum_norm.py" --dataset cifar10 --norm L2 --attacks cw --test_size 1000 --data_root "$root/data" --model "$run" "$@"
done

for run in "${linf[@]}"; do
  python "$root/evaluate_on_autoattack.py" --dataset cifar10 --norm Linf --eps 8/255 --data_root "$root/data" --model "$run" "$@"
done
for run in "${l2[@]}"; do
  python "$root/evaluate_on_autoattack.py" --dataset cifar10 --norm L2 --eps 0.5 --data_root "$root/data" --model "$run" "$@"
done

if [ ${#linf[@]} -gt 0 ] || [ ${#l2[@]} -gt 0 ]; then
  python "$root/reports/make_tables.py" "${linf[@]}" "${l2[@]}"
  echo "python reports/make_tables.py --fill puts them beside the published figures in README.md and docs/results.md"
fi
