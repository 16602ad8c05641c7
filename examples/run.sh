#!/bin/sh
# Runs every example in C, Python and Swift and compares what it prints: run.sh PREFIX [--update]
#
# PREFIX is where `make install` put the library. The three languages share one expected output for
# each example, bits included. Lines that start with "PyTorch" are shown but not compared: they are
# another library's. Each is given the folder of a small model, which most do not need: the built-in one, or one with a larger
# vocabulary. --update writes the expected outputs from the C programs.
set -eu
root=$(cd "$(dirname "$0")" && pwd)
prefix=$1
python=${PYTHON:-python3}
swift=${SWIFT:-swift}
build=$root/../build/examples
mkdir -p "$build"
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig" LD_LIBRARY_PATH="$prefix/lib"
passed=0 failed=0

model() { # of an example's name
    case $1 in
    models) echo "$root/../Tests/Vectors/models/llama_untied" ;;
    *) echo "$root/data/chain-sft" ;;
    esac
}

compare() { # language, name, command...
    language=$1 name=$2
    shift 2
    status=0
    "$@" > "$build/$language-$name.out" 2> "$build/$language-$name.err" || status=$?
    grep '^PyTorch' "$build/$language-$name.out" || true
    grep -v '^PyTorch' "$build/$language-$name.out" > "$build/$language-$name.ours" || true
    if [ $status = 0 ] && diff -u "$root/expected/$name.txt" "$build/$language-$name.ours"; then
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
    [ "${2:-}" != --update ] || "$build/$name" "$(model "$name")" > "$root/expected/$name.txt"
    compare c "$name" "$build/$name" "$(model "$name")"
done

echo "-- python"
for source in "$root"/python/*.py; do
    name=$(basename "$source" .py)
    compare python "$name" "$python" "$source" "$(model "$name")"
done

echo "-- swift"
# A debug build takes half the time, and has the same bits; its kernels are optimised.
set -- --scratch-path "$root/../.build-examples" -Xcc -O2
if "$swift" build --package-path "$root/swift" "$@" > "$build/swift.log" 2>&1; then
    bin=$("$swift" build --package-path "$root/swift" "$@" --show-bin-path)
    for folder in "$root"/swift/Sources/*; do
        name=$(basename "$folder")
        compare swift "$name" "$bin/$name" "$(model "$name")"
    done
    # A package outside of this repository, which names Lockstep by path. It shares the folder of what is built, so that
    # Lockstep is not compiled again.
    elsewhere=$(mktemp -d)
    trap 'rm -rf "$elsewhere"' EXIT
    mkdir -p "$elsewhere/Sources/elsewhere"
    cp "$root/swift/Sources/first/main.swift" "$elsewhere/Sources/elsewhere"
    cat > "$elsewhere/Package.swift" << END
// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "elsewhere",
    dependencies: [.package(name: "lockstep", path: "$(dirname "$root")")],
    targets: [
        .executableTarget(name: "elsewhere", dependencies: [.product(name: "Lockstep", package: "lockstep")])
    ]
)
END
    "$swift" build --package-path "$elsewhere" "$@" > "$build/elsewhere.log" 2>&1 ||
        cat "$build/elsewhere.log"
    compare swift-elsewhere first "$bin/elsewhere"
else
    cat "$build/swift.log"
    echo "FAIL swift: the package does not build"
    failed=$((failed + 1))
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
