#!/bin/sh
# Builds the static archive after build-library.sh, from the same objects: build-archive.sh [output-folder]
#
# liblockstep.a holds one object: Lockstep and the parts of the Swift runtime it uses, in which only the names of
# include/lockstep.symbols are global. The sections by which a Swift runtime finds its types have names of their own, so a
# program may hold another Swift runtime too. Whoever links it adds -lstdc++ -lm -ldl -pthread, and best -Wl,--gc-sections.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/build}
scratch=${LOCKSTEP_BUILD_PATH:-$root/.build-lib}
swift=${SWIFT:-swift}
objects=$scratch/release

[ -d "$objects/Lockstep.build" ] || "$root/bindings/c/build-library.sh" "$out"
resources=$("$swift" -print-target-info | sed -n 's/.*"runtimeResourcePath": "\(.*\)".*/\1/p')
runtime=$(dirname "$resources")/swift_static/linux
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Groups of sections are dissolved: a linker would take one of ours for another runtime's, by its name.
ld -r --force-group-allocation -o "$work/all.o" \
    "$objects"/Lockstep.build/*.o "$objects"/LockstepABI.build/*.o "$objects"/CLockstepKernels.build/*.o \
    "$objects"/CLockstepRuntime.build/*.o "$runtime/$(uname -m)/swiftrt.o" -L"$runtime" \
    --start-group -lswiftCore -lswiftGlibc -lswift_Concurrency -lswift_StringProcessing -lswift_RegexParser --end-group

sed -n 's/^\(lockstep_[a-z0-9_]*\) .*/\1/p' "$root/include/lockstep.symbols" > "$work/exports"
{
    readelf -S -W "$work/all.o" | sed -n 's/.* \(swift5_[a-z0-9_]*\) .*/\1/p'
    nm --undefined-only "$work/all.o" | sed -n 's/.* __start_\(swift5_.*\)/\1/p' # also those that are empty here
} | sort -u > "$work/sections"
sed 's/.*/__start_& __start_lockstep_&\n__stop_& __stop_lockstep_&/' "$work/sections" > "$work/renames"
# shellcheck disable=SC2046
objcopy --strip-debug --strip-unneeded --keep-global-symbols="$work/exports" --redefine-syms="$work/renames" \
    $(sed 's/.*/--rename-section &=lockstep_&/' "$work/sections") "$work/all.o" "$work/lockstep.o"
missing=$(nm --undefined-only "$work/lockstep.o" | grep -E ' (\$s|_?swift_)' || true)
if [ -n "$missing" ]; then
    printf 'build-archive.sh: the Swift runtime lacks\n%s\n' "$missing" >&2
    exit 1
fi
mkdir -p "$out"
rm -f "$work/liblockstep.a"
ar rcs "$work/liblockstep.a" "$work/lockstep.o"
cp "$work/liblockstep.a" "$out/liblockstep.a.tmp"
mv "$out/liblockstep.a.tmp" "$out/liblockstep.a"
