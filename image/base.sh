#!/usr/bin/env bash
# image/base.sh NAME: a base image of Debian packages alone, for machines that reach Debian's mirrors but no image registry.
# image/build.sh calls it with BASE=debian. Kept once made; FRESH=1 makes it again, for newer packages.
set -euo pipefail

name=$1
builder=${BUILDER:-buildah}
packages=python3,python3-venv,ca-certificates,redis-server

fail() { echo "make image: $*" >&2; exit 1; }

exists() {
  case $builder in
  buildah) buildah inspect --type image "$name" >/dev/null 2>&1 ;;
  *) "$builder" image inspect "$name" >/dev/null 2>&1 ;;
  esac
}

if [ -z "${FRESH:-}" ] && exists; then exit 0; fi
command -v mmdebstrap >/dev/null || fail "BASE=debian needs mmdebstrap. On Debian: sudo apt-get install -y mmdebstrap"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo "Making $name of Debian packages"
mmdebstrap --quiet --variant=minbase --include="$packages" \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --customize-hook='rm -f "$1/etc/hostname" "$1/etc/resolv.conf"' \
  bookworm "$scratch/base.tar"
case $builder in
buildah)
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$scratch/base.tar" / >/dev/null
  buildah commit --quiet --rm "$container" "$name" >/dev/null
  ;;
*) "$builder" import "$scratch/base.tar" "$name" >/dev/null ;;
esac
