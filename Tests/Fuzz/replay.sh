#!/bin/sh
# Every target over its corpus and CHANGES seeded changes of it, against the built library, by an ordinary compiler:
# replay.sh [target...]. A target is a test; the last line is the sum: "N passed, N failed".
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/Tests/Fuzz
build=$root/build/fuzz/replay
changes=${CHANGES:-2000}
mkdir -p "$build"
export LD_LIBRARY_PATH="$root/build"

passed=0 failed=0
[ $# -gt 0 ] || set -- $(ls "$here" | sed -n 's/^fuzz_\(.*\)\.c$/\1/p')
for target in "$@"; do
    what="$target does not compile"
    if "${CC:-gcc}" -std=gnu11 -O1 -g -Wall -Wextra -Werror -I "$root/include" -DROOT="\"$root\"" "$here/fuzz_$target.c" \
        "$here/replay.c" "$here/files.c" -o "$build/$target" -L "$root/build" -llockstep -lm -pthread; then
        rm -f "$build/$target.input"
        status=0
        what=$(timeout 300 "$build/$target" "$here/corpus/$target" "$changes" "$build/$target.input" 2>&1) || status=$?
    else
        status=1
    fi
    if [ $status = 0 ]; then
        passed=$((passed + 1))
        echo "ok   $target: $what"
    else
        failed=$((failed + 1))
        echo "FAIL $target ($status): $what; the input is in $build/$target.input"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
