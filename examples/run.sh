#!/bin/sh
# Runs every example in C, Python and Swift and compares what it prints: run.sh PREFIX [--update]
#
# PREFIX is where `make install` put the library. The three languages share one expected output for
# each example, bits included. Lines that start with "PyTorch" are shown but not compared: they are
# another library's. Each is given the folder of a small model, which most do not need. --update writes the expected outputs from the C programs.
set -eu
root=$(cd "$(dirname "$0")" && pwd)
prefix=$1
python=${PYTHON:-python3}
swift=${SWIFT:-swift}
build=$root/../build/examples
model=$root/../Tests/Vectors/models/llama_untied
mkdir -p "$build"
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig" LD_LIBRARY_PATH="$prefix/lib"
passed=0 failed=0

compare() { # language, name, command...
    language=$1 name=$2
    shift 2
    status=0
    "$@" > "$build/$language-$name.out" 2> "$build/$language-$name.err" || status=$?
    grep '^PyTorch' "$build/$language-$name.out" || true
    grep -v '^PyTorch' "$build/$language-$name.out" > "$build/$language-$name.ours" || true
    if [ $status = 0 ] && diff -u "$root/$name.expected" "$build/$language-$name.ours"; then
        echo "ok   $language: $name"
        passed=$((passed + 1))
    else
        echo "FAIL $language: $name (exit status $status)"
        cat "$build/$language-$name.err"
        failed=$((failed + 1))
    fi
}

echo "-- c"
for source in "$root"/c/*.c; do
    name=$(basename "$source" .c)
    # The flags are several words.
    # shellcheck disable=SC2046
    gcc -std=c99 -O2 -Wall -Wextra -pedantic -Werror "$source" -o "$build/$name" \
        $(pkg-config --cflags --libs lockstep) -lm || true
    [ "${2:-}" != --update ] || "$build/$name" "$model" > "$root/$name.expected"
    compare c "$name" "$build/$name" "$model"
done

echo "-- python"
for source in "$root"/python/*.py; do
    compare python "$(basename "$source" .py)" "$python" "$source" "$model"
done

echo "-- swift"
scratch=$root/../.build-examples
if "$swift" build --package-path "$root/swift" --scratch-path "$scratch" -c release > "$build/swift.log" 2>&1; then
    bin=$("$swift" build --package-path "$root/swift" --scratch-path "$scratch" -c release --show-bin-path)
    for folder in "$root"/swift/Sources/*; do
        name=$(basename "$folder")
        compare swift "$name" "$bin/$name" "$model"
    done
else
    cat "$build/swift.log"
    echo "FAIL swift: the package does not build"
    failed=$((failed + 1))
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
