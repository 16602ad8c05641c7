/* hypotf, which nothing in Lockstep calls. The standard library's Glibc module does, and its wrapper stays in the
 * library; glibc 2.35 gave the function a new version, so this one reference would keep the library from loading
 * on systems with glibc 2.34 (RHEL 9 and its kin), whose other needs they meet.
 */
#pragma STDC FP_CONTRACT OFF

#include <math.h>

__attribute__((visibility("hidden"))) float hypotf(float x, float y) {
    if (isinf(x) || isinf(y)) return INFINITY;
    /* A double holds the square of a float exactly, and a sum of two cannot overflow. */
    return (float)sqrt((double)x * x + (double)y * y);
}
