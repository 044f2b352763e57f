#!/usr/bin/env bash
# All figures of a GPU in one run: gpu.md and gpu.json in the folder --out. Options: python benchmarks/gpu.py --help
#   bash benchmarks/gpu.sh --out gpu                                  # on a GPU
#   bash benchmarks/gpu.sh --device cpu --size small --out rehearsal  # on any machine
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -W ignore benchmarks/gpu.py "$@"
