/* Acting as the caller, for the time of one system call and one thread. */
#ifndef FUSEPIPE_IDENTITY_H
#define FUSEPIPE_IDENTITY_H

#include "operations.h"

struct acting { bool uid, gid, groups, umask; mode_t old_umask; };   /* what act_as changed */
int act_as(const struct tables *t, const struct identity *identity, bool with_umask, struct acting *acting);
void act_as_server(const struct tables *t, const struct acting *acting);

struct capability_sets { uint32_t effective[2], permitted[2], inheritable[2]; };
struct killing { bool capability, group; struct capability_sets saved; };
int begin_killing(const struct tables *t, int fd, struct killing *killing);
void end_killing(const struct tables *t, const struct killing *killing);

#endif
