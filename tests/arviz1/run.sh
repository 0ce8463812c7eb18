#!/usr/bin/env bash
# ArviZ 1.x needs Python 3.12: what hands it a fit is tested there, without torch.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=${ARVIZ1_VENV:-.venv-arviz1}
pins=constraints-arviz1.txt

# A python3.12 on the path may be a shim that only says where the real one is.
works() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; }

python=
for candidate in "${PYTHON312:-}" python3.12 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do
    if [[ -n $candidate ]] && works "$candidate"; then
        python=$candidate
        break
    fi
done
if [[ -z $python ]]; then
    echo "SKIPPED: no working python3.12, arviz 1.x NOT CHECKED" >&2
    exit 0
fi

# Made anew when the pins have changed, or when it was left half made.
if [[ ! $venv/.installed -nt $pins ]]; then
    echo "Installing arviz 1.x into $venv; the first time takes a minute."
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check -c "$pins" \
        'arviz>=1.1,<2' matplotlib h5netcdf h5py pytest
    touch "$venv/.installed"
fi

# The settings and fixtures of the other tests need torch.
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -c tests/arviz1/pytest.ini --rootdir=. \
    --noconftest "$@" tests/unit/test_inference_data.py tests/unit/test_psis.py
