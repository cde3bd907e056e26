/*
 * Where the workload starts, in place of the C library's own start files: those of a new glibc ask for a new
 * glibc when the program runs. The old name of what they call is in every one, and is all that is needed.
 */
#include <stdint.h>

int main(int argc, char **argv);
int __libc_start_main(int (*run)(int, char **), int argc, char **argv, void (*init)(void), void (*fini)(void),
                      void (*loader_fini)(void), void *stack_end);

#if defined(__x86_64__)
__asm__(".symver __libc_start_main, __libc_start_main@GLIBC_2.2.5");
__asm__(".text\n.globl _start\n.type _start, @function\n"
        "_start:\n  xor %ebp, %ebp\n  mov %rsp, %rdi\n  mov %rdx, %rsi\n  and $-16, %rsp\n"
        "  call cores_start\n  hlt\n");
#elif defined(__aarch64__)
__asm__(".symver __libc_start_main, __libc_start_main@GLIBC_2.17");
__asm__(".text\n.globl _start\n.type _start, %function\n"
        "_start:\n  mov x29, #0\n  mov x30, #0\n  mov x1, x0\n  mov x0, sp\n  bl cores_start\n  brk #1\n");
#endif

/* On the stack, as the kernel leaves it: how many arguments, then these. */
__attribute__((used, noreturn)) static void cores_start(long *stack, void (*loader_fini)(void)) {
    __libc_start_main(main, (int)stack[0], (char **)(stack + 1), 0, 0, loader_fini, stack);
    __builtin_trap();
}
