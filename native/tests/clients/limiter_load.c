/*
 * Work for a share, for as long as it is wanted: `limiter_load MODE [US [STREAMS]]`.
 *
 *   queue  kernels of US, launched one behind the other for as long as the driver takes more
 *   sync   the same, each waited for
 *   steps  what standard input says, a line each: `launch US COUNT` or `sync`; the answer is CLOCK_MONOTONIC
 *          before and after in ns
 *
 * Says "ready" when it has begun. At the end of its standard input it prints how many launches the driver has
 * taken, and how long the slowest took, in ns; and ends, whatever it is at.
 */
#include <time.h>

#include "launch_work.h"

static uint64_t launches, longest_ns;
static int sync_each, stream_count = 1;
static uint64_t kernel_ns;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void *work(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (unsigned int i = 0;; i++) {
        CUstream stream = streams[i % (unsigned int)stream_count];
        uint64_t before = now_ns();
        launch_blocks(stream, 4, kernel_ns);
        uint64_t took = now_ns() - before;
        __atomic_store_n(&longest_ns, took > longest_ns ? took : longest_ns, __ATOMIC_RELAXED);
        __atomic_fetch_add(&launches, 1, __ATOMIC_RELAXED);
        if (sync_each)
            MUST(cuStreamSynchronize(stream));
    }
    return NULL;
}

static void follow_steps(void) {
    char line[100];
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long us;
        int count = 0;
        uint64_t before = now_ns();
        if (sscanf(line, "launch %llu %d", &us, &count) == 2)
            for (int i = 0; i < count; i++)
                launch_blocks(streams[0], 4, us * US);
        else
            MUST(cuStreamSynchronize(streams[0]));
        printf("%llu %llu\n", (unsigned long long)before, (unsigned long long)now_ns());
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    pthread_t thread;
    if (argc < 2)
        return 2;
    kernel_ns = argc > 2 ? strtoull(argv[2], NULL, 10) * US : MS;
    stream_count = argc > 3 ? atoi(argv[3]) : 1;
    sync_each = strcmp(argv[1], "sync") == 0;
    set_up();
    puts("ready");
    fflush(stdout);
    if (strcmp(argv[1], "steps") == 0) {
        follow_steps();
        return 0;
    }
    if (pthread_create(&thread, NULL, work, NULL))
        return 1;
    while (getchar() != EOF)
        continue;
    printf("%llu %llu\n", (unsigned long long)__atomic_load_n(&launches, __ATOMIC_RELAXED),
           (unsigned long long)__atomic_load_n(&longest_ns, __ATOMIC_RELAXED));
    return 0;
}
