#!/usr/bin/env bash
# Tests layers, mixers, models, weights and kernels with every Python and JAX that the project supports and that is here:
# the oldest JAX with the oldest Python, the newest JAX that each Python can install.
#   tests/versions.sh [PYTEST ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."
export JAX_PLATFORMS=cpu
if command -v pyenv >/dev/null; then
  PYENV_VERSION=$(pyenv versions --bare | paste -sd:) # its shims run only versions that are named
  export PYENV_VERSION
fi
failed=()
for case in "python3.11 jax==0.10.2" "python3.12 jax<0.13" "python3.13 jax<0.13"; do
  read -r python jax <<<"$case"
  if ! "$python" --version >/dev/null 2>&1; then
    echo "== $python is not here: left out"
    continue
  fi
  venv=".venv-$python"
  [ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --upgrade --editable ".[dev]" "$jax"
  echo "== $python with jax $("$venv/bin/python" -c 'import jax; print(jax.__version__)')"
  JAX_COMPILATION_CACHE_DIR="$PWD/.jax_cache/$python" "$venv/bin/python" -m pytest -n 2 --dist worksteal \
    tests/layers tests/mixers tests/models tests/weights tests/pallas_kernels "$@" || failed+=("$python")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed with ${failed[*]}"; exit 1; }
