#!/usr/bin/env bash
# What becomes of the true quality when a policy is trained against a reward model of it? Notes of the untrained policy,
# compared by a known rule with 10 % wrong labels; three reward models of these few hundred comparisons; GRPO against one
# of them freely (two seeds) and with a KL penalty, and against the worst of the three; best-of-n; an audit.
#
#   experiments/rlhf_overoptimisation/run.sh FOLDER
#
# FOLDER gets draws, rm-<seed>, free-<seed>, kl-<seed>, ensemble-<seed>, best_of_n and audit. Started again it goes on.
# PYTHON names another interpreter than .venv/bin/python.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: $0 FOLDER" >&2
  exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}

unless_done() { # RUN COMMAND ...
  local run="$folder/$1"
  shift
  [ -f "$run/summary.json" ] || "$python" -m "$@" "hydra.run.dir=$run"
}

unless_done draws rlreason.sample env=notes limit=240 num_samples=4 sampling.max_completion_length=96 selection.min_reward=0.5
for seed in 1 2 3; do
  unless_done "rm-$seed" rlreason.reward_model +experiment=rlhf_comparisons "data.path=$folder/draws" "seed=$seed"
done
one="env.scorer.paths=[$folder/rm-1]"
all="env.scorer.paths=[$folder/rm-1,$folder/rm-2,$folder/rm-3]"
unless_done best_of_n rlreason.evaluate env=rlhf "$one" num_samples=32 limit=60 sampling.temperature=1.0 \
  sampling.max_completion_length=96
unless_done free-1 rlreason.train +experiment=rlhf "$one" seed=1
unless_done kl-1 rlreason.train +experiment=rlhf "$one" seed=1 algo.beta=0.05
unless_done ensemble-1 rlreason.train +experiment=rlhf "$all" seed=1 env.combine._target_=envs.rlhf.Worst
unless_done free-2 rlreason.train +experiment=rlhf "$one" seed=2
unless_done audit rlreason.audit "scorer.paths=[$folder/rm-1]" "run=$folder/best_of_n" limit=40 mine=20
echo "Now: $python experiments/rlhf_overoptimisation/collect.py $folder"
