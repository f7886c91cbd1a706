#!/usr/bin/env bash
# The table of the README: 10,000 samples of the shipped model at 100, 50 and 20 network calls, evaluated beside real data.
#   bash benchmarks/qm9_10k.sh [RUNS_FOLDER]
# About 12, 6 and 3 minutes of sampling on 2 cores, and as long again for the evaluation with GFN2-xTB.
set -euo pipefail
runs="${1:-runs}"
for calls in 100 50 20; do
  out="$runs/qm9_$calls"
  moldiff generate --model qm9 -n 10000 --seed 0 --steps "$calls" --out "$out"
  moldiff evaluate "$out/samples.sdf" --names "$calls calls" --reference qm9 --xtb --n-relax 200 --out "benchmarks/results/qm9_$calls"
done
