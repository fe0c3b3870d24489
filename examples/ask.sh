#!/usr/bin/env bash
# Waits until the quickstart's job is complete, and asks its server the question in prompt.json: examples/ask.sh. kubectl and curl
# are enough. PORT is the port of this machine that leads there meanwhile.
set -euo pipefail

port=${PORT:-8000}
kubectl wait --for=condition=Complete --timeout=2h finetuningjob/support-triage >&2
kubectl port-forward service/support-triage "$port:8000" >/dev/null &
trap 'kill %1' EXIT
curl --silent --show-error --fail-with-body --retry 30 --retry-delay 1 --retry-connrefused \
    --header 'Content-Type: application/json' --data "@$(dirname "$0")/prompt.json" "http://127.0.0.1:$port/prompt"
echo
