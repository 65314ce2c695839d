/* What the host allows a guest beyond what its session can do: whose ids stand for whose, and what it may not leave. */
#ifndef FUSEPIPE_POLICY_H
#define FUSEPIPE_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NO_ID UINT32_MAX             /* to chown(2) and setresuid(2) it means "as it is" */
#define NOBODY 65534u                /* how an id is shown that the guest has none for: as the kernel's overflow id */

struct id_extent { uint32_t guest, host, count; };

/* Ids of one kind, between guest and host.  Without extents every id stands for itself. */
struct id_map {
    const struct id_extent *extents; /* neither their guest ids nor their host ids overlap */
    uint32_t count;
    bool squash_root;                /* the guest's 0 is the host's NOBODY, and nobody is what 0 stands for on the host */
    bool squash_all;                 /* each is `all` */
    uint32_t all;
};

struct policy {
    bool no_setuid, no_devices;
    struct id_map uids, gids;
};

/* The host's id, or NO_ID where the guest's has none. */
uint32_t id_in(const struct id_map *map, uint32_t guest);
/* The guest's id for one of the host; false where there is none, and then it is NOBODY. */
bool id_out(const struct id_map *map, uint32_t host, uint32_t *guest);

#endif
