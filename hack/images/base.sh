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
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$root" >&2
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root/etc/pip.conf"
if [[ -f /etc/pip.conf ]]; then
    cp /etc/pip.conf "$root/etc/pip.conf"
fi
# The official image calls it python as well, and is without what nobody reads in a container; licenses stay.
ln -s python3 "$root/usr/bin/python"
printf '%s\n' 'path-exclude=/usr/share/'{doc,man,info,locale}'/*' 'path-include=/usr/share/doc/*/copyright' \
    >"$root/etc/dpkg/dpkg.cfg.d/slim"
find "$root"/usr/share/{doc,man,info,locale} -type f ! -name copyright -delete
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
tar -C "$root" -c . | "$docker" import --change 'CMD ["python"]' - "$name" >&2
