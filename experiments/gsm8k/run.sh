#!/usr/bin/env bash
# The embedded model on GSM8K: greedy on all 1,319 test problems, then ten steps of RL.
#
#   experiments/gsm8k/run.sh DATA_DIR FOLDER [overrides of the training, such as max_steps=2]
#
# DATA_DIR holds GSM8K's train.jsonl and test.jsonl. FOLDER gets eval/<prompt>/ and the run folder train/.
# MODEL names another model than smollm2_135m, PYTHON another interpreter, LIMIT fewer test problems (for a trial).
# PROMPTS names the prompts that are evaluated: any of r1_example (the one that the training uses, and the only one by
# default: each takes about ten minutes on two cores, and more without an example), r1, hash and plain.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 DATA_DIR FOLDER [overrides]" >&2
  exit 2
fi
data=$(cd "$1" && pwd)
mkdir -p "$2"
folder=$(cd "$2" && pwd)
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
model=${MODEL:-smollm2_135m}

evaluate() { # PROMPT [overrides]
  local to="$folder/eval/$1"
  shift
  "$python" -m rlreason.evaluate env=gsm8k env.source=local "env.data_dir=$data" "model=$model" split=test \
    "limit=${LIMIT:-null}" sampling.max_completion_length=256 "hydra.run.dir=$to" "$@"
}

for prompt in ${PROMPTS:-r1_example}; do
  case $prompt in
    r1_example) evaluate r1_example env.worked_example=true ;;
    r1) evaluate r1 ;;
    hash) evaluate hash env.format._target_=envs.formats.Hash ;;
    plain) evaluate plain env.format._target_=envs.formats.Plain ;;
    *) echo "unknown prompt $prompt: choose from r1_example, r1, hash, plain" >&2; exit 2 ;;
  esac
done

"$python" -m rlreason.train +experiment=gsm8k max_steps=10 env.source=local "env.data_dir=$data" "model=$model" \
  "hydra.run.dir=$folder/train" "$@"
echo "Now: $python experiments/gsm8k/collect.py $folder"
