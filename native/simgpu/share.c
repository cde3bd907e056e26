/*
 * Memory that several processes may have: a file in memory that each of them maps, and the machine's entry
 * that says who does. The entry's number stands in a note on the file's last page, so the file alone is
 * enough to join in.
 */
#include "memory.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOTE_BYTES 4096 /* behind the data */
#define NOTE_MAGIC 0x65746f6e6d6973U

struct use {
    struct sim_node node; /* by number */
    uint64_t count;
};

static struct sim_node *uses;

static struct use *find(uint64_t id) {
    return (struct use *)sim_tree_at(uses, id);
}

bool sim_use_made(uint64_t id) {
    struct use *use = malloc(sizeof *use);
    if (!use) {
        sim_use_forget(id);
        return false;
    }
    *use = (struct use){.node = {.start = id, .bytes = 1}, .count = 1};
    sim_tree_put(&uses, &use->node);
    return true;
}

bool sim_use_open(uint64_t id) {
    struct use *use = find(id);
    if (use) {
        use->count++;
        return true;
    }
    sim_machine_lock();
    bool opened = sim_shared_open(id);
    sim_machine_unlock();
    if (!opened)
        return false;
    use = malloc(sizeof *use);
    if (!use) {
        sim_machine_lock();
        sim_shared_close(id);
        sim_machine_unlock();
        return false;
    }
    *use = (struct use){.node = {.start = id, .bytes = 1}, .count = 1};
    sim_tree_put(&uses, &use->node);
    return true;
}

void sim_use_close(uint64_t id) {
    struct use *use = find(id);
    if (!use || --use->count)
        return;
    sim_tree_drop(&uses, &use->node);
    free(use);
    sim_machine_lock();
    sim_shared_close(id);
    sim_machine_unlock();
}

void sim_use_forget(uint64_t id) {
    struct use *use = find(id);
    if (use) {
        sim_tree_drop(&uses, &use->node);
        free(use);
    }
    sim_machine_lock();
    sim_shared_cancel(id);
    sim_machine_unlock();
}

int sim_memory_file_make(const struct sim_note *note) {
    struct sim_note written = *note;
    written.magic = NOTE_MAGIC;
    int fd = memfd_create("simgpu", MFD_CLOEXEC);
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)(note->bytes + NOTE_BYTES)) == 0 &&
        pwrite(fd, &written, sizeof written, (off_t)note->bytes) == (ssize_t)sizeof written)
        return fd;
    close(fd);
    return -1;
}

bool sim_backing_read(int fd, struct sim_note *note) {
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size <= NOTE_BYTES)
        return false;
    if (pread(fd, note, sizeof *note, status.st_size - NOTE_BYTES) != (ssize_t)sizeof *note)
        return false;
    return note->magic == NOTE_MAGIC && note->bytes == (uint64_t)status.st_size - NOTE_BYTES &&
           (note->card < sim_machine()->card_count || note->card == UINT32_MAX);
}
