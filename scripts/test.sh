#!/usr/bin/env bash
# Installs what is missing, builds the release preset and runs the tests. From any folder; safe to repeat.
#
#   scripts/test.sh          the default tests (minutes)
#   scripts/test.sh --slow   those behind the label "slow" as well
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
  "" | --slow) ;;
  -h | --help) sed -n '2,5p' "${BASH_SOURCE[0]}" | cut -c3-; exit 0 ;;
  *) die "unknown argument $1 (see --help)" ;;
esac

"$root/scripts/setup.sh" --test
build_release
step "test"
cd "$root"
# Idle threads must not spin while another test works.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
ctest --preset release --parallel "$(nproc)"
if [ "${1:-}" = --slow ]; then
  ctest --preset slow
fi
