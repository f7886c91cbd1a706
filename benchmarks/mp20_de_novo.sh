#!/usr/bin/env bash
# De novo crystals of the shipped mp20, beside held-out MP-20.
#   bash benchmarks/mp20_de_novo.sh [N] [RUNS_FOLDER]        needs: moldiff data prepare mp20 --source PATH (exact novelty)
set -euo pipefail
n="${1:-10000}" runs="${2:-runs}"
moldiff generate --model mp20 -n "$n" --seed 0 --out "$runs/mp20_de_novo"
moldiff evaluate "$runs/mp20_de_novo/samples.extxyz" --names mp20 --reference "${MOLDIFF_DATA:?}/mp20" --out benchmarks/results/mp20_de_novo
