/* An inode through its link in /proc/self/fd: the kernel jumps to the inode itself, no name is looked up. */
#include "tables.h"

#define O_LARGEFILE_X86 0100000u     /* glibc defines O_LARGEFILE as 0 on 64-bit machines */
#define O_TMPFILE_BIT 020000000u

struct proc_name proc_name(int fd)
{
    struct proc_name name;
    char *p = name.text + sizeof name.text;
    unsigned n = (unsigned)fd;
    size_t length;

    *--p = 0;
    do
        *--p = (char)('0' + n % 10);
    while (n /= 10);
    length = (size_t)(name.text + sizeof name.text - p);
    for (size_t i = 0; i < length; i++)
        name.text[i] = p[i];
    return name;
}

/* A new open file of what `fd` (O_PATH or not) stands for.  Returns the descriptor or -errno. */
int reopen(const struct tables *t, int fd, int flags)
{
    struct proc_name name = proc_name(fd);
    int opened = openat(t->proc_fd, name.text, flags | O_CLOEXEC | O_NOCTTY);

    return opened < 0 ? -errno : opened;
}

/*
 * The flags of open(2) that an OPEN or CREATE may hand on.  Creating and following are decided by the callers;
 * O_NONBLOCK stays, it means "do not wait for a lease" on a regular file.
 */
uint32_t open_flags(uint32_t asked)
{
    return asked & (uint32_t)(O_ACCMODE | O_APPEND | O_DIRECT | O_DSYNC | O_SYNC | O_NOATIME | O_NONBLOCK | O_TRUNC |
                              O_LARGEFILE_X86) & ~O_TMPFILE_BIT;
}
