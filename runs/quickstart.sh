#!/usr/bin/env bash
# The whole story on the nano model: who it is, learning to be someone else, what was kept.
# usage: runs/quickstart.sh [FOLDER]      (default: a new temporary folder)
set -euo pipefail
PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin:$PATH"
out=${1:-$(mktemp -d)}

evergreen demo --home "$out/home" --output_dir "$out/demo"
