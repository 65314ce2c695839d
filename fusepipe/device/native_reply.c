#include "native_reply.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"
#include "filter.h"
#include "given_back.h"
#include "native_contents.h"
#include "native_entry.h"
#include "native_known.h"
#include "native_messages.h"
#include "native_policy.h"
#include "native_slots.h"
#include "native_space.h"

/* The kernel takes no errno from here on, and leaves the program waiting (fs/fuse/dev.c, fuse_dev_do_write). */
#define ERRNO_LIMIT 512

bool native_flush_matters;

static const char malformed[] = "a reply is malformed";

/* What is known of a reply that has come for a request. */
struct reply {
	struct wire_reader reader;
	struct wire_head head;
	const unsigned char *payload;
	size_t payload_size;
	const struct native_request *request;
	bool late; /* nobody waits for it any more: what it brings is given back */
};

/* An answer of a few kinds, one after the other, as the kernel wants them. */
struct answer {
	const void *body;
	size_t size;
	struct fuse_entry_out entry;
	struct fuse_open_out open; /* follows the entry, for CREATE */
	union {
		struct fuse_attr_out attr;
		struct fuse_write_out write;
		struct fuse_getxattr_out xattr;
	};
	struct fuse_attr_out changed[2]; /* of directories */
	uint32_t changed_count;
	uint64_t end; /* where a page of a directory ends, if nothing follows it; else 0 */
	void *memory; /* to be freed */
	int error;    /* instead of the body */
};

_Static_assert(offsetof(struct answer, open) == offsetof(struct answer, entry) + sizeof(struct fuse_entry_out),
	       "CREATE is answered with both");

static void give_back_node(uint64_t node)
{
	given_back_forget(node, 1);
}

static uint32_t open_flags(uint32_t flags)
{
	if (!(flags & OPENED_NOFLUSH))
		__atomic_store_n(&native_flush_matters, true, __ATOMIC_RELEASE);
	return (flags & OPENED_KEEP ? FOPEN_KEEP_CACHE : 0) |
	       (flags & OPENED_NOFLUSH && native_policy.no_flush ? KERNEL_FOPEN_NOFLUSH : 0) |
	       (native_policy.direct && filter_agreed_flags() & KERNEL_DIRECT_IO_ALLOW_MMAP ? FOPEN_DIRECT_IO : 0);
}

/* ---- one function for each form of reply; false: malformed ---- */

static bool take_entry(struct reply *reply, struct answer *answer)
{
	struct wire_lookup_reply message; /* those of what makes a name are the same */

	if (!wire_get_lookup_reply(&reply->reader, reply->head.fields, &message) || !message.entry.node)
		return false;
	if (reply->late)
		give_back_node(message.entry.node);
	contents_described(message.entry.node);
	native_entry_out(&answer->entry, &message.entry);
	answer->body = &answer->entry;
	answer->size = sizeof answer->entry;
	return true;
}

/* The next directory that the request has changed is like that since. */
static void add_changed(struct answer *answer, const struct wire_attr *attr)
{
	if (attr->mode)
		native_attr_out(&answer->changed[answer->changed_count++], attr);
}

static bool take_create(struct reply *reply, struct answer *answer)
{
	struct wire_create_reply message;

	if (!wire_get_create_reply(&reply->reader, reply->head.fields, &message) || !message.entry.node)
		return false;
	if (reply->late) {
		give_back_node(message.entry.node);
		given_back_untaken(message.handle);
	} else {
		if (message.flags & OPENED_NEW)
			known_add_new(reply->request, message.entry.node);
		if (message.attached)
			add_changed(answer, &message.parent);
	}
	contents_described(message.entry.node);
	native_entry_out(&answer->entry, &message.entry);
	answer->open = (struct fuse_open_out){ .fh = message.handle, .open_flags = open_flags(message.flags) };
	answer->body = &answer->entry;
	answer->size = sizeof answer->entry + sizeof answer->open;
	return true;
}

static bool take_open(struct reply *reply, struct answer *answer)
{
	struct wire_open_reply message;

	if (!wire_get_open_reply(&reply->reader, reply->head.fields, &message))
		return false;
	if (reply->late)
		given_back_untaken(message.handle);
	else
		contents_keep(reply->request, message.handle, reply->payload, reply->payload_size);
	answer->open = (struct fuse_open_out){ .fh = message.handle, .open_flags = open_flags(message.flags) };
	answer->body = &answer->open;
	answer->size = sizeof answer->open;
	return true;
}

