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

static void remove_all(const char *path) { nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS); }

static void remove_folder(void) { remove_all(folder); }

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

void fuzz_copy(const char *name) {
    char path[300], *bytes = malloc(1 << 16);
    snprintf(path, sizeof path, "%s/%s", TINY, name);
    FILE *file = fopen(path, "rb");
    FUZZ_CHECK(file != NULL && bytes != NULL);
    size_t size = fread(bytes, 1, 1 << 16, file);
    fclose(file);
    fuzz_write(name, bytes, size);
    free(bytes);
}

void fuzz_remove(const char *name) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    remove_all(path);
}
