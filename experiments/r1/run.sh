#!/usr/bin/env bash
# The r1 recipe on GSM8K with the embedded model: cold start, GRPO, rejection sampling and a second SFT, RLHF; every
# stage's chosen checkpoint on the whole test set, once.
#
#   experiments/r1/run.sh DATA_DIR FOLDER [overrides of the pipeline]
#
# DATA_DIR holds GSM8K's train.jsonl and test.jsonl. Started again it goes on. PYTHON names another interpreter than
# .venv/bin/python.
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

"$python" -m rlreason.pipeline +recipe=r1 "vars.data_dir=$data" "hydra.run.dir=$folder" "$@"
echo "Now: $python experiments/r1/collect.py $folder"
