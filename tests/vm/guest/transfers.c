/* transfers: how long one request of a mounted filesystem takes, and how many bytes a second reads and writes move.
 *
 *   transfers MODE THREADS COUNT SIZE FILE
 *
 * MODE    what the threads do COUNT times, all together, on FILE, each through a descriptor of its own
 *   stat   statx with AT_STATX_FORCE_SYNC: a FUSE filesystem asks its server for attributes each time (GETATTR), which
 *          is the smallest round trip there is
 *   read   pread of SIZE bytes at the next place of the file, from its beginning again after its end
 *   write  pwrite likewise
 * read and write use O_DIRECT, so each call is one request of SIZE bytes (up to what the filesystem takes at once) and no
 * cache answers it.  FILE must have at least SIZE bytes.
 *
 * Prints one JSON line: mode, threads, count, size, seconds.  Exit 1 at the first error.
 * Build: cc -O2 -static -pthread transfers.c -o transfers
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ALIGNMENT 4096

static const char *mode, *path;
static int threads;
static long count, places;
static size_t size;
static atomic_long next_one;
static pthread_barrier_t ready, start_line;

static void die(const char *what)
{
	fprintf(stderr, "transfers: %s %s: %s\n", what, path, strerror(errno));
	exit(1);
}

static void one(int fd, char *buffer, off_t offset)
{
	struct statx found;
	ssize_t n;

	if (*mode == 's') {
		if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &found))
			die("statx");
		return;
	}
	n = *mode == 'r' ? pread(fd, buffer, size, offset) : pwrite(fd, buffer, size, offset);
	if (n >= 0 && (size_t)n != size)
		errno = EIO;
	if ((size_t)n != size)
		die(mode);
}

static void *work(void *unused)
{
	void *buffer;
	int fd;
	long number;

	(void)unused;
	if ((errno = posix_memalign(&buffer, ALIGNMENT, size ? size : ALIGNMENT)))
		die("memory for");
	memset(buffer, 'x', size);
	fd = open(path, *mode == 's' ? O_RDONLY : O_RDWR | O_DIRECT);
	if (fd < 0)
		die("open");
	pthread_barrier_wait(&ready);
	pthread_barrier_wait(&start_line);
	while ((number = atomic_fetch_add(&next_one, 1)) < count)
		one(fd, buffer, (off_t)(number % places) * (off_t)size);
	close(fd);
	free(buffer);
	return NULL;
}

int main(int argc, char **argv)
{
	struct timespec begin, end;
	struct stat found;
	pthread_t *all;
	int known;

	known = argc == 6 && (!strcmp(argv[1], "stat") || !strcmp(argv[1], "read") || !strcmp(argv[1], "write"));
	if (!known || (threads = atoi(argv[2])) < 1 || (count = atol(argv[3])) < 1) {
		fprintf(stderr, "usage: transfers stat|read|write THREADS COUNT SIZE FILE\n");
		return 2;
	}
	mode = argv[1];
	size = strtoul(argv[4], NULL, 10);
	path = argv[5];
	if (stat(path, &found))
		die("stat");
	places = size ? found.st_size / (off_t)size : 1;
	if (places < 1) {
		fprintf(stderr, "transfers: %s is smaller than %zu bytes\n", path, size);
		return 1;
	}
	all = calloc((size_t)threads, sizeof *all);
	pthread_barrier_init(&ready, NULL, (unsigned)threads + 1);
	pthread_barrier_init(&start_line, NULL, (unsigned)threads + 1);
	for (int i = 0; i < threads; i++)
		if ((errno = pthread_create(&all[i], NULL, work, NULL)))
			die("thread for");
	pthread_barrier_wait(&ready);
	clock_gettime(CLOCK_MONOTONIC, &begin); /* before they can begin, since they may end before this thread runs on */
	pthread_barrier_wait(&start_line);
	for (int i = 0; i < threads; i++)
		pthread_join(all[i], NULL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("{\"mode\": \"%s\", \"threads\": %d, \"count\": %ld, \"size\": %zu, \"seconds\": %.6f}\n", mode, threads, count,
	       size, (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9);
	free(all);
	return 0;
}
