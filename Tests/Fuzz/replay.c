/* A target without libFuzzer: replay FOLDER CHANGES RECORD runs every file of a folder, then CHANGES seeded changes of
 * them. What was being run when the process died is in RECORD; without a death it is empty.
 *
 * The last line is "FILES files, CHANGES changes". */
#define _GNU_SOURCE
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

enum { LARGEST = 1 << 20, FILES = 4096 };

static struct {
    uint8_t *bytes;
    size_t size;
} files[FILES];
static size_t file_count;

static const char *record;
static const uint8_t *running;
static size_t running_size;

static void died(int signal) {
    int file = open(record, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (file >= 0 && running_size > 0 && write(file, running, running_size) < 0) _exit(98);
    kill(getpid(), signal); /* its handler is the system's again */
}

static void run(const uint8_t *bytes, size_t size) {
    uint8_t *copy = malloc(size ? size : 1); /* of exactly that size */
    if (copy == NULL) abort();
    memcpy(copy, bytes, size);
    running = copy;
    running_size = size;
    fuzz_one(copy, size);
    FUZZ_CHECK(memcmp(copy, bytes, size) == 0);
    free(copy);
}

static size_t change(uint8_t *bytes, size_t size, uint64_t *state) {
    static const uint64_t known[] = {0, 1, 127, 128, 255, 65535, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX};
    for (int edits = 1 + (int)(fuzz_random(state) % 4); edits > 0; edits--) {
        size_t place = size ? fuzz_random(state) % size : 0, length = 1 + fuzz_random(state) % 16;
        if (place + length > size) length = size - place;
        switch (fuzz_random(state) % 7) {
        case 0: if (size) bytes[place] ^= (uint8_t)(1 << fuzz_random(state) % 8); break;
        case 1: if (size) bytes[place] = (uint8_t)fuzz_random(state); break;
        case 2: fuzz_put(bytes + place, known[fuzz_random(state) % 10], length > 8 ? 8 : (int)length); break;
        case 3: /* leave some out */
            memmove(bytes + place, bytes + place + length, size - place - length);
            size -= length;
            break;
        case 4: /* put some in */
            if (size + length > LARGEST) break;
            memmove(bytes + place + length, bytes + place, size - place);
            size += length;
            break;
        case 5: { /* take a part of another file */
            size_t other = fuzz_random(state) % file_count;
            size_t from = files[other].size ? fuzz_random(state) % files[other].size : 0;
            size_t count = fuzz_random(state) % 256;
            if (from + count > files[other].size) count = files[other].size - from;
            if (place + count > LARGEST) break;
            memcpy(bytes + place, files[other].bytes + from, count);
            if (place + count > size) size = place + count;
            break;
        }
        default: if (fuzz_random(state) % 4 == 0) size = place; /* cut off */
        }
    }
    return size;
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

int main(int count, char **arguments) {
    if (count != 4) return 2;
    record = arguments[3];
    struct dirent **names;
    int entries = scandir(arguments[1], &names, NULL, by_name);
    for (int i = 0; i < entries && file_count < FILES; i++) {
        char path[4096];
        if (names[i]->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", arguments[1], names[i]->d_name);
        FILE *file = fopen(path, "rb");
        uint8_t *bytes = malloc(LARGEST);
        if (file == NULL || bytes == NULL) return 2;
        files[file_count].bytes = bytes;
        files[file_count++].size = fread(bytes, 1, LARGEST, file);
        fclose(file);
    }
    if (file_count == 0) return 2;
    for (int signal = SIGHUP; signal < 32; signal++) {
        static const int deaths[] = {SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGALRM};
        for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++)
            if (signal == deaths[i]) {
                struct sigaction action;
                memset(&action, 0, sizeof action);
                action.sa_handler = died;
                action.sa_flags = (int)(SA_RESETHAND | SA_NODEFER);
                sigaction(signal, &action, NULL);
            }
    }
    for (size_t i = 0; i < file_count; i++) run(files[i].bytes, files[i].size);
    uint8_t *bytes = malloc(LARGEST + 4096);
    uint64_t state = 1;
    long changes = atol(arguments[2]);
    if (bytes == NULL) return 2;
    for (long i = 0; i < changes; i++) {
        size_t from = fuzz_random(&state) % file_count;
        memcpy(bytes, files[from].bytes, files[from].size);
        size_t size = change(bytes, files[from].size, &state);
        if (fuzz_random(&state) % 8) size = fuzz_repair(bytes, size);
        run(bytes, size);
    }
    printf("%zu files, %ld changes\n", file_count, changes);
    return 0;
}
