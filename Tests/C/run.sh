#!/bin/sh
# Compiles the C tests against the built library and runs them: run.sh [name...]
#
# The last line is the sum: "N passed, N failed". A test that does not compile, or that dies, is one
# failure; its output says why.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/c
mkdir -p "$build"
export LD_LIBRARY_PATH="$root/build"

# The example in the header's first comment is a test too: it must compile and run as printed.
sed -n 's/^ \*     //p; /^ \* The promises/q' "$root/include/lockstep.h" | sed '/^ \*$/d' > "$build/header_example.c"

passed=0 failed=0
compile() {
    "${CC:-gcc}" -std=c99 -D_DEFAULT_SOURCE -O1 -g -Wall -Wextra -pedantic -Werror -I "$root/include" -DROOT="\"$root\"" "$1" \
        -o "$2" -L "$root/build" -llockstep -lm -pthread
}
note() { # name, status of the last command
    if [ "$2" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    if [ "$2" = 0 ]; then echo "ok   $1"; else echo "FAIL $1"; fi
}

# Linked to a library without symbol versions, as the first was. The functions that the header itself defines end in _of.
first_program() {
    first=$root/Tests/C/abi/first
    mkdir -p "$build/first"
    sed -n '/_of(/d; s/^[a-z].*[ *]\(lockstep_[a-z0-9_]*\)(.*/void \1(void) {}/p' "$first/lockstep.h" > "$build/first/stubs.c" &&
        "${CC:-gcc}" -shared -fPIC -Wl,-soname,liblockstep.so.1 "$build/first/stubs.c" -o "$build/first/liblockstep.so" &&
        "${CC:-gcc}" -std=c99 -I "$first" "$first/program.c" -o "$build/first/then" -L "$build/first" -llockstep &&
        "${CC:-gcc}" -std=c99 -I "$root/include" "$first/program.c" -o "$build/first/now" -L "$root/build" -llockstep &&
        "$build/first/then" > "$build/first/then.out" && "$build/first/now" > "$build/first/now.out" &&
        diff "$build/first/then.out" "$build/first/now.out"
}
# Linked to a library of tomorrow, whose lockstep_version came in 99.0.0.
newer_program() {
    mkdir -p "$build/newer"
    echo 'int lockstep_version(void) { return 0; }' > "$build/newer/stub.c"
    echo 'LOCKSTEP_99.0.0 { global: lockstep_version; local: *; };' > "$build/newer/stub.map"
    echo 'int lockstep_version(void); int main(void) { return lockstep_version() != 0; }' > "$build/newer/main.c"
    "${CC:-gcc}" -shared -fPIC -Wl,-soname,liblockstep.so.1,--version-script="$build/newer/stub.map" "$build/newer/stub.c" \
        -o "$build/newer/liblockstep.so" &&
        "${CC:-gcc}" "$build/newer/main.c" -o "$build/newer/main" -L "$build/newer" -llockstep || return 1
    ! "$build/newer/main" 2> "$build/newer/err" && grep -q "version .LOCKSTEP_99.0.0' not found" "$build/newer/err"
}

if [ $# = 0 ]; then
    status=0
    compile "$build/header_example.c" "$build/header_example" \
        && "$build/header_example" > "$build/header_example.out" \
        && echo '-0.440190 -0.001006' | diff - "$build/header_example.out" || status=$?
    note "the example in the header compiles and runs" $status

    status=0
    first_program || status=$?
    note "a program compiled against the first header gets the same bits as one compiled today" $status
    status=0
    newer_program || status=$?
    note "a program that needs a newer library is refused when it starts, by the version it needs" $status
    set -- "$root"/Tests/C/*_test.c
fi

for source in "$@"; do
    name=$(basename "$source" _test.c)
    echo "-- $name"
    if ! compile "$root/Tests/C/${name}_test.c" "$build/${name}_test"; then
        note "$name compiles" 1
        continue
    fi
    status=0
    timeout 300 "$build/${name}_test" > "$build/$name.log" 2>&1 || status=$?
    sed '$d' "$build/$name.log"
    last=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$build/$name.log" | tail -n 1)
    if [ -z "$last" ]; then
        tail -n 1 "$build/$name.log"
        note "$name ended with status $status before its last line" 1
        continue
    fi
    passed=$((passed + ${last% *}))
    failed=$((failed + ${last#* }))
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
