/*
 * Ends this process after the N-th store to a piece of memory, whoever makes it: the memory cannot be written, so that each
 * store is a fault; then it is let through, alone (the processor's single step), and counted.  x86-64, one thread.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define SINGLE_STEP 0x100

static char *base;
static size_t size;
static long stores, last;

static void fault(int number, siginfo_t *info, void *context)
{
    char *at = info->si_addr;

    if (at < base || at >= base + size) {
        signal(number, SIG_DFL);     /* a real one: it comes again */
        return;
    }
    mprotect(base, size, PROT_READ | PROT_WRITE);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] |= SINGLE_STEP;
}

static void stepped(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~SINGLE_STEP;
    if (++stores == last)
        kill(getpid(), SIGKILL);
    mprotect(base, size, PROT_READ);
}

int stepping_begin(char *memory, size_t length, long end_after)
{
    struct sigaction action = { .sa_sigaction = fault, .sa_flags = SA_SIGINFO };

    base = memory;
    size = length;
    last = end_after;
    stores = 0;
    if (sigaction(SIGSEGV, &action, NULL))
        return -1;
    action.sa_sigaction = stepped;
    if (sigaction(SIGTRAP, &action, NULL))
        return -1;
    return mprotect(base, size, PROT_READ);
}
