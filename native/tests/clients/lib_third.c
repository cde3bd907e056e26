/* A library that has nothing to do with the driver, and looks for its functions all the same. */
#include "ways.h"

void third_next(const char *name);
void third_default(const char *name);

void third_next(const char *name) {
    print_place(dlsym(RTLD_NEXT, name));
}
void third_default(const char *name) {
    print_place(dlsym(RTLD_DEFAULT, name));
}