static bool take_opendir(struct reply *reply, struct answer *answer)
{
	struct wire_opendir_reply message;

	if (!wire_get_opendir_reply(&reply->reader, reply->head.fields, &message))
		return false;
	if (reply->late)
		given_back_untaken(message.handle);
	answer->open = (struct fuse_open_out){ .fh = message.handle };
	if (native_policy.keep)
		answer->open.open_flags = FOPEN_CACHE_DIR | (message.flags & OPENED_KEEP ? FOPEN_KEEP_CACHE : 0);
	answer->body = &answer->open;
	answer->size = sizeof answer->open;
	return true;
}

static bool take_target(struct reply *reply, struct answer *answer)
{
	struct wire_readlink_reply message;

	if (!wire_get_readlink_reply(&reply->reader, reply->head.fields, &message))
		return false;
	answer->body = message.target.data;
	answer->size = message.target.size;
	return true;
}

static bool take_attr(struct reply *reply, struct answer *answer)
{
	struct wire_getattr_reply message; /* SETATTR's is the same */

	if (!wire_get_getattr_reply(&reply->reader, reply->head.fields, &message))
		return false;
	native_attr_out(&answer->attr, &message.attr);
	answer->body = &answer->attr;
	answer->size = sizeof answer->attr;
	return true;
}

static bool take_write(struct reply *reply, struct answer *answer)
{
	struct wire_write_reply message;

	if (!wire_get_write_reply(&reply->reader, reply->head.fields, &message) ||
	    message.size > reply->request->payload_size)
		return false;
	answer->write = (struct fuse_write_out){ .size = message.size };
	answer->body = &answer->write;
	answer->size = sizeof answer->write;
	return true;
}

/* The value, where there is room for it, or how long it is, where nothing but that was asked for. */
static bool take_xattr(struct reply *reply, struct answer *answer)
{
	const struct fuse_getxattr_in *asked = (const void *)(&reply->request->header + 1);
	struct wire_getxattr_reply message;

	if (!wire_get_getxattr_reply(&reply->reader, reply->head.fields, &message))
		return false;
	if (!asked->size) {
		answer->xattr = (struct fuse_getxattr_out){ .size = message.value.size };
		answer->body = &answer->xattr;
		answer->size = sizeof answer->xattr;
	} else if (message.value.size > asked->size) {
		answer->error = ERANGE;
	} else {
		answer->body = message.value.data;
		answer->size = message.value.size;
	}
	return true;
}

static bool take_page(struct reply *reply, struct answer *answer)
{
	const size_t room = reply->late ? 0 : reply->request->reply_size;
	struct wire_readdir_reply message;
	uint64_t next;
	ssize_t size;

	if (!wire_get_readdir_reply(&reply->reader, reply->head.fields, &message))
		return false;
	answer->memory = malloc(room + 1);
	if (!answer->memory)
		answer->error = ENOMEM;
	size = native_page(answer->memory, answer->memory ? room : 0, reply->payload, reply->payload_size, give_back_node,
			   &next);
	answer->end = message.end ? next : 0;
	answer->body = answer->memory;
	answer->size = size > 0 ? (size_t)size : 0;
	return size >= 0;
}

/* UNLINK and RMDIR; a reply of the one is one of the other, too. */
static bool take_removed(struct reply *reply, struct answer *answer)
{
	struct wire_unlink_reply message;

	if (!wire_get_unlink_reply(&reply->reader, reply->head.fields, &message))
		return false;
	if (message.attached)
		add_changed(answer, &message.parent);
	return true;
}

static bool take_renamed(struct reply *reply, struct answer *answer)
{
	struct wire_rename_reply message;

	if (!wire_get_rename_reply(&reply->reader, reply->head.fields, &message))
		return false;
	if (message.attached)
		add_changed(answer, &message.parent);
	if (message.attached > 1)
		add_changed(answer, &message.new_parent);
	return true;
}

static bool take(struct reply *reply, struct answer *answer)
{
	switch (reply->request->header.opcode) {
	case FUSE_LOOKUP:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
		return take_entry(reply, answer);
	case FUSE_CREATE:
		return take_create(reply, answer);
	case FUSE_OPEN:
		return take_open(reply, answer);
	case FUSE_OPENDIR:
		return take_opendir(reply, answer);
	case FUSE_READLINK:
		return take_target(reply, answer);
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		return take_attr(reply, answer);
	case FUSE_WRITE:
		return take_write(reply, answer);
	case FUSE_GETXATTR:
		return take_xattr(reply, answer);
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		return take_removed(reply, answer);
	case FUSE_RENAME:
	case FUSE_RENAME2:
		return take_renamed(reply, answer);
	case FUSE_READDIRPLUS:
		return take_page(reply, answer);
	case FUSE_READ:
		answer->body = reply->payload;
		answer->size = reply->payload_size;
		break;
	}
	return wire_finish(&reply->reader, reply->head.fields);
}

