#!/usr/bin/env bash
# Installs the Debian packages that weightsmith needs and that are missing. Needs root or sudo for that; changes nothing
# when everything is there.
#
#   scripts/setup.sh          what building and running need
#   scripts/setup.sh --test   also what the tests and benchmarks compare with (Python's PyTorch, SciPy)
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=(
  g++ cmake ninja-build ccache git                # build
  libtorch-dev libopenblas0-openmp                # tensors; without OpenBLAS products run on reference BLAS
  libcli11-dev nlohmann-json3-dev libvalijson-dev libspdlog-dev  # command line, configuration, log
  libssl-dev zlib1g-dev libminizip-dev            # SHA-256, compressed data sets, archives
  libjpeg62-turbo-dev libpng-dev                  # folders of images
  catch2                                          # tests
)
case "${1:-}" in
  "") ;;
  --test) packages+=(python3 python3-torch python3-scipy) ;;
  -h | --help) sed -n '2,6p' "${BASH_SOURCE[0]}" | cut -c3-; exit 0 ;;
  *) die "unknown argument $1 (see --help)" ;;
esac

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  step "all Debian packages are there"
  exit 0
fi

command -v apt-get >/dev/null || die "this machine has no apt-get: install the counterparts of: ${missing[*]}"
if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif command -v sudo >/dev/null; then
  as_root=(sudo)
else
  die "packages are missing and neither root nor sudo is at hand; as root run: apt-get install ${missing[*]}"
fi

step "install ${missing[*]}"
apt() { ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"; }
apt update || die "apt-get update failed: is the network there?"
apt install -y --no-install-recommends "${missing[@]}" ||
  die "apt-get could not install: ${missing[*]} (is the network there? is this Debian 12 or newer?)"
