#!/usr/bin/env bash
# The ten algorithms with three seeds, then the controls.
#
#   experiments/algorithms/run.sh FOLDER [overrides of the training, such as max_steps=2]
#
# FOLDER gets algorithms/ and controls/, each with a run folder a job. The same command again takes up what is unfinished.
# PYTHON names another interpreter than .venv/bin/python.
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

sweep() { # SUBFOLDER OVERRIDES...
  local to="hydra.sweep.dir=$folder/$1"
  shift
  "$python" -m rlreason.train -m +experiment=algorithms seed=1,2,3 "$to" console.quiet=true "$@"
}

sweep algorithms algo=grpo,dr_grpo,dapo,gspo,cispo,rloo,reinforce_pp,maxrl,ppo,expert_iteration "$@"
sweep controls reward=random,flipped "$@"
echo "Now: $python experiments/algorithms/collect.py $folder/algorithms $folder/controls"
