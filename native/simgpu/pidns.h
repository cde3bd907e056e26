/* Pid namespaces by number, as /proc/PID/ns/pid names them: pid:[4026531836]. */
#ifndef SIM_PIDNS_H
#define SIM_PIDNS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The number behind such a link; 0 where it cannot be read. */
static inline uint64_t sim_pid_namespace(const char *link) {
    char text[64];
    ssize_t length = readlink(link, text, sizeof text - 1);
    if (length <= 0)
        return 0;
    text[length] = 0;
    const char *number = strchr(text, '[');
    return number ? strtoull(number + 1, NULL, 10) : 0;
}

#endif
