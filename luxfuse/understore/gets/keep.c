/* The checksums of a body, one a page, and its cache file: opened, written, looked at and closed, without a lock between.
 *
 * This is `luxfuse.cache.disk._store_whole` for threads that do not hold the interpreter lock: an object that is written in
 * one piece takes the place of whatever was in its file, so there is nothing to be renamed, and nothing is synced, as a file
 * counts only when the index has its pages, and is checked after an unclean end.
 *
 * A file that could not be written stays: it is the caller's to remove, who knows whether the batch was given up meanwhile.
 * Then the file may be another attempt's by now, which has put the same bytes there and recorded them.
 */
#include "gets.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void keep_checksums(struct kept *k, const char *body, size_t size)
{
	*k = (struct kept){ .fd = -1 };
	for (size_t at = 0; at < size; at += PAGE_BYTES)
		k->sums[k->pages++] = XXH3_64bits(body + at, size - at < PAGE_BYTES ? size - at : PAGE_BYTES);
}

static int open_file(const char *path)
{
	const int flags = O_RDWR | O_CREAT | O_CLOEXEC;
	int fd = open(path, flags, 0600);
	const char *slash = strrchr(path, '/');
	if (fd >= 0 || errno != ENOENT || !slash || (size_t)(slash - path) >= PATH_MAX)
		return fd;
	char directory[PATH_MAX];
	memcpy(directory, path, (size_t)(slash - path));
	directory[slash - path] = 0;
	if (mkdir(directory, 0700) < 0 && errno != EEXIST)
		return -1;
	return open(path, flags, 0600);
}

static int write_all(int fd, const char *body, size_t size)
{
	size_t done = 0;
	while (done < size) {
		const ssize_t n = pwrite(fd, body + done, size - done, (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? errno : ENOSPC;
		done += (size_t)n;
	}
	return 0;
}

static int fill(int fd, const char *body, size_t size, struct stat *st)
{
	const int error = write_all(fd, body, size);
	if (error)
		return error;
	if (fstat(fd, st) < 0)
		return errno;
	if ((size_t)st->st_size == size)
		return 0;
	return ftruncate(fd, (off_t)size) < 0 || fstat(fd, st) < 0 ? errno : 0;
}

/* The same file for readers only, as the kernel is given it; -1: there is none, which is no failure. */
static int reopen(int fd)
{
	char name[32];
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	return open(name, O_RDONLY | O_CLOEXEC);
}

void keep_file(struct kept *k, const char *path, const char *body, size_t size, bool stay_open)
{
	const int fd = open_file(path);
	if (fd < 0) {
		k->error = errno;
		return;
	}
	k->opened = true;
	struct stat st;
	k->error = fill(fd, body, size, &st);
	if (k->error) {
		close(fd);
		return;
	}
	k->stamp_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec;
	k->number = st.st_ino;
	if (stay_open)
		k->fd = reopen(fd);
	close(fd);
}
