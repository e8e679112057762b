#!/usr/bin/env bash
# Does thinking help, and does reinforcement make more of it? A cold start on worked arithmetic with three seeds, GRPO from
# each, the control with a random reward from the first, and every checkpoint evaluated with its thought, greedily and as
# training samples, and in one breath.
#
#   experiments/reasoning/run.sh FOLDER [SEED ...]
#
# FOLDER gets sft-<seed>, grpo-<seed>, random-<seed> and eval/<who>/<how>. Started again it goes on. PYTHON names another
# interpreter than .venv/bin/python.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: $0 FOLDER [SEED ...]" >&2
  exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
seeds=("${@:-1 2 3}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}

newest() { # RUN
  local found=("$1"/checkpoints/step-*)
  echo "${found[-1]}"
}

evaluate() { # WHO MODEL
  local problems=('operations=["+","-"]' terms=4 format._target_=envs.formats.R1)
  local thinking=("model=$2" env=arithmetic "${problems[@]/#/env.}" "+env.format.instruction=''" split=test limit=500
    sampling.max_completion_length=128)
  [ -f "$folder/eval/$1/thinking/summary.json" ] ||
    "$python" -m rlreason.evaluate "${thinking[@]}" "hydra.run.dir=$folder/eval/$1/thinking"
  [ -f "$folder/eval/$1/sampled/summary.json" ] ||
    "$python" -m rlreason.evaluate "${thinking[@]}" num_samples=2 sampling.temperature=0.7 "hydra.run.dir=$folder/eval/$1/sampled"
  [ -f "$folder/eval/$1/in_one_breath/summary.json" ] ||
    "$python" -m rlreason.evaluate "model=$2" env=prefilled "${problems[@]/#/env.env.}" "+env.env.format.instruction=''" split=test \
      limit=500 sampling.max_completion_length=16 "hydra.run.dir=$folder/eval/$1/in_one_breath"
}

for seed in ${seeds[@]}; do
  "$python" -m rlreason.sft +experiment=reasoning_sft "seed=$seed" "hydra.run.dir=$folder/sft-$seed"
  cold=$(newest "$folder/sft-$seed")
  "$python" -m rlreason.train +experiment=reasoning "seed=$seed" "model=$cold" "hydra.run.dir=$folder/grpo-$seed"
  evaluate "sft-$seed" "$cold"
  evaluate "grpo-$seed" "$(newest "$folder/grpo-$seed")"
done
first=${seeds[0]%% *}
"$python" -m rlreason.train +experiment=reasoning reward=random "seed=$first" "model=$(newest "$folder/sft-$first")" \
  "hydra.run.dir=$folder/random-$first"
evaluate "random-$first" "$(newest "$folder/random-$first")"
evaluate base smollm2_135m
echo "Now: $python experiments/reasoning/collect.py $folder"
