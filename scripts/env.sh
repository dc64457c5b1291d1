#!/usr/bin/env bash
# To be sourced: makes or reuses the Python environment and leaves its interpreter in $PYTHON.
#
#   UNFOLDLDM_VENV    folder of the environment (default: .venv of the repository)
#   UNFOLDLDM_PYTHON  Python to make it with (default: the first of python3.12, 3.11, 3.10, python3
#                     that is 3.10 to 3.12)
#
# Nothing is installed when setup.py, pyproject.toml and this file are unchanged since the last time.
# An environment that already has torch keeps it: to choose another build of torch, make the folder
# and install torch and torchvision in it first.

# OpenMP's threads sleep while they wait: spinning ones take the cores from each other and from all
# else that runs (docs/speed.md). Any of the three variables says that the user has decided.
[ -n "${OMP_WAIT_POLICY:-}${GOMP_SPINCOUNT:-}${KMP_BLOCKTIME:-}" ] || export OMP_WAIT_POLICY=PASSIVE

_env_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
_env_dir="${UNFOLDLDM_VENV:-$_env_root/.venv}"
PYTHON="$_env_dir/bin/python"
export PYTHON

_env_fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

_env_stamp() {
    (cd "$_env_root" && cat setup.py pyproject.toml scripts/env.sh | cksum)
}

_env_suitable() { # is this Python one that BasicSR 1.4.2 can be built with?
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

_env_find_python() {
    local candidate
    for candidate in ${UNFOLDLDM_PYTHON:-python3.12 python3.11 python3.10 python3 python}; do
        if command -v "$candidate" >/dev/null && _env_suitable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    _env_fail \
        "no suitable Python found (looked for ${UNFOLDLDM_PYTHON:-python3.12, 3.11, 3.10, python3}; python3 is $(python3 --version 2>&1 || echo missing))." \
        'Python 3.10, 3.11 or 3.12 is needed: the set-up script of BasicSR 1.4.2 fails on 3.13 and later.' \
        'Install one (for example: apt install python3.12 python3.12-venv, or conda create -n unfoldldm python=3.12)' \
        'and run this again, with UNFOLDLDM_PYTHON=/path/to/python3.12 if it is not on the PATH.'
}

_env_create() {
    local python
    python="$(_env_find_python)" || exit 1
    echo "Making an environment in $_env_dir with $("$python" --version) ..."
    if "$python" -m venv "$_env_dir" >/dev/null 2>&1; then
        return
    fi
    # Debian and Ubuntu split ensurepip off: take the pip of the system instead.
    "$python" -m venv --clear --without-pip "$_env_dir" ||
        _env_fail "$python cannot make environments. Install its venv module (apt install python3-venv)."
    "$python" -m pip --python "$PYTHON" install --quiet pip ||
        _env_fail "no pip for $PYTHON. Install one of: apt install python3-venv, apt install python3-pip."
}

_env_pip() {
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@" ||
        _env_fail "'pip install $*' failed, see above. Running the same command again goes on from here."
}

_env_install() {
    echo 'Installing torch and torchvision ...'
    _env_pip torch torchvision
    # BasicSR has no wheels, and an isolated build of it would download torch once more.
    echo 'Building BasicSR 1.4.2 ...'
    _env_pip 'setuptools>=68' wheel cython numpy
    _env_pip --no-build-isolation 'basicsr==1.4.2'
    echo 'Installing unfoldldm_basicsr and its test tools ...'
    _env_pip --no-build-isolation -e "$_env_root[test]"
    _env_stamp >"$_env_dir/unfoldldm.stamp"
}

[ -x "$PYTHON" ] || _env_create
_env_suitable "$PYTHON" || _env_fail \
    "$PYTHON is $("$PYTHON" --version 2>&1), but Python 3.10 to 3.12 is needed: the set-up script of BasicSR 1.4.2 fails on 3.13 and later." \
    "Remove the folder $_env_dir (or set UNFOLDLDM_VENV to another one) and run this again."
[ "$(_env_stamp)" = "$(cat "$_env_dir/unfoldldm.stamp" 2>/dev/null)" ] || _env_install
