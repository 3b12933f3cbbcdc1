#!/usr/bin/env bash
# The networks of README's table and one of CIFAR-10 (JPEG) for people without this code: model.safetensors or model.onnx beside
# model_best.pt, and every card. To be run when the last of them is evaluated.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
for name in mnist-Linf-MMA-0.45-sd{0,1,2}-fast cifar10jpeg-Linf-MMA-20-sd0-fast; do
  rm -f "trained_models/$name"/model.{safetensors,onnx}
  python scripts/export.py "$name" --to folder --out "trained_models/$name"
done
python reports/model_card.py trained_models/*-fast trained_models/digits-*
