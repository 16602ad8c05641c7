#!/bin/sh
# Holds AVX-512 to the bits of the other instruction sets: check_avx512.sh [name...]
#
# Every kernel's digests, the library's subjects of Tests/Vectors/agreement.txt on 1, 2 and 4 threads, and C tests, those named
# or some that are quick. Needs `make library`, clang (Swift's, or CLANG=...) and gcc.
#
# A machine that has AVX-512 runs them itself. For any other x86-64, Bochs emulates one, with a kernel of Debian's, or KERNEL=...,
# and nothing but the tests on a disk. It is slow: some minutes. AVX2, whose bits a real processor has shown just before, runs
# in the emulator too: where it has other bits there, the emulator is wrong, and AVX-512 must have those of AVX2. (Bochs 2.7
# rounds a tie in fp16 away from 0; 3.0 does not.) BOCHS=... is another Bochs.
#
# The last line is the sum: "N passed, N failed". Ends with status 77 if something is not installed.
set -eu
[ $# -gt 0 ] || set -- accumulator advantages corrections environment formats localiser log_probs mismatch models objectives \
    trainer training
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/avx512
kernels=$root/build/digest/native agreement=$root/build/c/agreement_test
rm -rf "$build/guest" "$build/disk"
mkdir -p "$build/guest" "$build/disk"
export LD_LIBRARY_PATH="$root/build"

native=yes
for feature in avx512f avx512bw avx512dq avx512vl; do grep -qw $feature /proc/cpuinfo || native=no; done
if [ $native = no ]; then
    missing=
    need() { [ -e "$1" ] || command -v "$1" > /dev/null || missing="$missing $2"; } # command or file, package
    need "${BOCHS:=bochs}" bochs
    need xorriso xorriso
    need cpio cpio
    need script bsdutils
    need /usr/share/vgabios/vgabios.bin vgabios
    need /usr/lib/ISOLINUX/isolinux.bin isolinux
    need /usr/lib/syslinux/modules/bios/ldlinux.c32 syslinux-common
    need /bin/busybox busybox-static
    [ "$BOCHS" != bochs ] || ls /usr/lib/*/bochs/plugins/libbx_term_gui.so > /dev/null 2>&1 || missing="$missing bochs-term"
    if [ -n "$missing" ]; then
        echo "this machine has no AVX-512; to emulate one, install:$missing (the names are Debian's)"
        exit 77
    fi
    if [ -z "${KERNEL:-}" ] && [ ! -e "$build/vmlinuz" ]; then # from Debian, not installed
        package=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null | sed -n 's/.*Depends: \(linux-image[^ ]*\)/\1/p')
        (cd "$build" && apt-get download "$package" > download.log 2>&1 && dpkg-deb -x linux-image-*.deb package &&
            mv package/boot/vmlinuz-* vmlinuz && rm -rf package linux-image-*.deb) || {
            echo "there is no kernel to boot: say KERNEL=/boot/vmlinuz-... (x86-64, with a serial console and initramfs built in)"
            exit 77
        }
    fi
fi

# Builds everything, and shows that baseline and AVX2 have the bits that are wanted.
"$root/Tests/C/check_aarch64.sh" native > "$build/kernels.log" || { cat "$build/kernels.log"; exit 1; }
"$root/Tests/C/run.sh" agreement "$@" > "$build/agreement.log" || { cat "$build/agreement.log"; exit 1; }

# What is run. It prints lines KIND SET WHAT DIGEST, then what the tests print.
cat > "$build/commands" << END
for set in avx512 avx2; do $kernels \$set | sed "s/^/kernels \$set /"; done
for threads in 1 2 4; do $agreement print avx512 \$threads | sed "s/^/agreement-\$threads /; s/512 \$threads/512/"; done
$agreement print avx2 1 | sed 's/^/agreement-1 /; s/avx2 1/avx2/'
for name in $*; do $root/build/c/\${name}_test | sed "s/^/\$name: /"; done
END

if [ $native = yes ]; then
    sh "$build/commands" > "$build/lines"
    where=
else
    where=", emulated"
    # The same paths there as here, and of libraries those that the programs take.
    for file in $(ldd "$kernels" "$agreement" | grep -o ' /[^ ]*\|^	/[^ ]*' | sort -u) "$kernels" "$agreement" \
        $(printf "$root/build/c/%s_test " "$@") "$root/Tests/Vectors" "$root/examples/data/chain-sft" /bin/busybox; do
        mkdir -p "$build/guest$(dirname "$file")"
        cp -RL "$file" "$build/guest$file"
    done
    mkdir -p "$build/guest/proc" "$build/guest/dev" "$build/guest/tmp"
    for name in sh sed mount sleep poweroff; do ln -s busybox "$build/guest/bin/$name"; done
    cat > "$build/guest/init" << END
#!/bin/sh
export PATH=/bin LD_LIBRARY_PATH=$root/build
mount -t proc proc /proc
$(cat "$build/commands")
sleep 1 # until the serial line has sent everything
poweroff -f
END
    chmod +x "$build/guest/init"
    (cd "$build/guest" && find . | cpio --quiet -o -H newc | gzip -1 > "$build/disk/initrd")
    cp "${KERNEL:-$build/vmlinuz}" "$build/disk/vmlinuz"
    cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$build/disk"
    # XSAVEC (CPUID bit 321) and XSAVES are left out: Bochs 2.7 gives a size for them that makes Linux do without AVX altogether.
    cat > "$build/disk/isolinux.cfg" << END
default linux
label linux
kernel vmlinuz
append initrd=initrd console=ttyS0,115200 quiet loglevel=0 nosmp nokaslr mitigations=off tsc=reliable no_timer_check lpj=1000000 noxsaves clearcpuid=321
END
    xorriso -as mkisofs -quiet -o "$build/disk.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table \
        "$build/disk" 2> "$build/disk.log"
    cat > "$build/bochsrc" << END
config_interface: textconfig
display_library: term
romimage: file=\$BXSHARE/BIOS-bochs-latest
vgaromimage: file=\$BXSHARE/VGABIOS-lgpl-latest
megs: 512
cpu: model=corei7_skylake_x, count=1, ips=50000000, reset_on_triple_fault=0
clock: sync=none
ata0-master: type=cdrom, path="$build/disk.iso", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="$build/serial"
log: "$build/bochs.log"
panic: action=fatal
END
    # Debian's Bochs has its debugger built in, which waits to be told to go on.
    echo c > "$build/continue"
    rm -f "$build/serial"
    go_on=
    ! "$BOCHS" --help 2>&1 | grep -q -- '-rc filename' || go_on="-rc '$build/continue'"
    TERM=vt100 timeout 3600 script -qec "'$BOCHS' -q -f '$build/bochsrc' $go_on" /dev/null < /dev/null > "$build/screen" || true
    tr -d '\r' < "$build/serial" > "$build/lines"
    grep -o 'Bochs x86 Emulator [0-9.]*' "$build/bochs.log" | head -n 1
fi

passed=0 failed=0
# Sorted lines WHAT DIGEST of a kind on a set.
of() { sed -n "s/^$1 $2 //p" "$build/lines" | tr -s ' ' | sort; } # kind, set
# The digests of a kind on AVX-512 beside those wanted, and where they are others beside those of AVX2 in the same machine.
compare() { # label, kind, kind of AVX2, sorted file of what is wanted
    of "$2" avx512 > "$build/found"
    of "$3" avx2 > "$build/avx2"
    comm -12 "$4" "$build/found" > "$build/same"
    comm -13 "$4" "$build/found" | comm -12 - "$build/avx2" > "$build/alike"
    total=$(wc -l < "$4") same=$(wc -l < "$build/same") alike=0
    [ $native = yes ] || alike=$(wc -l < "$build/alike")
    if [ $((same + alike)) = "$total" ] && [ "$(wc -l < "$build/found")" = "$total" ]; then
        passed=$((passed + 1))
        note=
        [ "$alike" = 0 ] || note=" but for $alike, which are those of AVX2 in this emulator, wrong itself"
        echo "ok   $1$where: $total digests are those of the baseline$note"
    else
        failed=$((failed + 1))
        echo "FAIL $1$where: of $total digests $same are those of the baseline, $alike only those of AVX2 there; the others:"
        comm -13 "$4" "$build/found" | comm -23 - "$build/alike"
    fi
}

tr -s ' ' < "$root/build/digest/baseline.txt" | sort > "$build/kernels"
sort "$root/Tests/Vectors/agreement.txt" > "$build/agreement"
compare avx512-kernels kernels kernels "$build/kernels"
for threads in 1 2 4; do compare "avx512-library-$threads-threads" "agreement-$threads" agreement-1 "$build/agreement"; done
for name in "$@"; do
    last=$(sed -n "s/^$name: \([0-9]* passed, [0-9]* failed\)$/\1/p" "$build/lines")
    case $last in
    *" passed, 0 failed")
        passed=$((passed + 1))
        echo "ok   $name$where: $last"
        ;;
    *)
        failed=$((failed + 1))
        echo "FAIL $name$where: ${last:-it did not end}"
        sed -n "s/^$name: / /p" "$build/lines" | grep -v '^ ok' || true
        ;;
    esac
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
