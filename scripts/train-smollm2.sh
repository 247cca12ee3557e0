#!/bin/sh
# Teach SmolLM2-135M-Instruct to use its computer, and measure it before and after:
#     train-smollm2.sh [RUNS]
# Goes on with an unfinished run in RUNS. Set up by `make train-smollm2`.
set -eu
cd "$(dirname "$0")/.."

runs=${1:-runs/train-smollm2}
recipe=recipes/smollm2.toml
python=.venv/bin/python
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

sandlot() {
    .venv/bin/sandlot "$@"
}

field() {
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["directory"])'
}

echo "==> [1/4] the image of the sandboxes"
sandlot image list | grep -q '^base ' || sandlot image build base

echo "==> [2/4] warm start and reinforcement learning ($recipe)"
if ls "$runs"/*/manifest.json >/dev/null 2>&1; then
    run=$(sandlot train --resume last --runs "$runs" --json | field)
else
    run=$(sandlot train "$recipe" --runs "$runs" --json | field)
fi

echo "==> [3/4] adapters: of the warm start and of the end"
sandlot train export "$run" --to adapter --checkpoint step-train-000000 --name warm \
    --out "$run/adapters/warm" >/dev/null
sandlot train export "$run" --to adapter --name taught --max-bytes 12MB \
    --out "$run/adapters/taught" >/dev/null
sandlot train plot "$run" --out "$run/curves.svg"

# What a user would load, through the command that a user would call. One thread: two that wait for
# each other on a busy machine are slower.
echo "==> [4/4] the untrained model, the warm start and the taught one on held-out tasks"
bench() {
    sandlot bench errands -m "$1" --mode "$2" --temperature 1 --seed 1 -c 2 --image base \
        --network none --runs "$runs/bench-$3" --no-reference --json | field
}
bench local:base both untrained >/dev/null
warm=$(bench "local:base+$run/adapters/warm/adapter.gguf" both warm)
taught=$(bench "local:base+$run/adapters/taught/adapter.gguf" both taught)
sandlot compare "$warm" "$taught"

echo
echo "run: $run"
echo "adapter: $run/adapters/taught (try: sandlot bench errands -m local:base+$run/adapters/taught/adapter.gguf)"
