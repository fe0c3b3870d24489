#!/usr/bin/env bash
# Starts or removes the kind cluster of hack/kind.yaml: hack/kind.sh up|down.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$(sed -n 's/^name: //p' hack/kind.yaml)

for program in kind docker; do
    if ! command -v "$program" >/dev/null; then
        echo "$program is not installed. kind runs a Kubernetes cluster in containers and needs a container engine:" >&2
        echo "  kind:   go install sigs.k8s.io/kind@latest, brew install kind, or the package of your system" >&2
        echo "  docker: the package of your system, or another engine that kind supports" >&2
        echo "A cluster that you have already serves as well; see docs/install.md." >&2
        exit 1
    fi
done

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
