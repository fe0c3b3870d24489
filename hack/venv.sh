#!/usr/bin/env bash
# Makes .venv, or brings it up to date, with one extra of this project (`hack/venv.sh local`, `hack/venv.sh dev`).
# Does nothing when pyproject.toml and constraints.txt are those of the last finished installation.
set -euo pipefail
cd "$(dirname "$0")/.."

extra=$1
venv=.venv
python=${PYTHON:-python3}
stamp=$venv/.installed-$extra
wheels=../shared/wheels # Wheels that a site lays beside its checkout, such as torch without CUDA.

inputs() {
    cat pyproject.toml constraints.txt hack/venv.sh | cksum
    "$venv/bin/python" --version
}

# Two makes at once must not install into the same folder.
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock 9
fi

if ! "$venv/bin/python" -c '' 2>/dev/null; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "finetuning-operator needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 ..." >&2
        exit 1
    fi
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

# What `dev` installs contains what `local` needs.
for finished in "$stamp" "$venv/.installed-dev"; do
    if [[ -f $finished && "$(inputs)" == "$(<"$finished")" ]]; then
        exit 0
    fi
done

links=()
if [[ -d $wheels ]]; then
    links=(--find-links "$wheels") # pip adds this to PIP_FIND_LINKS; it does not replace it.
fi

echo "Installing finetuning-operator[$extra] into $venv (minutes, the first time) ..."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^pip==' constraints.txt)"
"$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    --constraint constraints.txt --build-constraint constraints.txt ${links[@]+"${links[@]}"} --editable ".[$extra]" |
    { grep --line-buffered -oE '^ *(Collecting|Downloading|Building|Installing|Successfully) .{0,80}' || true; }
inputs >"$stamp"
