/*
 * Credentials and umask are the thread's own here: glibc's wrappers would change every thread, the system calls do not
 * (credentials(7)); the umask belongs to what clone(2) calls CLONE_FS, which each thread that changes it leaves first.
 */
#include "identity.h"

#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>

static __thread bool own_umask;

/* Going on with somebody else's rights, or with too few, is worse than ending the session. */
static void must(long result)
{
    if (result)
        abort();
}

void act_as_server(const struct tables *t, const struct acting *acting)
{
    int saved = errno;

    if (acting->uid)
        must(syscall(SYS_setresuid, -1, t->own.uid, -1));
    if (acting->gid)
        must(syscall(SYS_setresgid, -1, t->own.gid, -1));
    if (acting->groups)
        must(syscall(SYS_setgroups, t->own.group_count, t->own.groups));
    if (acting->umask)
        umask(acting->old_umask);
    errno = saved;
}

static int capabilities(int call, struct capability_sets *sets)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2];

    for (int i = 0; i < 2; i++)
        data[i] = (struct __user_cap_data_struct){ sets->effective[i], sets->permitted[i], sets->inheritable[i] };
    if (syscall(call, &header, data))
        return -errno;
    for (int i = 0; i < 2; i++) {
        sets->effective[i] = data[i].effective;
        sets->permitted[i] = data[i].permitted;
        sets->inheritable[i] = data[i].inheritable;
    }
    return 0;
}

/* What the guest's root may do within the ids that are mapped, where it is not the host's: all, but to make devices. */
static int keep_root_s_rights(void)
{
    struct capability_sets sets;
    int error = capabilities(SYS_capget, &sets);

    sets.effective[0] = sets.permitted[0] &
                        (CAP_TO_MASK(CAP_DAC_OVERRIDE) | CAP_TO_MASK(CAP_FOWNER) | CAP_TO_MASK(CAP_FSETID));
    return error ? error : capabilities(SYS_capset, &sets);
}

/* The caller as the host knows him; groups that are not mapped are left out.  `*groups` is to be freed. */
static int map_identity(const struct tables *t, struct identity *identity, uint32_t **groups)
{
    uint32_t count = 0;

    *groups = NULL;
    if (!t->maps_ids)
        return 0;
    identity->uid = id_in(&t->policy.uids, identity->uid);
    identity->gid = id_in(&t->policy.gids, identity->gid);
    if (identity->uid == NO_ID || identity->gid == NO_ID)
        return -EOVERFLOW;
    *groups = malloc(identity->group_count * sizeof **groups + 1);
    if (!*groups)
        return -ENOMEM;
    for (uint32_t i = 0; i < identity->group_count; i++) {
        (*groups)[count] = id_in(&t->policy.gids, identity->groups[i]);
        count += (*groups)[count] != NO_ID;
    }
    identity->groups = *groups;
    identity->group_count = count;
    return 0;
}

static int take(const struct tables *t, const struct identity *identity, bool root, struct acting *acting)
{
    int error;

    if (!t->privileged || (identity->uid == t->own.uid && identity->gid == t->own.gid && !identity->group_count))
        return 0;
    acting->groups = !syscall(SYS_setgroups, identity->group_count, identity->groups);
    acting->gid = acting->groups && !syscall(SYS_setresgid, -1, identity->gid, -1);
    acting->uid = acting->gid && !syscall(SYS_setresuid, -1, identity->uid, -1);
    error = acting->uid ? 0 : -errno;
    if (!error && root && identity->uid)
        error = keep_root_s_rights();
    return error;
}

/*
 * The calling thread takes the caller's effective ids, groups and, `with_umask`, umask.  With another effective uid than
 * root's every capability is gone until act_as_server (capabilities(7)), but for those of a root whose ids are mapped.
 * Returns 0 or -errno, then nothing changed: -EOVERFLOW for an id that is not mapped.
 */
int act_as(const struct tables *t, const struct identity *identity, bool with_umask, struct acting *acting)
{
    const bool root = !identity->uid && !t->policy.uids.squash_root;
    struct identity mapped = *identity;
    uint32_t *groups;
    int error;

    *acting = (struct acting){ 0 };
    /* -1 means "leave as it is" to setresuid: root. */
    if (identity->uid == NO_ID || identity->gid == NO_ID)
        return -EINVAL;
    error = map_identity(t, &mapped, &groups);
    if (error)
        return error;
    if (with_umask) {
        if (!own_umask && unshare(CLONE_FS)) {
            free(groups);
            return -errno;
        }
        own_umask = true;
        acting->old_umask = umask(identity->umask & 0777);
        acting->umask = true;
    }
    error = take(t, &mapped, root, acting);
    free(groups);
    if (error)
        act_as_server(t, acting);
    return error;
}

/*
 * Until end_killing the thread writes and truncates the file like somebody without CAP_FSETID who is in the file's group:
 * the kernel clears set-uid, and set-gid where the group may execute (inode(7)).  That is what include/uapi/linux/fuse.h
 * asks for with FUSE_HANDLE_KILLPRIV_V2, whoever writes, since no request carries the writer's groups.  Where a file has
 * neither bit there is nothing to do; file capabilities the kernel takes away from everybody.  `fd` may be O_PATH.
 * Returns 0 or -errno.
 */
int begin_killing(const struct tables *t, int fd, struct killing *killing)
{
    struct capability_sets sets = { 0 };
    struct stat st;
    int error;

    if (fstat(fd, &st))
        return -errno;
    if (!(st.st_mode & (S_ISUID | S_ISGID)))
        return 0;
    error = capabilities(SYS_capget, &sets);
    if (error || !(sets.effective[0] & CAP_TO_MASK(CAP_FSETID)))
        return error;
    killing->saved = sets;
    sets.effective[0] &= ~CAP_TO_MASK(CAP_FSETID);
    error = capabilities(SYS_capset, &sets);
    killing->capability = !error;
    if (!error && t->privileged && (st.st_mode & (S_ISGID | S_IXGRP)) == S_ISGID) {
        killing->group = true;
        syscall(SYS_setfsgid, st.st_gid);
    }
    return error;
}

void end_killing(const struct tables *t, const struct killing *killing)
{
    struct capability_sets sets = killing->saved;
    int error = errno;

    if (killing->group)
        syscall(SYS_setfsgid, t->own.gid);
    if (killing->capability)
        must(capabilities(SYS_capset, &sets));
    errno = error;
}
