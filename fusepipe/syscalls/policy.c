/*
 * Ids of the guest and of the host, as the kernel's idmapped mounts have them (mount_setattr(2)): on the way in an id
 * that is not mapped is refused, on the way out it is shown as NOBODY, and what belongs to one is to the guest a
 * stranger's: it may read what others may, and change nothing, whoever it says it is.
 */
#include "operations.h"

#include <linux/xattr.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#define ACL_VERSION 2u               /* linux/posix_acl_xattr.h: a version, then entries, little-endian */
#define ACL_USER 0x02u
#define ACL_GROUP 0x08u
#define ACL_HEADER 4u
#define ACL_ENTRY 8u

uint32_t id_in(const struct id_map *map, uint32_t guest)
{
    if (guest == NO_ID)
        return NO_ID;
    if (map->squash_all)
        return map->all;
    if (map->squash_root && !guest)
        return NOBODY;
    if (!map->count)
        return guest;
    for (uint32_t i = 0; i < map->count; i++) {
        const struct id_extent *e = &map->extents[i];

        if (guest >= e->guest && guest - e->guest < e->count)
            return e->host + (guest - e->guest);
    }
    return NO_ID;
}

bool id_out(const struct id_map *map, uint32_t host, uint32_t *guest)
{
    bool found = !map->count;

    *guest = host;
    for (uint32_t i = 0; !found && i < map->count; i++) {
        const struct id_extent *e = &map->extents[i];

        found = host >= e->host && host - e->host < e->count;
        if (found)
            *guest = e->guest + (host - e->host);
    }
    /* What would be root's is nobody's: the guest's root is somebody else on the host. */
    if (found && map->squash_root && !*guest)
        found = false;
    if (!found)
        *guest = NOBODY;
    return found;
}

static bool changes_ids(const struct id_map *map)
{
    return map->count || map->squash_root || map->squash_all;
}

/* Takes a copy of the policy.  Before anything else is done with the tables.  Returns 0 or -ENOMEM. */
int tables_set_policy(struct tables *t, const struct policy *policy)
{
    size_t uids = policy->uids.count * sizeof(struct id_extent), gids = policy->gids.count * sizeof(struct id_extent);
    struct id_extent *extents = malloc(uids + gids + 1);

    if (!extents)
        return -ENOMEM;
    if (uids)
        memcpy(extents, policy->uids.extents, uids);
    if (gids)
        memcpy(extents + policy->uids.count, policy->gids.extents, gids);
    free(t->extents);
    t->extents = extents;
    t->policy = *policy;
    t->policy.uids.extents = extents;
    t->policy.gids.extents = extents + policy->uids.count;
    t->maps_ids = changes_ids(&policy->uids) || changes_ids(&policy->gids);
    t->root_is_root = !id_in(&t->policy.uids, 0);
    return 0;
}

/*
 * 0, -EACCES or -EOVERFLOW: whether the guest may do that with an inode that has these attributes, as far as its owner is
 * concerned.
 */
int may_with(const struct tables *t, const struct stat *st, enum access access)
{
    uint32_t guest;

    if (!t->maps_ids || (id_out(&t->policy.uids, st->st_uid, &guest) && id_out(&t->policy.gids, st->st_gid, &guest)))
        return 0;
    switch (access) {
    case MAY_READ:
        return st->st_mode & S_IROTH ? 0 : -EACCES;
    case MAY_SEARCH:
        return st->st_mode & S_IXOTH ? 0 : -EACCES;
    case MAY_CHANGE:
        return -EACCES;
    case MAY_OWN:
        break;
    }
    return -EOVERFLOW;
}

/* The same of an open inode. */
int may(const struct tables *t, int fd, enum access access)
{
    struct stat st;

    if (!t->maps_ids)
        return 0;
    return fstat(fd, &st) ? -errno : may_with(t, &st, access);
}

