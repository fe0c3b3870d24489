#!/usr/bin/env bash
# Makes the image that the others are built from out of Debian packages, where no registry can be reached:
# hack/images/base.sh [name]. As root, with debootstrap. The certificates and pip's configuration of this machine go along.
set -euo pipefail

name=${1:-python:3.11-slim}
docker=${DOCKER:-docker}
if ! command -v debootstrap >/dev/null; then
    echo "debootstrap is not installed; as root: apt-get install debootstrap" >&2
    exit 1
fi
if [[ $(id -u) -ne 0 ]]; then
    echo "debootstrap needs root; run: sudo $0 $*" >&2
    exit 1
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$root"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root/etc/pip.conf"
if [[ -f /etc/pip.conf ]]; then
    cp /etc/pip.conf "$root/etc/pip.conf"
fi
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
# The official image calls it python as well.
ln -s python3 "$root/usr/bin/python"
tar -C "$root" -c . | "$docker" import --change 'CMD ["python"]' - "$name"
