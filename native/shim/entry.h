/* The doors: dlsym, dlvsym and dlopen, as this library exports them (entry_x86_64.c, entry_aarch64.c). */
#ifndef VCUDA_ENTRY_H
#define VCUDA_ENTRY_H

/* What is answered to a program that asks for a name. Comes back in two registers. */
struct vcuda_answer {
    void *value;
    long decided; /* 0: libc is to be asked in the caller's name */
};

/* Called for names that begin as hooked ones do. `caller`: where the program goes on. `version`: NULL for
 * dlsym. */
struct vcuda_answer vcuda_entry_answer(void *handle, const char *name, const void *caller,
                                       const char *version);
/* Called before a library is opened with RTLD_DEEPBIND. */
void vcuda_entry_deepbind(void);

/* libc's own functions, found when one is first needed. They lie in the doors' way of all other names: a
 * jump. */
void vcuda_entry_find_genuine(void);
extern void *vcuda_entry_dlsym, *vcuda_entry_dlvsym, *vcuda_entry_dlopen;

/* The mode bit of dlopen that lets a library look in its own dependencies first. */
#define VCUDA_DEEPBIND 8

#endif
