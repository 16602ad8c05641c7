/* The Swift standard library's properties of Unicode scalars, without their tables.
 *
 * The standard library is linked into liblockstep.so statically. Its type descriptions keep alive what it knows of
 * every Unicode scalar (names, categories, scripts, ages, case mappings): 0.67 MB, a twelfth of the library, which
 * nothing in Lockstep reads. These definitions come before the archive's, so its member with the tables is left out.
 * They answer "unknown", as the real ones do of a scalar without an entry; `make abi` checks that no object of ours
 * asks. Comparing strings and finding characters in them use other tables, which stay.
 */
#pragma STDC FP_CONTRACT OFF

#include <stddef.h>
#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden")))

HIDDEN uint64_t _swift_stdlib_getBinaryProperties(uint32_t scalar) { (void)scalar; return 0; }

HIDDEN uint8_t _swift_stdlib_getNumericType(uint32_t scalar) { (void)scalar; return UINT8_MAX; }

HIDDEN double _swift_stdlib_getNumericValue(uint32_t scalar) { (void)scalar; return 0; }

HIDDEN const char *_swift_stdlib_getNameAlias(uint32_t scalar) { (void)scalar; return NULL; }

HIDDEN int32_t _swift_stdlib_getMapping(uint32_t scalar, uint8_t mapping) { (void)scalar; (void)mapping; return 0; }

HIDDEN const uint8_t *_swift_stdlib_getSpecialMapping(uint32_t scalar, uint8_t mapping, intptr_t *length) {
    (void)scalar;
    (void)mapping;
    *length = 0;
    return NULL;
}

HIDDEN intptr_t _swift_stdlib_getScalarName(uint32_t scalar, uint8_t *buffer, intptr_t capacity) {
    (void)scalar;
    (void)buffer;
    (void)capacity;
    return 0;
}

HIDDEN uint16_t _swift_stdlib_getAge(uint32_t scalar) { (void)scalar; return UINT16_MAX; }

HIDDEN uint8_t _swift_stdlib_getGeneralCategory(uint32_t scalar) { (void)scalar; return UINT8_MAX; }

HIDDEN uint8_t _swift_stdlib_getScript(uint32_t scalar) { (void)scalar; return UINT8_MAX; }

HIDDEN const uint8_t *_swift_stdlib_getScriptExtensions(uint32_t scalar, uint8_t *count) {
    (void)scalar;
    *count = 0;
    return NULL;
}

HIDDEN void _swift_stdlib_getCaseMapping(uint32_t scalar, uint32_t *buffer) { buffer[0] = scalar; }
