#!/usr/bin/env bash
# One-digit addition with three seeds, then greedy evaluations of the untrained model and of each final checkpoint.
#
#   experiments/arithmetic/run.sh FOLDER [overrides of the training, such as max_steps=2]
#
# FOLDER gets a run folder per seed and eval/<who>/<problems>/, where <who> is a run folder's name, `base` (the untrained
# model) or `base_long` (the same with 256 tokens instead of 32: is it wrong, or only cut off?).
# MODEL names another model than smollm2_135m, PYTHON another interpreter.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: $0 FOLDER [overrides]" >&2
  exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
model=${MODEL:-smollm2_135m}

evaluate() { # WHO MODEL TOKENS
  local common=(env=arithmetic "model=$2" "sampling.max_completion_length=$3")
  local to="hydra.run.dir=$folder/eval/$1"
  "$python" -m rlreason.evaluate "${common[@]}" split=validation "$to/validation"
  "$python" -m rlreason.evaluate "${common[@]}" split=test "$to/test"
  "$python" -m rlreason.evaluate "${common[@]}" env.digits=2 env.name=arithmetic_2digits split=test limit=500 \
    "$to/two_digits"
}

"$python" -m rlreason.train -m +experiment=arithmetic seed=1,2,3 "model=$model" "hydra.sweep.dir=$folder" "$@"

evaluate base "$model" 32
evaluate base_long "$model" 256
for run in "$folder"/[0-9]*-*/; do
  checkpoints=("$run"checkpoints/step-*)
  evaluate "$(basename "$run")" "${checkpoints[-1]}" 32
done
echo "Now: $python experiments/arithmetic/plot.py $folder"
