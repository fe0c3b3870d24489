#!/usr/bin/env bash
# Installs what tests use from Debian, where that is possible: as root, with apt. Elsewhere the tests that need it fail and say so.
# hack/test-deps.sh [node|images]: also what a node of our own runs, or what images are built with where no docker daemon answers.
set -euo pipefail

# program=package
needed=(docker-registry=docker-registry git=git)
if [[ ${1:-} == node ]]; then
    needed+=(containerd=containerd ip=iproute2 iptables-restore=iptables nsenter=util-linux runc=runc)
fi
if [[ ${1:-} == images ]] && ! docker info >/dev/null 2>&1; then
    needed+=(busybox=busybox-static debootstrap=debootstrap docker=docker.io dockerd=docker.io)
fi
PATH=$PATH:/usr/sbin:/sbin
missing=()
for each in "${needed[@]}"; do
    command -v "${each%=*}" >/dev/null || missing+=("${each#*=}")
done
if [[ ${#missing[@]} -eq 0 ]]; then
    exit 0
fi
if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "Some tests fail without: ${missing[*]} (Debian, as root: apt-get install ${missing[*]})" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    echo "Could not install ${missing[*]}; the tests that need them fail." >&2
