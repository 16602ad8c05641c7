#!/bin/sh
# Builds the self-contained shared library: build-library.sh [output-folder]
#
# It needs no Swift runtime where it runs (libc, libm, libgcc_s and libstdc++ only) and exports
# exactly the names of include/lockstep.symbols: the linker fails if one of them is missing.
#
# SWIFT names the compiler driver, LOCKSTEP_BUILD_PATH the folder for intermediate files.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/build}
scratch=${LOCKSTEP_BUILD_PATH:-$root/.build-lib}
swift=${SWIFT:-swift}
soname=liblockstep.so.1

if ! command -v "$swift" > /dev/null; then
    echo "build-library.sh: '$swift' is not on PATH; install Swift 6.3 or later from" \
        "https://www.swift.org/install, or set SWIFT to its swift command" >&2
    exit 1
fi
mkdir -p "$out" "$scratch"

"$root/bindings/c/version-script.sh" > "$scratch/lockstep.map"

# nodelete: worker threads outlive a dlclose, so the code must stay mapped. icf: equal functions are kept once; O2: equal
# ends of strings too. Checks of exclusive access are for the tests, which are built with them.
set -- --package-path "$root" --scratch-path "$scratch" -c release --product lockstep \
    -Xswiftc -static-stdlib -Xswiftc -Osize -Xswiftc -use-ld=lld \
    -Xswiftc -enforce-exclusivity=unchecked \
    -Xlinker --version-script="$scratch/lockstep.map" -Xlinker -soname=$soname \
    -Xlinker -z -Xlinker nodelete -Xlinker --no-undefined \
    -Xlinker --gc-sections -Xlinker --icf=all -Xlinker -O2 -Xlinker -s
"$swift" build "$@"

# Put in place by a rename, so that a process that has the old library mapped keeps it whole.
built=$("$swift" build "$@" --show-bin-path)
cp "$built/liblockstep.so" "$out/$soname.tmp"
mv "$out/$soname.tmp" "$out/$soname"
ln -sf $soname "$out/liblockstep.so"
