#!/bin/sh
# Runs the C tests over the library built with sanitizers: check_sanitizers.sh [address] [thread]
#
# address: AddressSanitizer over Swift and C, UndefinedBehaviorSanitizer over the C kernels. thread: ThreadSanitizer over both.
# Each library has a folder of its own. Reports end a test; the last line is the sum.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
swift=${SWIFT:-swift}
clang=$(dirname "$(command -v "$swift")")/clang
[ -x "$clang" ] || clang=$(dirname "$(readlink -f "$(command -v "$swift")")")/clang
[ $# -gt 0 ] || set -- address thread
mkdir -p "$root/build/c" # where tests put their files
passed=0 failed=0

for kind in "$@"; do
    scratch=$root/.build-$kind out=$root/build/$kind
    mkdir -p "$out"
    case $kind in
    address) more="-Xcc -fsanitize=undefined -Xcc -fno-sanitize-recover=undefined" flags=address,undefined ;;
    thread) more="" flags=thread ;;
    *) echo "check_sanitizers.sh: '$kind' is neither address nor thread" >&2; exit 1 ;;
    esac
    # Swift with its checks of arithmetic, bounds and exclusive access; kernels fast enough to be tested.
    # The flags are several words.
    # shellcheck disable=SC2086
    set_of="--package-path $root --scratch-path $scratch -c debug --product lockstep --sanitize=$kind -Xcc -O1 $more"
    echo "== $kind: building"
    # shellcheck disable=SC2086
    "$swift" build $set_of > "$out/build.log" 2>&1 || { tail -n 20 "$out/build.log"; exit 1; }
    # shellcheck disable=SC2086
    cp "$("$swift" build $set_of --show-bin-path)/liblockstep.so" "$out/liblockstep.so"
    runtime=$(dirname "$(dirname "$clang")")/lib/swift/linux
    for source in "$root"/Tests/C/*_test.c; do
        name=$(basename "$source" _test.c)
        # These stand in for malloc themselves, or look for what the release build alone has.
        case $name in out_of_memory*) continue ;; esac
        status=0
        "$clang" -std=c99 -D_DEFAULT_SOURCE -O1 -g -fsanitize=$flags -I "$root/include" -DROOT="\"$root\"" "$source" \
            -o "$out/$name" -L "$out" -llockstep -lm -pthread -Wl,-rpath,"$out:$runtime" > "$out/$name.log" 2>&1 || status=$?
        [ $status = 0 ] && ASAN_OPTIONS="detect_leaks=1:allocator_may_return_null=1:abort_on_error=0:exitcode=99" \
            UBSAN_OPTIONS="print_stacktrace=1" \
            TSAN_OPTIONS="allocator_may_return_null=1:exitcode=99:halt_on_error=0" \
            timeout 1200 "$out/$name" > "$out/$name.log" 2>&1 || status=$?
        if [ $status = 0 ]; then
            passed=$((passed + 1))
            echo "ok   $kind: $name: $(grep -a ' passed, ' "$out/$name.log" | tail -n 1)"
        else
            failed=$((failed + 1))
            echo "FAIL $kind: $name (exit status $status), see $out/$name.log"
            grep -a -m 3 -E 'ERROR: |WARNING: |runtime error|FAIL' "$out/$name.log" || tail -n 3 "$out/$name.log"
        fi
    done
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
