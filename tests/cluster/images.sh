#!/usr/bin/env bash
# Builds the images and loads them into the cluster; what has not changed is neither built nor loaded again.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-.venv/bin/python}" tests/cluster/images.py "$@"
