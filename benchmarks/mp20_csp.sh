#!/usr/bin/env bash
# Crystal structure prediction of the shipped mp20-csp on the first 2,000 validation compositions of MP-20, one prediction each and,
# on the first 200, twenty each, and one each on the first 500 without a symmetry; beside them the baseline that swaps elements in
# known structures. With a number of candidates, one prediction each once more, without a symmetry: the one of so many that the
# model finds likeliest, on the first N (2,000) compositions. With "prototypes" in its place the predictions begin at known
# structures: one each for 2,000 and twenty each for 200 at those of the training part, one each for 500 at AFLOW's, and for these
# one each from noise beside them.
#   bash benchmarks/mp20_csp.sh [RUNS_FOLDER [CANDIDATES|prototypes [N]]]        needs: moldiff data prepare mp20 --source PATH
set -euo pipefail
runs="${1:-runs}" candidates="${2:-}" n="${3:-2000}"
mkdir -p "$runs"
if [ "$candidates" = prototypes ]; then
  for run in 2000:1:mp20 200:20:mp20 500:1:aflow 500:1:none; do
    IFS=: read -r n k source <<< "$run"
    python benchmarks/compositions.py --data mp20 --split val --n "$n" --out "$runs/compositions_$n.csv"
    out="$runs/mp20_csp_${source}_$k"
    moldiff generate --model mp20-csp --compositions "$runs/compositions_$n.csv" -n "$k" --seed 0 --prototypes "$source" \
      $([ "$source" = none ] && echo --candidates 1 --symmetry none) --no-clusters --out "$out"
    moldiff evaluate "$out/samples.extxyz" --names "mp20-csp with prototypes $source" --truth "mp20:val:$n" \
      --out "benchmarks/results/mp20_csp_prototypes_${source}_$k"
  done
  exit
fi
if [ -n "$candidates" ]; then
  python benchmarks/compositions.py --data mp20 --split val --n "$n" --out "$runs/compositions_$n.csv"
  out="$runs/mp20_csp_candidates_$candidates"
  moldiff generate --model mp20-csp --compositions "$runs/compositions_$n.csv" -n 1 --seed 0 --prototypes none --symmetry none \
    --candidates "$candidates" --out "$out"
  moldiff evaluate "$out/samples.extxyz" --names "mp20-csp of $candidates candidates" --truth "mp20:val:$n" \
    --out "benchmarks/results/mp20_csp_candidates_$candidates"
  exit
fi
for run in 2000:1:learned 200:20:learned 500:1:none; do
  IFS=: read -r n k symmetry <<< "$run"
  python benchmarks/compositions.py --data mp20 --split val --n "$n" --out "$runs/compositions_$n.csv"
  out="$runs/mp20_csp_${symmetry}_$k"
  moldiff generate --model mp20-csp --compositions "$runs/compositions_$n.csv" -n "$k" --seed 0 --prototypes none --candidates 1 \
    --symmetry "$symmetry" --no-clusters --out "$out"
  moldiff evaluate "$out/samples.extxyz" --names "mp20-csp with symmetry $symmetry" --truth "mp20:val:$n" \
    --out "benchmarks/results/mp20_csp_${symmetry}_$k"
done
