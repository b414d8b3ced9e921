# Sourced by the other scripts: where the project is, and how they speak.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build/release

step() { printf '\n== %s\n' "$*" >&2; }
die() { printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Configures (once) and builds the release preset: build [TARGET...]
build_release() {
  if [ ! -f "$build/build.ninja" ]; then
    step "configure $build"
    (cd "$root" && cmake --preset release)
  fi
  step "build $build"
  cmake --build "$build" ${*:+--target "$@"}
}
