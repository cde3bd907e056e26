/* Finding names in the generated table, and which hooks are in force. */
#include "real.h"

#include <string.h>

#include "share.h"

unsigned int vcuda_first_from(const char *name) {
    unsigned int low = 0, high = VCUDA_FUNCTIONS;
    while (low < high) {
        unsigned int middle = (low + high) / 2;
        if (strcmp(vcuda_name_of(middle), name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int vcuda_index_of(const char *name) {
    unsigned int index = vcuda_first_from(name);
    return index < VCUDA_FUNCTIONS && strcmp(vcuda_name_of(index), name) == 0 ? (int)index : -1;
}

bool vcuda_hooks(unsigned int index) {
    unsigned int flags = vcuda_name[index].flags;
    if (!(flags & VCUDA_HOOKED))
        return false;
    switch (vcuda_share_mode()) {
    case VCUDA_MODE_NONE:
        return false;
    case VCUDA_MODE_WHOLE:
        return flags & VCUDA_HOOKED_WHOLE;
    default:
        return true;
    }
}
