#!/usr/bin/env bash
# Scorecards and the sandbox's figures, about five minutes; then a short GRPO run on MBPP, about fifteen.
#
#   experiments/verifiers/run.sh FOLDER_WITH_MBPP FOLDER_FOR_THE_RUN
#
# PYTHON names another interpreter than .venv/bin/python; it needs the extra `bench`.
set -euo pipefail

if [ $# -ne 2 ]; then
  echo "usage: $0 FOLDER_WITH_MBPP FOLDER_FOR_THE_RUN" >&2
  exit 2
fi
data=$(cd "$1" && pwd)
mkdir -p "$2"
run=$(cd "$2" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}

"$python" -m experiments.verifiers.measure "$data"
"$python" -m rlreason.train +experiment=mbpp env.source=local env.data_dir="$data" hydra.run.dir="$run/mbpp"
echo "Now: $python -m experiments.verifiers.collect $run/mbpp"
