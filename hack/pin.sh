#!/usr/bin/env bash
# Resolves the ranges of pyproject.toml anew and writes the result to constraints.txt. Installs nothing.
# Run it on Linux: there the torch of the package index brings its CUDA libraries, which belong into the list.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --upgrade pip
"$scratch/venv/bin/python" -m pip install --dry-run --ignore-installed --progress-bar off \
    --report "$scratch/report.json" pip --editable '.[dev]'
"$scratch/venv/bin/python" - "$scratch/report.json" >"$scratch/constraints.txt" <<'PYTHON'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    resolved = [item["metadata"] for item in json.load(file)["install"]]
print("# Exact versions that the project is built and tested with; pyproject.toml holds the ranges.")
print("# Written by hack/pin.sh. Names and versions only: where packages come from is the pip configuration of each machine.")
# A local version (+cpu) names a build, not a release: which build fits is each machine's own matter.
pins = {item["name"].lower().replace("_", "-"): item["version"].split("+")[0] for item in resolved}
pins.pop("finetuning-operator")
print("\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))
PYTHON
mv "$scratch/constraints.txt" constraints.txt
