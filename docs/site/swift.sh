#!/bin/sh
# The reference of the Swift module, by DocC, as part of the site: swift.sh BUILD OUTPUT [BASE]
#
# BUILD is a folder in which the library was built (.build-lib): its compiled module has the declarations and their comments.
# BASE is the path under which the site will be served, empty for the root of a server.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$1/release output=$2 base=${3:-}
swift=$(command -v "${SWIFT:-swift}") || { echo "swift.sh: '${SWIFT:-swift}' is not on PATH" >&2; exit 1; }
tools=$(dirname "$(readlink -f "$swift")")
for tool in docc swift-symbolgraph-extract; do
    [ -x "$tools/$tool" ] || { echo "swift.sh: this Swift toolchain has no $tool" >&2; exit 1; }
done

graphs=$(mktemp -d)
trap 'rm -rf "$graphs"' EXIT
triple=$("$swift" -print-target-info | sed -n 's/^ *"triple": "\(.*\)",$/\1/p' | head -n 1)
"$tools/swift-symbolgraph-extract" -module-name Lockstep -I "$build/Modules" -target "$triple" -output-dir "$graphs" \
    -minimum-access-level public -skip-synthesized-members \
    -Xcc "-fmodule-map-file=$build/CLockstepKernels.build/module.modulemap"

rm -rf "$output"
"$tools/docc" convert "$root/Sources/Lockstep/Lockstep.docc" --additional-symbol-graph-dir "$graphs" --output-path "$output" \
    --fallback-display-name Lockstep --fallback-bundle-identifier Lockstep --warnings-as-errors \
    --transform-for-static-hosting --hosting-base-path "${base#/}${base:+/}swift"
