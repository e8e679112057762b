#!/usr/bin/env bash
# Reward models of the embedded model: on hh-rlhf's harmless pairs with three seeds, and on generated notes compared by a
# known rule with 10 % of the training labels wrong.
#
#   experiments/reward_model/run.sh PAIRS FOLDER
#
# PAIRS is hh-rlhf's harmless test file (.jsonl.gz). FOLDER gets hh-<seed> and synthetic. Started again it goes on. PYTHON
# names another interpreter than .venv/bin/python.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 PAIRS FOLDER" >&2
  exit 2
fi
pairs=$(realpath "$1")
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}

unless_done() { # RUN OVERRIDES ...
  local run="$folder/$1"
  shift
  [ -f "$run/summary.json" ] || "$python" -m rlreason.reward_model "$@" "hydra.run.dir=$run"
}

unless_done synthetic +experiment=reward_model_synthetic seed=1
for seed in 1 2 3; do
  unless_done "hh-$seed" +experiment=reward_model_hh "data.source.train=$pairs" "seed=$seed"
done
echo "Now: $python experiments/reward_model/collect.py $folder"
