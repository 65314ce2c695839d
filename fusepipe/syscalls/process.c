/* What concerns the process as a whole. */
#include "operations.h"

#include <linux/capability.h>
#include <signal.h>
#include <sys/syscall.h>

static void nothing(int signal_number)
{
    (void)signal_number;
}

/* A signal that ends waiting calls with EINTR and does nothing else: no SA_RESTART (signal(7)). */
int install_interrupt_handler(int signal_number)
{
    struct sigaction action = { .sa_handler = nothing };

    return sigaction(signal_number, &action, NULL) ? -errno : 0;
}

int effective_capabilities(uint64_t *bits)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &header, data))
        return -errno;
    *bits = (uint64_t)data[1].effective << 32 | data[0].effective;
    return 0;
}
