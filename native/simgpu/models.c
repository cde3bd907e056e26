/* The table of cards, compiled in from cards.csv. */
#include <string.h>
#include <strings.h>

#include "machine.h"

static const struct {
    const char *aliases; /* separated by | */
    struct sim_model model;
} models[] = {
#include "cards.h"
};

static bool is_alias(const char *aliases, const char *name, size_t length) {
    for (const char *at = aliases; *at;) {
        size_t one = strcspn(at, "|");
        if (one == length && !strncasecmp(at, name, length))
            return true;
        at += one + (at[one] == '|');
    }
    return false;
}

bool sim_model_find(const char *name, size_t length, struct sim_model *model) {
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        const char *full = models[i].model.name;
        if ((strlen(full) == length && !strncasecmp(full, name, length)) ||
            is_alias(models[i].aliases, name, length)) {
            *model = models[i].model;
            return true;
        }
    }
    return false;
}
