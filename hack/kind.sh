#!/usr/bin/env bash
# Starts or removes the kind cluster of hack/kind.yaml: hack/kind.sh up|down.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$(sed -n 's/^name: //p' hack/kind.yaml)

if ! command -v kind >/dev/null; then
    echo "kind, which runs a Kubernetes cluster in containers, is not installed. It comes by" >&2
    echo "  go install sigs.k8s.io/kind@latest, brew install kind, or a package of your system;" >&2
    echo "beside it you need a container engine. A cluster that you have already serves as well: docs/install.md." >&2
    exit 1
fi

case ${1:-} in
up)
    if kind get clusters 2>/dev/null | grep -qx "$name"; then
        echo "the cluster $name runs already"
        kind export kubeconfig --name "$name"
    else
        kind create cluster --config hack/kind.yaml --wait 120s
    fi
    echo "next: skaffold run"
    ;;
down)
    kind delete cluster --name "$name"
    ;;
*)
    echo "usage: hack/kind.sh up|down" >&2
    exit 2
    ;;
esac
