/* The way in of most programs: linked with the driver, found by the dynamic linker. */
#include <stdlib.h>
#include <string.h>

#include "ways.h"

int main(int argc, char **argv) {
    static const struct api api = {
#define LINKED(name) .name = name,
        FUNCTIONS(LINKED)
#undef LINKED
    };
    if (argc == 2 && strcmp(argv[1], "missing") == 0) { /* what an older driver does not have */
        CUdeviceptr address;
        printf("%d\n", (int)cuMemAllocManaged(&address, 1, CU_MEM_ATTACH_GLOBAL));
        return 0;
    }
    return argc == 2 ? scenario(&api, strtoull(argv[1], NULL, 10)) : 2;
}
