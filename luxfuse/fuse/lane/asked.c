/* What requests ask for that Python is about to be called for, taken out of their bytes; nothing here calls Python. */
#include "lane.h"

#include <linux/fuse.h>
#include <string.h>
#include <time.h>

/* A handler finds out which request it serves by `current`: pyfuse3 takes a request and runs its handler up to the first
 * wait without anything in between. */
uint64_t current_unique, answering_unique;
uint32_t current_pid, current_uid, current_xattr_flags;
int64_t current_at_ns;

/* pyfuse3 would look itself whether an attribute is there that is to be made or replaced, before it runs the handler, which
 * could then not tell that it was made by a daemon before: so it is not told. */
void note_current(const struct request *r)
{
	const struct fuse_in_header *in = r->size < sizeof *in ? NULL : r->data;
	current_unique = in ? in->unique : 0;
	current_pid = in ? in->pid : 0;
	current_uid = in ? in->uid : 0;
	current_at_ns = r->at_ns;
	current_xattr_flags = 0;
	if (in && in->opcode == FUSE_SETXATTR && r->size >= sizeof *in + FUSE_COMPAT_SETXATTR_IN_SIZE) {
		struct fuse_setxattr_in *set = (struct fuse_setxattr_in *)((char *)r->data + sizeof *in);
		current_xattr_flags = set->flags;
		set->flags = 0;
	}
}

/* ------------------------------------------------------------------ requests that may be answered promptly */

/* The name at the end of a request, NULL: there is none. */
static const char *name_at(const struct request *r, size_t start)
{
	const char *data = r->data;
	return r->size > start && !data[r->size - 1] ? data + start : NULL;
}

#define SET_PLAIN (FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW)
#define SET_SILENT (FATTR_FH | FATTR_LOCKOWNER) /* nothing is changed by these */

/* A time that is set, in nanoseconds; -1: it is not, or is before 1970, for which there is no call. */
static int64_t time_set(uint32_t valid, uint32_t set, uint32_t now, uint64_t seconds, uint32_t nanoseconds)
{
	struct timespec t = { (time_t)seconds, nanoseconds };
	if (!(valid & set))
		return -1;
	if (valid & now)
		clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Permissions, owner and times are set; -1 for what is not. What else there is in a request is for the handler. */
static bool ask_setattr(const struct fuse_setattr_in *set, struct asked *out)
{
	const uint32_t valid = set->valid;
	const bool late = set->atime > INT32_MAX || set->mtime > INT32_MAX; /* before 1970, or after 2038 */
	if (valid & ~(SET_PLAIN | SET_SILENT) || !(valid & SET_PLAIN) || late)
		return false;
	out->set_mode = valid & FATTR_MODE ? (int64_t)(set->mode & 07777) : -1;
	out->set_uid = valid & FATTR_UID ? (int64_t)set->uid : -1;
	out->set_gid = valid & FATTR_GID ? (int64_t)set->gid : -1;
	out->set_atime_ns = time_set(valid, FATTR_ATIME, FATTR_ATIME_NOW, set->atime, set->atimensec);
	out->set_mtime_ns = time_set(valid, FATTR_MTIME, FATTR_MTIME_NOW, set->mtime, set->mtimensec);
	return true;
}

bool asked_of(const struct request *r, struct asked *out)
{
	const struct fuse_in_header *in = r->data;
	if (r->size < sizeof *in)
		return false;
	const void *arg = in + 1;
	const size_t rest = r->size - sizeof *in;
	*out = (struct asked){ .unique = in->unique, .inode = in->nodeid, .uid = in->uid, .gid = in->gid, .pid = in->pid };
	switch (in->opcode) {
	case FUSE_LOOKUP:
		out->function = PROMPT_LOOKUP;
		return (out->name = name_at(r, sizeof *in)) != NULL;
	case FUSE_GETATTR:
		out->function = PROMPT_GETATTR;
		return true;
	case FUSE_SETATTR:
		out->function = PROMPT_SETATTR;
		return rest >= sizeof(struct fuse_setattr_in) && ask_setattr(arg, out);
	case FUSE_CREATE: {
		const struct fuse_create_in *create = arg;
		out->function = PROMPT_CREATE;
		if (!(out->name = name_at(r, sizeof *in + sizeof *create)))
			return false;
		out->mode = create->mode, out->flags = create->flags, out->umask = create->umask;
		return true;
	}
	case FUSE_FLUSH:
		out->function = PROMPT_FLUSH;
		if (rest < sizeof(struct fuse_flush_in))
			return false;
		out->fh = ((const struct fuse_flush_in *)arg)->fh;
		return true;
	case FUSE_RELEASE:
		out->function = PROMPT_RELEASE;
		if (rest < sizeof(struct fuse_release_in))
			return false;
		out->fh = ((const struct fuse_release_in *)arg)->fh;
		return true;
	case FUSE_READDIRPLUS: {
		const struct fuse_read_in *read = arg;
		out->function = PROMPT_READDIR;
		if (rest < sizeof *read)
			return false;
		out->fh = read->fh, out->offset = read->offset, out->size = read->size;
		return true;
	}
	default:
		return false;
	}
}
