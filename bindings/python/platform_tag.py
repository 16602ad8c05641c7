"""The platform tag of a wheel: what its shared libraries truly need of the system, read from the libraries themselves.

PEP 600: `manylinux_2_34_x86_64` promises that the wheel works where glibc is 2.34 or newer, with the libraries every such
system has. Standard library only; auditwheel, which knows the systems, must agree (Tests/Install/test_wheel.py).
"""

from __future__ import annotations

import os
import struct
import sysconfig
from collections.abc import Iterable

# What every system of the tag has (PEP 600), of what a library of ours could ask for.
OF_THE_SYSTEM = {
    "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libgcc_s.so.1",
    "libstdc++.so.6", "libatomic.so.1",
}
LOADERS = ("ld-linux", "ld64.")
# The first glibc whose systems have these versions of the C++ library, and of what it and libgcc share with compilers.
GLIBC_OF = {
    "GLIBCXX": [((3, 4, 19), 17), ((3, 4, 22), 24), ((3, 4, 24), 27), ((3, 4, 28), 31), ((3, 4, 29), 34),
                ((3, 4, 30), 35), ((3, 4, 33), 39)],
    "CXXABI": [((1, 3, 7), 17), ((1, 3, 10), 24), ((1, 3, 11), 27), ((1, 3, 12), 31), ((1, 3, 13), 34), ((1, 3, 15), 39)],
    "GCC": [((4, 8, 0), 17), ((7, 0, 0), 27), ((12, 0, 0), 35), ((14, 0, 0), 39)],
}
OLDEST = 17  # manylinux2014, below which nothing is built any more
LOAD, DYNAMIC = 1, 2  # p_type
NEEDED, STRTAB, VERNEED, VERNEEDNUM = 1, 5, 0x6FFFFFFE, 0x6FFFFFFF  # d_tag


class Unknown(Exception):
    """Why no manylinux tag can be given."""


def needs(path: str) -> tuple[set[str], set[str]]:
    """The libraries that a 64-bit little-endian ELF file needs, and the versions of their symbols: {"GLIBC_2.34", …}."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:6] != b"\x7fELF\x02\x01":
        raise Unknown(f"{path} is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, table + index * size) for index in range(count)]

    def place(address: int) -> int:
        """Where in the file the byte is that is loaded to an address."""
        for kind, _, offset, start, _, length, _, _ in segments:
            if kind == LOAD and start <= address < start + length:
                return offset + address - start
        raise Unknown(f"{path}: nothing is loaded at {address:#x}")

    entries = [
        struct.unpack_from("<qQ", data, offset)
        for kind, _, begin, _, _, length, _, _ in segments if kind == DYNAMIC
        for offset in range(begin, begin + length, 16)]
    values = dict(entries)
    texts = place(values[STRTAB])

    def text(offset: int) -> str:
        return data[texts + offset:data.index(b"\0", texts + offset)].decode()

    versions = set()
    record = place(values[VERNEED]) if VERNEED in values else 0
    for _ in range(values.get(VERNEEDNUM, 0)):
        _, names, _, first, following = struct.unpack_from("<HHIII", data, record)
        name = record + first
        for _ in range(names):
            _, _, _, at, step = struct.unpack_from("<IHHII", data, name)
            versions.add(text(at))
            name += step
        record += following
    return {text(value) for tag, value in entries if tag == NEEDED}, versions


def oldest_glibc(path: str) -> int:
    """The 34 of the oldest glibc, 2.34, with which the library at `path` can be loaded."""
    libraries, versions = needs(path)
    strange = sorted(each for each in libraries if each not in OF_THE_SYSTEM and not each.startswith(LOADERS))
    if strange:
        raise Unknown(f"{path} needs {', '.join(strange)}, which not every system has")
    found = OLDEST
    for version in versions:
        family, _, number = version.rpartition("_")
        parts = tuple(int(part) for part in number.split(".")) if number.replace(".", "").isdigit() else ()
        if family == "GLIBC" and parts[:1] == (2,):
            found = max(found, parts[1])
        elif family in GLIBC_OF and parts:
            newer = [glibc for known, glibc in GLIBC_OF[family] if parts <= known]
            if not newer:
                raise Unknown(f"{path} needs {version}, of which it is not known which systems have it")
            found = max(found, newer[0])
        else:
            raise Unknown(f"{path} needs {version}, of which it is not known which systems have it")
    return found


def glibc_here() -> int:
    """The 36 of this machine's glibc, 2.36; 0 if it has another C library."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return int(version.split(".")[1]) if name == "glibc" else 0
    except (ValueError, IndexError, OSError):
        return 0


def platform_tag(paths: Iterable[str]) -> str:
    """The tag of a wheel with these libraries; without a manylinux tag, the plain one, for this machine only."""
    plain = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if not plain.startswith("linux_"):
        return plain
    try:
        glibc = max(oldest_glibc(path) for path in paths)
        if glibc > glibc_here():  # a newer compiler than the system's: pip would not install the wheel here
            raise Unknown(f"what it needs comes with glibc 2.{glibc}, here is 2.{glibc_here()}")
    except Unknown as reason:
        print(f"this wheel is for machines like this one only: {reason}")
        return plain
    return f"manylinux_2_{glibc}_{plain.removeprefix('linux_')}"
