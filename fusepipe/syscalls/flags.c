/* Flags and project of an inode, by ioctl(2): what lsattr(1) shows and chattr(1) sets. */
#include "identity.h"

#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

/* What a command takes and gives, in bytes.  The kernel reads and writes an int where the number says long. */
struct command { uint32_t number; size_t takes, gives; };

static const struct command commands[] = {
    { FS_IOC_GETFLAGS, 0, sizeof(int) },
    { FS_IOC_SETFLAGS, sizeof(int), 0 },
    { FS_IOC_FSGETXATTR, 0, sizeof(struct fsxattr) },
    { FS_IOC_FSSETXATTR, sizeof(struct fsxattr), 0 },
};

static const struct command *find(uint32_t number)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (commands[i].number == number)
            return &commands[i];
    return NULL;
}

/*
 * As the caller: the host refuses him what needs a capability that the guest's kernel may not ask about, such as
 * CAP_SYS_RESOURCE for the journal flag of ext4.
 */
static int run(struct tables *t, int fd, const struct command *command, unsigned char *data,
               const struct identity *identity)
{
    struct acting acting;
    int error = act_as(t, identity, false, &acting);

    if (error)
        return error;
    if (ioctl(fd, command->number, data))
        error = -errno;
    act_as_server(t, &acting);
    return error;
}

/* `data` has room for IOCTL_ROOM bytes, takes the answer, and `size` of it are the argument; returns the answer's size. */
int tree_ioctl(struct tables *t, uint64_t handle, uint32_t number, unsigned char *data, size_t size,
               const struct identity *identity)
{
    const struct command *command = find(number);
    struct used_handle used;
    int error;

    _Static_assert(sizeof(struct fsxattr) <= IOCTL_ROOM, "struct fsxattr fits");
    if (!command)
        return -ENOTTY;
    if (size != command->takes)
        return -EINVAL;
    if (t->read_only && command->takes)
        return -EROFS;
    error = handle_use(t, handle, false, &used);
    if (error == -EBADF)
        error = handle_use(t, handle, true, &used);
    if (error)
        return error;
    if (!size)
        memset(data, 0, command->gives);
    else
        error = may(t, used.fd, MAY_CHANGE);
    if (!error)
        error = run(t, used.fd, command, data, identity);
    handle_done(t, &used);
    return error ? error : (int)command->gives;
}
