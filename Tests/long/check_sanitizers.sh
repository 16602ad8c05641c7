#!/bin/sh
# Runs the C and the Swift tests over builds with sanitizers: check_sanitizers.sh [address] [thread]
#
# address: AddressSanitizer over Swift and C, UndefinedBehaviorSanitizer over the C kernels. thread: ThreadSanitizer over both.
# Builds are optimised, with Swift's checks of arithmetic, bounds and exclusive
# access, each in a folder of its own. TESTS="threads runs swift" runs these alone. Reports end a test; the last line is the sum.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
swift=${SWIFT:-swift}
clang=$(dirname "$(command -v "$swift")")/clang
[ -x "$clang" ] || clang=$(dirname "$(readlink -f "$(command -v "$swift")")")/clang
runtime=$(dirname "$(dirname "$clang")")/lib/swift/linux
[ $# -gt 0 ] || set -- address thread
[ -n "${TESTS:-}" ] || TESTS="$(basename -a -s _test.c "$root"/Tests/C/*_test.c) swift"
mkdir -p "$root/build/c" # where tests put their files
passed=0 failed=0

# A test's status, its name and its log.
note() {
    if [ "$1" = 0 ]; then
        passed=$((passed + 1))
        echo "ok   $kind: $2: $(grep -a -E ' passed, |Test run with' "$3" | tail -n 1)"
    else
        failed=$((failed + 1))
        echo "FAIL $kind: $2 (exit status $1), see $3"
        grep -a -m 3 -E 'ERROR: |WARNING: |SUMMARY: |runtime error|FAIL' "$3" || tail -n 3 "$3"
    fi
}

for kind in "$@"; do
    out=$root/build/$kind
    mkdir -p "$out"
    case $kind in
    address) more="-Xcc -fsanitize=undefined -Xcc -fno-sanitize-recover=undefined" flags=address,undefined libraries= ;;
    # Its runtime watches the queues and blocks of Swift's, too.
    thread) more= flags=thread libraries="-L $runtime -ldispatch -lBlocksRuntime" ;;
    *) echo "check_sanitizers.sh: '$kind' is neither address nor thread" >&2; exit 1 ;;
    esac
    # The flags are several words.
    how="--package-path $root --scratch-path $root/.build-$kind -c release --sanitize=$kind -Xswiftc -enable-testing -Xswiftc -g \
        -Xcc -g $more"
    echo "== $kind: building"
    # shellcheck disable=SC2086
    "$swift" build $how --build-tests > "$out/build.log" 2>&1 || { tail -n 20 "$out/build.log"; exit 1; }
    # shellcheck disable=SC2086
    cp "$("$swift" build $how --build-tests --show-bin-path)/liblockstep.so" "$out/liblockstep.so"
    export ASAN_OPTIONS="detect_leaks=1:allocator_may_return_null=1:abort_on_error=0:exitcode=99"
    export LSAN_OPTIONS="suppressions=$root/Tests/long/leaks.supp:print_suppressions=0"
    export UBSAN_OPTIONS="print_stacktrace=1"
    export TSAN_OPTIONS="allocator_may_return_null=1:exitcode=99"
    for name in $TESTS; do
        status=0
        # These stand in for malloc themselves.
        case $name in out_of_memory*) continue ;; esac
        if [ "$name" = swift ]; then
            # shellcheck disable=SC2086
            timeout 3600 "$swift" test $how --skip-build --disable-xctest > "$out/swift.log" 2>&1 || status=$?
        else
            # shellcheck disable=SC2086
            "$clang" -std=c99 -D_DEFAULT_SOURCE -O1 -g -fsanitize=$flags -I "$root/include" -DROOT="\"$root\"" \
                "$root/Tests/C/${name}_test.c" -o "$out/$name" -L "$out" -llockstep -lm -pthread $libraries \
                -Wl,-rpath,"$out:$runtime" > "$out/$name.log" 2>&1 &&
                timeout 1200 "$out/$name" > "$out/$name.log" 2>&1 || status=$?
        fi
        note $status "$name" "$out/$name.log"
    done
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
