/* The first process of a namespace, and the pause container: takes in orphans, and waits.
 *
 *   init           until SIGTERM or SIGINT (the pause container)
 *   init --stdin   until standard input ends as well, as it does when whoever holds the other end dies; with
 *                  this process the kernel ends all others of its PID namespace.
 * Prints "up" first.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t asked_to_end;

static void on_end(int signal) {
    (void)signal;
    asked_to_end = 1;
}

static void on_child(int signal) {
    int saved = errno;
    (void)signal;
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
    errno = saved;
}

static int input_ended(void) {
    char bytes[64];
    ssize_t got = read(STDIN_FILENO, bytes, sizeof bytes);
    return got == 0 || (got < 0 && errno != EINTR);
}

int main(int count, char **arguments) {
    struct sigaction end = {.sa_handler = on_end}, child = {.sa_handler = on_child, .sa_flags = SA_NOCLDSTOP};
    struct pollfd input = {.fd = -1, .events = POLLIN};
    sigaction(SIGTERM, &end, NULL);
    sigaction(SIGINT, &end, NULL);
    sigaction(SIGCHLD, &child, NULL);
    on_child(SIGCHLD); /* whoever died before the handler was there */
    if (count > 1 && strcmp(arguments[1], "--stdin") == 0)
        input.fd = STDIN_FILENO;
    puts("up");
    fflush(stdout);
    while (!asked_to_end) {
        /* The timeout covers a signal that arrives between the check and the call. */
        if (poll(&input, 1, 1000) > 0 && input_ended())
            return 0;
    }
    return 0;
}
