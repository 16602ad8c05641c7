#!/bin/sh
# Builds the wheel of the source archive as pip does where nothing is built yet, and uses it where no Swift is:
# check_source_archive.sh PYTHON. Fetches hatchling (build isolation) and NumPy; the Swift build takes minutes.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset LOCKSTEP_PREBUILT LOCKSTEP_BUILD_PATH

cd "$root"
"$python" -m hatchling build -t sdist -d "$work/sdist"
"$python" -m pip wheel --no-deps --no-cache-dir -w "$work/wheel" "$work"/sdist/lockstep-*.tar.gz
echo "built $(basename "$work"/wheel/*.whl)"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q "$work"/wheel/*.whl
cd /
env -i PATH= "$work/venv/bin/python" -c "
import numpy as np, lockstep
print(lockstep.__version__, float(lockstep.log_probs(np.array([[1, 2, 3, 4]], np.float32), np.array([3]))[0]))" |
    tee "$work/said"
grep -q ' -0\.440189' "$work/said"
