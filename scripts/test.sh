#!/usr/bin/env bash
# Makes or reuses the environment, then runs linter, formatter check and the default test suite.
# Arguments go to pytest, for example: bash scripts/test.sh tests/test_compat.py -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
