#!/usr/bin/env bash
# Builds the image with what this machine has: Docker, Podman or Buildah. `make image` and `make kind` call it.
#   IMAGE=penstock:0.1.0    name and tag; default: penstock:<version of pyproject.toml>
#   BASE=python:3.13-slim   another base image; `debian`: one made of Debian packages (image/base.sh), where no registry can be reached
#   ARCHIVE=penstock.tar    also write the image as an archive, for `ctr images import` or `kind load image-archive`
#   BUILDER=buildah         which of docker, podman and buildah; default: the first that works
# pip's own settings on this machine (index, proxy, certificates) reach the build as secrets, never the image.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "make image: $*" >&2; exit 1; }

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
image=${IMAGE:-penstock:$version}
python=${PYTHON:-python3}

works() {
  case $1 in
  docker) docker info >/dev/null 2>&1 ;;
  podman) podman info >/dev/null 2>&1 ;;
  buildah) buildah info >/dev/null 2>&1 ;;
  *) fail "BUILDER is '$1'; allowed: docker, podman, buildah" ;;
  esac
}

choose() {
  local candidate
  for candidate in ${BUILDER:-docker podman buildah}; do
    if works "$candidate"; then echo "$candidate"; return; fi
  done
  if [ -n "${BUILDER:-}" ]; then
    fail "BUILDER is '$BUILDER', which does not work here; see what '$BUILDER info' says"
  fi
  fail "no Docker (with its daemon running), Podman or Buildah here. On Debian: sudo apt-get install -y buildah"
}

# What pip on this machine is told about where packages come from; later lines (environment) win over earlier ones (files).
pip_settings() {
  "$python" -m pip config list 2>/dev/null | "$python" -c '
import ast, sys
kept = {}
for line in sys.stdin:
    name, found, value = line.strip().partition("=")
    option = name.rpartition(".")[2]
    if found and option in ("index-url", "extra-index-url", "proxy", "trusted-host", "timeout", "default-timeout", "retries"):
        kept[option] = ast.literal_eval(value).replace("\n", " ")
print("[global]")
for option, value in kept.items():
    print(option, "=", value)'
}

certificates() { "$python" -m pip config list 2>/dev/null | sed -n "s/^.*\.cert='\(.*\)'$/\1/p" | tail -n 1; }

builder=$(choose)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
pip_settings >"$scratch/pip.conf"
cert=$(certificates)
if [ -n "$cert" ] && [ -r "$cert" ]; then cp "$cert" "$scratch/ca.crt"; else : >"$scratch/ca.crt"; fi

arguments=(--tag "$image" --secret "id=pip.conf,src=$scratch/pip.conf" --secret "id=ca.crt,src=$scratch/ca.crt")
if [ "${BASE:-}" = debian ]; then
  BUILDER=$builder image/base.sh localhost/penstock-base:bookworm
  arguments+=(--build-arg BASE=localhost/penstock-base:bookworm)
elif [ -n "${BASE:-}" ]; then
  arguments+=(--build-arg "BASE=$BASE")
fi

echo "Building $image with $builder (about 1 GB of packages and layers the first time)"
began=$SECONDS
case $builder in
docker) DOCKER_BUILDKIT=1 docker build "${arguments[@]}" . ;;
podman) podman build --layers "${arguments[@]}" . ;;
buildah) buildah build --layers --isolation "${BUILDAH_ISOLATION:-chroot}" "${arguments[@]}" . ;; # chroot: needs no container runtime
esac
if [ -n "${ARCHIVE:-}" ]; then
  rm -f "$ARCHIVE"
  case $builder in
  docker) docker save --output "$ARCHIVE" "$image" ;;
  podman) podman save --quiet --format docker-archive --output "$ARCHIVE" "$image" ;;
  buildah) buildah push --quiet "$image" "docker-archive:$ARCHIVE:$image" ;;
  esac
fi
echo "Built $image in $((SECONDS - began)) s"
