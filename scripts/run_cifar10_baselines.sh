#!/usr/bin/env bash
# The baselines on CIFAR-10: ordinary training, PGD, PGDLS and TRADES, one after the other.
# Extra arguments go to every command: `bash scripts/run_cifar10_baselines.sh --max_steps 500`.
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

python "$root/train.py" --dataset cifar10 --norm Linf --method std --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-STD-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --method pgd --train_eps 8/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-PGD-8-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --method pgd --train_eps 16/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-PGD-16-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --method pgd --train_eps 24/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-PGD-24-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --method pgdls --train_eps 8/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-PGDLS-8-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --method pgdls --train_eps 16/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-PGDLS-16-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --method pgdls --train_eps 24/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-PGDLS-24-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --method trades --train_eps 8/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-TRADES-8-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method std --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-STD-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgd --train_eps 0.5 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGD-0.5-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgd --train_eps 1.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGD-1.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgd --train_eps 1.5 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGD-1.5-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgd --train_eps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGD-2.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgd --train_eps 2.5 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGD-2.5-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgdls --train_eps 0.5 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGDLS-0.5-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgdls --train_eps 1.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGDLS-1.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgdls --train_eps 1.5 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGDLS-1.5-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgdls --train_eps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGDLS-2.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method pgdls --train_eps 2.5 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-PGDLS-2.5-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --method trades --train_eps 1.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-TRADES-1.0-sd0" --resume "$@"
