#!/bin/sh
# Holds the promise across processors: every kernel gives the same bits on every instruction set of this
# machine, and on aarch64 (baseline and NEON), emulated by QEMU where this machine is none: check_aarch64.sh [native].
# `native` leaves out what is emulated.
#
# Needs clang (Swift's, or CLANG=...); for the emulation qemu-aarch64 and aarch64-linux-gnu-gcc with its C
# library (Debian: qemu-user-static, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross). Where those cannot be
# had it says SKIP. The last line is the sum: "N passed, N failed, N skipped".
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/digest
leaf=$root/Sources/CLockstepKernels
mkdir -p "$build"

swift=$(command -v "${SWIFT:-swift}" || true)
clang=${CLANG:-$( [ -n "$swift" ] && ls "$(dirname "$(readlink -f "$swift")")/clang" 2> /dev/null || command -v clang)}
flags="-std=c11 -O2 -Wall -Wextra -Werror -I $leaf/include"

passed=0 failed=0 skipped=0
# Compares the digests of set $3 under the command "$2" with those of this machine's baseline.
compare() { # label, command, set
    status=0
    $2 "$3" > "$build/$1.txt" || status=$?
    if [ $status = 77 ]; then
        echo "SKIP $1: this machine does not have it"
        skipped=$((skipped + 1))
    elif [ $status = 0 ] && [ -s "$build/$1.txt" ] && diff "$build/baseline.txt" "$build/$1.txt"; then
        echo "ok   $1: $(wc -l < "$build/$1.txt") digests are those of the baseline"
        passed=$((passed + 1))
    else
        echo "FAIL $1 (status $status)"
        failed=$((failed + 1))
    fi
}

"$clang" $flags "$leaf"/*.c "$root/Tests/C/kernel_digest.c" -o "$build/native" -lm
"$build/native" baseline > "$build/baseline.txt"
case $(uname -m) in
x86_64)
    compare avx2 "$build/native" avx2
    compare avx512 "$build/native" avx512
    qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
    linker=$(command -v aarch64-linux-gnu-gcc || true)
    if [ "${1:-}" = native ]; then
        :
    elif [ -z "$qemu" ] || [ -z "$linker" ]; then
        echo "SKIP aarch64: install qemu-user-static, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross"
        skipped=$((skipped + 1))
    else
        for source in "$leaf"/*.c "$root/Tests/C/kernel_digest.c"; do
            "$clang" --target=aarch64-linux-gnu -isystem /usr/aarch64-linux-gnu/include $flags -c "$source" \
                -o "$build/$(basename "$source" .c).o"
        done
        "$linker" -static "$build"/*.o -o "$build/aarch64" -lm
        compare aarch64-baseline "$qemu $build/aarch64" baseline
        compare aarch64-neon "$qemu $build/aarch64" neon
    fi
    ;;
*) compare neon "$build/native" neon ;;
esac
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
