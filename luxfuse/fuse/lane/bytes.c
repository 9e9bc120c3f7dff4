/* READ and WRITE of registered files, without the interpreter lock.
 *
 * A READ is tried without waiting for the disk (RWF_NOWAIT); what the page cache does not have is read by a lane that may
 * block (see `may_block`): there is always one that does not, or the request goes to Python, which has deadlines. What
 * the file system cannot do, a failing disk included, goes to Python, too: it knows other places for the same bytes.
 *
 * A WRITE that could take more room on disk than is granted goes to Python, which waits for room; so does one that the file
 * system does not take in whole, and all of it is written again. A short count is no answer, as the kernel does not look at
 * it when it writes back mapped pages.
 *
 * What was written in sequence is sent to the disk while more comes, RUN_BYTES at a time and after the WRITE is answered:
 * it has to be there at the close, and fsync then waits for little. What is written at random is not, as it may be written
 * again before.
 *
 * These need no room: the program that has changed them is gone on, and a page that is refused is lost, also where it takes
 * no more room than before. They are counted a moment late, as in passthrough.
 */
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define BLOCK_BYTES 4096u

/* Read all of a range that the file has; returns bytes, or a negative errno. */
static ssize_t read_waiting(int fd, char *into, size_t size, off_t offset)
{
	size_t done = 0;
	while (done < size) {
		const ssize_t n = pread(fd, into + done, size - done, offset + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

static bool ends_at(int fd, off_t end)
{
	struct stat st;
	return fstat(fd, &st) == 0 && st.st_size <= end;
}

/* As `read_waiting`; -EAGAIN: it would have to wait, and may not. */
static ssize_t read_file(int fd, char *into, size_t size, off_t offset)
{
	const struct iovec iov = { into, size };
	ssize_t n = preadv2(fd, &iov, 1, offset, RWF_NOWAIT);
	if (n == (ssize_t)size || (n >= 0 && ends_at(fd, offset + n)))
		return n;
	if (!may_block())
		return -EAGAIN;
	if (n < 0)
		n = 0;
	const ssize_t rest = read_waiting(fd, into + n, size - (size_t)n, offset + n);
	has_blocked();
	return rest < 0 ? rest : n + rest;
}

bool answer_read(struct lane *lane, const void *request, size_t size)
{
	const struct fuse_in_header *in = request;
	const struct fuse_read_in *arg = (const void *)(in + 1);
	if (size < sizeof *in + sizeof *arg || arg->size > MOST_BYTES || arg->offset > INT64_MAX - MOST_BYTES)
		return false;
	if (!lane->reply && !(lane->reply = malloc(MOST_BYTES)))
		return false;
	struct entry *e = table_use_read(in->nodeid, is_fast(arg->fh), arg->offset, arg->size);
	if (!e)
		return false;
	LANE_PAUSE();
	const ssize_t n = read_file(entry_fd(e, false), lane->reply, arg->size, (off_t)arg->offset);
	LANE_PAUSE();
	if (n > 0)
		table_was_read(e, (uint64_t)n);
	const bool cut = n >= 0 && entry_is_cut(e, arg->offset, arg->size, (uint64_t)n);
	const bool live = table_unuse(e, false, 0);
	if (n < 0 || cut || !(live || is_fast(arg->fh)))
		return false;
	/* Counted before the reader goes on, so that the counters are never behind what was seen. */
	count_up(&lane->reads, 1);
	count_up(&lane->read_bytes, (unsigned long long)n);
	lane->seen.bytes = (uint64_t)n;
	send_reply(in->unique, 0, lane->reply, (size_t)n);
	return true;
}

/* The most that a WRITE takes on disk: all blocks that it touches. */
static uint64_t room_of(uint64_t offset, uint64_t size)
{
	const uint64_t first = offset / BLOCK_BYTES, end = (offset + size + BLOCK_BYTES - 1) / BLOCK_BYTES;
	return (end > first ? end - first : 1) * BLOCK_BYTES;
}

/* Whether all was written. */
static bool write_file(int fd, const char *from, size_t size, off_t offset)
{
	size_t done = 0;
	while (done < size) {
		const ssize_t n = pwrite(fd, from + done, size - done, offset + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

/* Have the file system begin to write a range to the disk. The WRITE has been answered: what fails here, fsync reports. */
static void write_out(uint64_t ino, uint64_t offset, uint64_t size)
{
	if (!may_block())
		return;
	struct entry *e = table_use(ino, true, false, 0);
	if (e) {
		sync_file_range(entry_fd(e, false), (off_t)offset, (off_t)size, SYNC_FILE_RANGE_WRITE);
		table_unuse(e, false, 0);
	}
	has_blocked();
}

bool answer_write(struct lane *lane, const void *request, size_t size)
{
	const struct fuse_in_header *in = request;
	const struct fuse_write_in *arg = (const void *)(in + 1);
	const char *data = (const char *)(arg + 1);
	if (size < sizeof *in + sizeof *arg || size - sizeof *in - sizeof *arg < arg->size)
		return false;
	if (!is_fast(arg->fh) || !(arg->fh & MARK_WRITE) || arg->offset > INT64_MAX - MOST_BYTES || !may_block())
		return false;
	const uint64_t room = arg->write_flags & FUSE_WRITE_CACHE ? 0 : room_of(arg->offset, arg->size);
	struct entry *e = table_use(in->nodeid, true, true, room);
	if (!e) {
		has_blocked();
		return false;
	}
	const bool whole = write_file(entry_fd(e, true), data, arg->size, (off_t)arg->offset);
	const uint64_t run = whole ? table_wrote(e, arg->offset, arg->size) : 0;
	table_unuse(e, true, room);
	has_blocked();
	if (!whole)
		return false;
	const struct fuse_write_out out = { .size = arg->size };
	count_up(&lane->writes, 1);
	send_reply(in->unique, 0, &out, sizeof out);
	if (run)
		write_out(in->nodeid, arg->offset + arg->size - run, run);
	return true;
}
