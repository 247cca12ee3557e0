#!/bin/sh
# Teach SmolLM2-135M-Instruct to use its computer, and measure it before and after:
#     train-smollm2.sh [RUNS [SEED]]
# Goes on with an unfinished run in RUNS. Another seed also trains on other tasks. Set up by
# `make train-smollm2`.
set -eu
cd "$(dirname "$0")/.."

seed=${2:-1}
runs=${1:-runs/train-smollm2-$seed}
recipe=recipes/smollm2.toml
python=.venv/bin/python
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

sandlot() {
    .venv/bin/sandlot "$@"
}

# The directory of a run, out of what it printed as JSON.
directory() {
    printf '%s' "$1" | "$python" -c 'import json, sys; print(json.load(sys.stdin)["directory"])'
}

echo "==> [1/4] the image of the sandboxes"
image=$("$python" scripts/prepare_image.py)

echo "==> [2/4] warm start and reinforcement learning ($recipe)"
if ls "$runs"/*/manifest.json >/dev/null 2>&1; then
    told=$(sandlot train --resume last --runs "$runs" --json)
else
    told=$(sandlot train "$recipe" --seed "$seed" --set "tasks.train.seed=${seed}000" \
        --set "sandbox.image=$image" --runs "$runs" --json)
fi
run=$(directory "$told")

echo "==> [3/4] adapters: of the warm start and of the end"
sandlot train export "$run" --to adapter --checkpoint step-train-000000 --name warm \
    --out "$run/adapters/warm" >/dev/null
sandlot train export "$run" --to adapter --name taught --max-bytes 12MB \
    --out "$run/adapters/taught" >/dev/null
sandlot train plot "$run" --out "$run/curves.svg"

# What a user would load, through the command that a user would call. Of the untrained model a few
# items are enough: it wanders through all its turns. Exit code 1: some episodes have no score.
echo "==> [4/4] the untrained model, the warm start and the taught one on held-out tasks"
bench() {
    name=$1 model=$2
    shift 2
    told=$(sandlot bench errands -m "$model" --mode both --temperature 1 --seed 1 --image "$image" \
        --network none --no-reference --runs "$runs/bench-$name" --json "$@") || [ $? = 1 ]
    directory "$told"
}
bench untrained local:base --limit 24 >/dev/null
warm=$(bench warm "local:base+$run/adapters/warm/adapter.gguf")
taught=$(bench taught "local:base+$run/adapters/taught/adapter.gguf")
sandlot compare "$warm" "$taught"

echo
echo "run: $run"
echo "taught: -m local:base+$run/adapters/taught/adapter.gguf"
