/*
 * The walls around a session process.  Each function builds one around the calling process, which has no threads yet and
 * never leaves it again; docs/security.md says what each is for.  Returns 0 or -errno.
 */
#include "operations.h"

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef OPEN_TREE_CLOEXEC
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 4
#endif

/* struct mount_attr and MOUNT_ATTR_* of linux/mount.h, which does not go together with sys/mount.h everywhere. */
struct attributes { uint64_t set, clear, propagation, user_namespace; };
#define READ_ONLY 1u
#define NO_SUID 2u
#define NO_DEVICES 4u

/*
 * The processes that the calling thread starts from now on are in a pid namespace of their own, of which the first one
 * is the init: with it all end.  Other threads are not concerned.
 */
int sandbox_part_children(void)
{
    return unshare(CLONE_NEWPID) ? -errno : 0;
}

/* A mount of its own that is attached nowhere, so that ".." leads nowhere from its root; of `path` alone, or of all below. */
static int own_mount(int directory, const char *path, unsigned flags)
{
    int fd = (int)syscall(SYS_open_tree, directory, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);

    return fd < 0 ? -errno : fd;
}

/* Takes the place of everything: what was mounted before is gone for this process. */
static int become_root(int tree)
{
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        syscall(SYS_move_mount, tree, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) || fchdir(tree) ||
        syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        return -errno;
    return 0;
}

/*
 * A mount namespace in which there is the directory `root_fd` with what is mounted below it, and nothing else, without
 * set-uid programs and devices, and where `read_only` says so, unchangeable.  What the host mounts below it later appears
 * here too where the host's mounts are shared (mount_namespaces(7)).
 *
 * `*proc_fd` becomes a descriptor of this process's /proc/self/fd, which is the working directory from then on: by a
 * mount of its own, through which nothing else of procfs can be reached.
 */
int sandbox_volume(int root_fd, bool read_only, int *proc_fd)
{
    struct attributes attributes = { .set = NO_SUID | NO_DEVICES | (read_only ? READ_ONLY : 0),
                                     .propagation = MS_SLAVE };
    int proc, error, tree = own_mount(root_fd, "", AT_EMPTY_PATH | AT_RECURSIVE);

    if (tree < 0)
        return tree;
    proc = own_mount(AT_FDCWD, "/proc/self/fd", 0);
    error = proc < 0 ? proc : 0;
    if (!error &&
        syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof attributes))
        error = -errno;
    if (!error)
        error = become_root(tree);
    if (!error && fchdir(proc))
        error = -errno;
    close(tree);
    if (error)
        close_fd(proc);
    else
        *proc_fd = proc;
    return error;
}

/* No network but the sockets that the process has or is given, and no System V objects of others. */
int sandbox_network(void)
{
    return unshare(CLONE_NEWNET | CLONE_NEWIPC) ? -errno : 0;
}

/* Gives up every capability but those in `kept` (a bit each) for good. */
int sandbox_capabilities(uint64_t kept)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2];

    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    /* Only who may (CAP_SETPCAP) can drop them here; no program can be started that would get them. */
    for (unsigned long i = 0; i < 64; i++)
        if (!(kept >> i & 1) && prctl(PR_CAPBSET_DROP, i, 0, 0, 0))
            break;
    if (syscall(SYS_capget, &header, data))
        return -errno;
    for (int i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(kept >> 32 * i);
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, data) ? -errno : 0;
}

/* No program that is started can have more rights, and no other process of this user can look into this one. */
int sandbox_privileges(void)
{
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? -errno : 0;
}

/* The filter for system calls, a program of struct sock_filter.  Of all threads (TSYNC), should there be any. */
int sandbox_filter(const void *program, size_t size)
{
    struct sock_fprog filter = { .len = (unsigned short)(size / sizeof(struct sock_filter)),
                                 .filter = (struct sock_filter *)(uintptr_t)program };

    if (!size || size % sizeof(struct sock_filter) || size / sizeof(struct sock_filter) > BPF_MAXINSNS)
        return -EINVAL;
    /* A positive result is a thread that could not take it: seccomp(2). */
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);

    return result < 0 ? -errno : result ? -EBUSY : 0;
}
