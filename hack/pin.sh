#!/usr/bin/env bash
# Resolves the ranges of pyproject.toml anew, in a throw-away environment, and writes the result to constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
links=()
if [[ -d ../shared/wheels ]]; then
    links=(--find-links ../shared/wheels)
fi

"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --upgrade pip
"$scratch/venv/bin/python" -m pip install ${links[@]+"${links[@]}"} --editable '.[dev]'
{
    echo '# Exact versions that the project is built and tested with; pyproject.toml holds the ranges.'
    echo '# Written by hack/pin.sh. Names and versions only: where packages come from is the pip configuration of each machine.'
    # A local version (+cpu) names a build, not a release: which build fits is each machine's own matter.
    "$scratch/venv/bin/python" -m pip freeze --all --exclude-editable |
        sed 's/+.*$//' | LC_ALL=C sort --ignore-case
} >"$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