/* ---- the answer ---- */

/* What an unexpected error becomes: any but EINTR makes the kernel detach what is mounted below a name (fs/namei.c). */
static int unexpected(const struct native_request *request)
{
	return request->header.opcode == FUSE_LOOKUP ? EINTR : EIO;
}

/*
 * Where the volume knows no ACLs there are none: the kernel asks before it checks permissions, and would refuse everything
 * (fs/fuse/acl.c).
 */
static bool asks_for_acl(const struct native_request *request)
{
	const char *name = (const char *)(&request->header + 1) + sizeof(struct fuse_getxattr_in);

	return request->header.opcode == FUSE_GETXATTR &&
	       (!strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default"));
}

static void answer_error(const struct native_request *request, int error)
{
	struct fuse_entry_out none;

	if (error == EOPNOTSUPP && asks_for_acl(request))
		error = ENODATA;
	if (error == ENOENT && request->header.opcode == FUSE_LOOKUP && native_policy.negative) {
		native_no_entry(&none);
		clones_answer(request->clone, request->header.unique, 0, &none, sizeof none);
		return;
	}
	if (error >= ERRNO_LIMIT)
		error = unexpected(request);
	clones_answer(request->clone, request->header.unique, error, NULL, 0);
}

static const char *answer_reply(struct reply *reply)
{
	const struct native_request *request = reply->request;
	struct answer answer = { 0 };
	const bool understood = take(reply, &answer);
	int result = 0;

	known_changed(request, answer.changed, understood && !reply->late ? answer.changed_count : 0,
		      understood && !reply->late ? answer.end : 0);
	if (!reply->late && (!understood || answer.error))
		answer_error(request, answer.error ? answer.error : unexpected(request));
	else if (!reply->late)
		result = clones_answer(request->clone, request->header.unique, 0, answer.body, answer.size);
	if (result && result != -ENOENT && result != -ENODEV) /* else nobody waits any more; but else no program may wait for good */
		answer_error(request, unexpected(request));
	free(answer.memory);
	return understood ? NULL : malformed;
}

/* A frame outside the slots: the answer to INTERRUPT says nothing but that it came.  The opening, 1, was answered before. */
static const char *outside_slots(const struct reply *reply, uint64_t asked)
{
	if (!reply->head.has_seq)
		return "the server closed the connection";
	if (reply->head.third || reply->head.seq < 2 || reply->head.seq > asked || reply->payload_size)
		return "the server sent what it may not send now";
	return NULL;
}

const char *native_reply(const unsigned char *header, size_t header_size, const unsigned char *payload,
			 size_t payload_size, uint64_t asked)
{
	struct reply reply = {
		.reader = { header, header + header_size, false },
		.payload = payload,
		.payload_size = payload_size,
	};
	struct native_slot *slot;
	const char *wrong = NULL;
	bool violation, failed;

	reply.head = wire_take_head(&reply.reader);
	if (reply.reader.bad)
		return malformed;
	if (!reply.head.has_slot)
		return outside_slots(&reply, asked);
	if (!reply.head.has_seq || reply.head.third > WIRE_ERRNO_MAX)
		return malformed;
	slot = slots_reply_came(reply.head.slot, reply.head.seq, &reply.late, &violation);
	if (violation)
		return "a reply to a request that was never sent";
	if (!slot)
		return NULL;
	reply.request = slot->request;
	contents_replied(reply.request);
	failed = reply.head.third != 0;
	if (payload_size > (failed ? 0 : reply.request->reply_size) || (failed && !wire_finish(&reply.reader, 0))) {
		answer_error(reply.request, unexpected(reply.request));
		request_put(slots_done(slot, reply.late));
		return malformed;
	}
	if (failed && !reply.late && native_no_space(slot->request, (int)reply.head.third)) {
		native_wait_for_space(slots_done(slot, false), (int)reply.head.third);
		return NULL;
	}
	if (!failed)
		wrong = answer_reply(&reply);
	else if (!reply.late)
		answer_error(reply.request, (int)reply.head.third);
	request_put(slots_done(slot, reply.late));
	return wrong;
}
