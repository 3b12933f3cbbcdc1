#!/usr/bin/env bash
# The paper's attack on the 12 CIFAR-10 runs: repeated white-box PGD, 100 steps, 5 CE + 5 CW restarts.
# Extra arguments go to every command: `bash scripts/attack_cifar10_models.sh --test_size 1000`.
# Started again, it skips what is finished; runs that are not trained yet are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

if trained cifar10-Linf-MMA-12-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-Linf-MMA-12-sd0" --dataset cifar10 --norm Linf --eps 8/255 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-Linf-MMA-20-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-Linf-MMA-20-sd0" --dataset cifar10 --norm Linf --eps 8/255 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-Linf-MMA-32-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-Linf-MMA-32-sd0" --dataset cifar10 --norm Linf --eps 8/255 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-Linf-OMMA-12-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-Linf-OMMA-12-sd0" --dataset cifar10 --norm Linf --eps 8/255 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-Linf-OMMA-20-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-Linf-OMMA-20-sd0" --dataset cifar10 --norm Linf --eps 8/255 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-Linf-OMMA-32-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-Linf-OMMA-32-sd0" --dataset cifar10 --norm Linf --eps 8/255 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-L2-MMA-1.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-L2-MMA-1.0-sd0" --dataset cifar10 --norm L2 --eps 1.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-L2-MMA-2.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-L2-MMA-2.0-sd0" --dataset cifar10 --norm L2 --eps 1.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-L2-MMA-3.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-L2-MMA-3.0-sd0" --dataset cifar10 --norm L2 --eps 1.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-L2-OMMA-1.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-L2-OMMA-1.0-sd0" --dataset cifar10 --norm L2 --eps 1.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-L2-OMMA-2.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-L2-OMMA-2.0-sd0" --dataset cifar10 --norm L2 --eps 1.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained cifar10-L2-OMMA-3.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/cifar10-L2-OMMA-3.0-sd0" --dataset cifar10 --norm L2 --eps 1.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
