#!/bin/sh
# Runs the C examples, and C tests that are not too slow for it, under valgrind: check_valgrind.sh [name...]
#
# An error, or memory that is definitely lost, is a failure. valgrind knows AVX2 but not AVX-512: it tells the program so, and
# the library takes the kernels that are there. Threads take turns. Example `run` alone takes more than five minutes of it.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/valgrind
mkdir -p "$build"
export LD_LIBRARY_PATH="$root/build"
[ $# -gt 0 ] || set -- "$root"/examples/c/*.c "$root"/Tests/C/accumulator_test.c "$root"/Tests/C/log_file_test.c \
    "$root"/Tests/C/monitor_test.c "$root"/Tests/C/presets_test.c "$root"/Tests/C/objectives_test.c \
    "$root"/Tests/C/corrections_test.c "$root"/Tests/C/mismatch_test.c
passed=0 failed=0

for source in "$@"; do
    name=$(basename "$source" .c)
    case $name in models) model=$root/Tests/Vectors/models/llama_untied ;; *) model=$root/examples/data/chain-sft ;; esac
    status=0
    gcc -std=c99 -D_DEFAULT_SOURCE -O1 -g -I "$root/include" -DROOT="\"$root\"" "$source" -o "$build/$name" -L "$root/build" \
        -llockstep -lm -pthread
    timeout 3600 valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
        --show-leak-kinds=definite --log-file="$build/$name.valgrind" \
        "$build/$name" "$model" > "$build/$name.out" 2>&1 || status=$?
    # To valgrind 3.19 a NaN is not EQ_UQ to anything, so one NaN that must be refused is not: this test fails there, and no other may.
    if [ "$name $status $(grep '^FAIL' "$build/$name.out")" = "mismatch_test 1 FAIL exact_refuses_bad_input" ] &&
        [ ! -s "$build/$name.valgrind" ]; then status=0; fi
    if [ $status = 0 ]; then
        passed=$((passed + 1))
        echo "ok   $name"
    else
        failed=$((failed + 1))
        echo "FAIL $name (exit status $status), see $build/$name.valgrind"
        head -n 12 "$build/$name.valgrind"
        tail -n 2 "$build/$name.out"
    fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
