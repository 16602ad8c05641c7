/* Files for targets that read files: in memory, and gone with the process. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <ftw.h>
#include <unistd.h>

static char folder[64];

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path);
}

static void remove_folder(void) { nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS); }

const char *fuzz_folder(void) {
    if (*folder == 0) {
        snprintf(folder, sizeof folder, "/dev/shm/lockstep-fuzz-XXXXXX");
        FUZZ_CHECK(mkdtemp(folder) != NULL);
        atexit(remove_folder);
    }
    return folder;
}

const char *fuzz_write(const char *name, const void *bytes, size_t size) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    FILE *file = fopen(path, "wb");
    FUZZ_CHECK(file != NULL && (size == 0 || fwrite(bytes, size, 1, file) == 1));
    fclose(file);
    return path;
}
