#!/usr/bin/env bash
# The paper's 12 MMA and OMMA runs on CIFAR-10, one after the other.
# Extra arguments go to every command: `bash scripts/run_cifar10_training.sh --max_steps 500`.
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

python "$root/train.py" --dataset cifar10 --norm Linf --clean_loss_coeff 1/3 --hinge_maxeps 12/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-MMA-12-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --clean_loss_coeff 1/3 --hinge_maxeps 20/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-MMA-20-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --clean_loss_coeff 1/3 --hinge_maxeps 32/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-MMA-32-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --clean_loss_coeff 0 --hinge_maxeps 12/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-OMMA-12-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --clean_loss_coeff 0 --hinge_maxeps 20/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-OMMA-20-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm Linf --clean_loss_coeff 0 --hinge_maxeps 32/255 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-Linf-OMMA-32-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --clean_loss_coeff 1/3 --hinge_maxeps 1.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-MMA-1.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --clean_loss_coeff 1/3 --hinge_maxeps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-MMA-2.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --clean_loss_coeff 1/3 --hinge_maxeps 3.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-MMA-3.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --clean_loss_coeff 0 --hinge_maxeps 1.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-OMMA-1.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --clean_loss_coeff 0 --hinge_maxeps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-OMMA-2.0-sd0" --resume "$@"
python "$root/train.py" --dataset cifar10 --norm L2 --clean_loss_coeff 0 --hinge_maxeps 3.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/cifar10-L2-OMMA-3.0-sd0" --resume "$@"