/* The same for opening with these flags. */
int may_open(const struct tables *t, int fd, uint32_t flags)
{
    if ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC)
        return may(t, fd, MAY_CHANGE);
    return may(t, fd, MAY_READ);
}

/* 0 or -EPERM: whether something with this type and these permissions may be made. */
int may_make(const struct tables *t, uint32_t mode, uint64_t rdev)
{
    const uint32_t type = mode & S_IFMT;
    const uint32_t special = type == S_IFDIR ? S_ISUID : S_ISUID | S_ISGID;   /* a directory's set-gid gives no rights */

    if (t->policy.no_setuid && mode & special)
        return -EPERM;
    /* A character device 0:0 is none: overlayfs marks with it what was removed. */
    if (t->policy.no_devices && (type == S_IFBLK || (type == S_IFCHR && rdev != makedev(0, 0))))
        return -EPERM;
    return 0;
}

static bool begins(const char *name, const char *with)
{
    return !strncmp(name, with, strlen(with));
}

/*
 * 0 or -EPERM: whether the guest may set or remove the attribute.  File capabilities are what set-uid is; and what only
 * the host's root has, the guest's root has where it is the same.
 */
int may_set_xattr(const struct tables *t, const char *name)
{
    if (!strcmp(name, "security.capability") && (t->policy.no_setuid || !t->root_is_root))
        return -EPERM;
    if (!t->root_is_root && (begins(name, XATTR_TRUSTED_PREFIX) || begins(name, XATTR_SECURITY_PREFIX)))
        return -EPERM;
    return 0;
}

/* As the kernel says it to who is not root. */
int may_get_xattr(const struct tables *t, const char *name)
{
    return !t->root_is_root && begins(name, XATTR_TRUSTED_PREFIX) ? -ENODATA : 0;
}

static bool is_acl(const struct tables *t, const char *name)
{
    return t->maps_ids && begins(name, "system.posix_acl_");
}

/* Puts the other side's ids into the entries of an ACL.  Returns 0, or -EINVAL for one that has none on the host. */
static int map_acl(const struct tables *t, unsigned char *acl, size_t size, bool in)
{
    uint32_t version;

    if (size < ACL_HEADER)
        return 0;                    /* the kernel says what it is */
    memcpy(&version, acl, sizeof version);
    if (version != ACL_VERSION || (size - ACL_HEADER) % ACL_ENTRY)
        return 0;
    for (unsigned char *entry = acl + ACL_HEADER; entry < acl + size; entry += ACL_ENTRY) {
        const uint32_t tag = entry[0] | (uint32_t)entry[1] << 8;
        const struct id_map *map = tag == ACL_USER ? &t->policy.uids : &t->policy.gids;
        uint32_t id;

        if (tag != ACL_USER && tag != ACL_GROUP)
            continue;
        memcpy(&id, entry + 4, sizeof id);
        if (in) {
            id = id_in(map, id);
            if (id == NO_ID)
                return -EINVAL;
        } else {
            id_out(map, id, &id);
        }
        memcpy(entry + 4, &id, sizeof id);
    }
    return 0;
}

/* A value as it is on the host, in `*copy`, to be freed, or NULL where it is the same.  Returns 0 or -errno. */
int xattr_in(const struct tables *t, const char *name, const char *value, size_t size, char **copy)
{
    int error;

    *copy = NULL;
    if (!is_acl(t, name) || !size)
        return 0;
    *copy = malloc(size);
    if (!*copy)
        return -ENOMEM;
    memcpy(*copy, value, size);
    error = map_acl(t, (unsigned char *)*copy, size, true);
    if (error) {
        free(*copy);
        *copy = NULL;
    }
    return error;
}

/* The same value as the guest is to see it. */
void xattr_out(const struct tables *t, const char *name, char *value, size_t size)
{
    if (is_acl(t, name))
        map_acl(t, (unsigned char *)value, size, false);
}
