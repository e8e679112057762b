#!/usr/bin/env bash
# What changed in the thoughts? Reads runs of two studies that are there already, and asks their last policies again:
# the reference's log-probabilities of the last steps' samples, the answers after a damaged thought, before GRPO and
# after, and a report page for each run.
#
#   experiments/thoughts/run.sh REASONING ARITHMETIC FOLDER
#
# REASONING is the folder given to experiments/reasoning/run.sh, ARITHMETIC a sweep of +experiment=arithmetic with
# algo=grpo among its algorithms. FOLDER gets probe/<who>; traces of the last three steps get a ref_logp where they
# are, and each GRPO run a report.html. Started again it goes on. PYTHON names another interpreter than
# .venv/bin/python.
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "usage: $0 REASONING ARITHMETIC FOLDER" >&2
  exit 2
fi
reasoning=$(cd "$1" && pwd)
arithmetic=$(cd "$2" && pwd)
mkdir -p "$3"
folder=$(cd "$3" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}

last_steps() { # RUN
  "$python" -c "import sys; from pathlib import Path
steps = sorted({int(p.stem.split('-')[-1]) for p in Path(sys.argv[1], 'traces').glob('step-*.parquet')})
print(','.join(map(str, steps[-3:])))" "$1"
}

for run in "$reasoning"/grpo-* "$arithmetic"/*; do
  [ -f "$run/summary.json" ] || continue
  "$python" -m rlreason.annotate "$run" --steps "$(last_steps "$run")"
  [ -f "$run/report.html" ] || "$python" -m rlreason.report "$run"
done
for who in "$reasoning"/eval/sft-* "$reasoning"/eval/grpo-*; do
  probed="$folder/probe/$(basename "$who")"
  [ -f "$probed/summary.json" ] ||
    "$python" -m rlreason.probe "run=$who/thinking" split=test limit=100 "hydra.run.dir=$probed"
done
echo "Now: $python experiments/thoughts/collect.py $reasoning $arithmetic $folder"
