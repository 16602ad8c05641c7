#!/bin/sh
# Builds the self-contained shared library: build-library.sh [output-folder]
#
# It needs no Swift runtime where it runs (libc, libm, libgcc_s and libstdc++ only) and exports
# exactly the names of include/lockstep.symbols: the linker fails if one of them is missing.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/build}
scratch=${LOCKSTEP_BUILD_PATH:-$root/.build-lib}
mkdir -p "$out" "$scratch"

{
    echo "{ global:"
    sed -n 's/^\(lockstep_[a-z0-9_]*\) .*/    \1;/p' "$root/include/lockstep.symbols"
    echo "  local: *; };"
} > "$scratch/lockstep.map"

swift build --package-path "$root" --scratch-path "$scratch" -c release --product lockstep \
    -Xswiftc -static-stdlib -Xswiftc -use-ld=lld \
    -Xlinker --version-script="$scratch/lockstep.map" -Xlinker -soname=liblockstep.so.1 \
    -Xlinker -z -Xlinker nodelete -Xlinker --no-undefined -Xlinker --undefined-version -Xlinker --gc-sections -Xlinker -s

built=$(swift build --package-path "$root" --scratch-path "$scratch" -c release --show-bin-path)
cp "$built/liblockstep.so" "$out/liblockstep.so.1.tmp"
mv "$out/liblockstep.so.1.tmp" "$out/liblockstep.so.1"
ln -sf liblockstep.so.1 "$out/liblockstep.so"
