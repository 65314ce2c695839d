/* tsc: prints how many kHz this machine's time stamp counter has, measured against CLOCK_MONOTONIC over 0.2 s.
 *
 * QEMU's emulation hands the counter through, and a guest that calibrates it by its emulated timers gets it wrong where
 * the host has other things to do: its clock then runs several times too fast.
 * Build: cc -O2 tsc.c -o tsc
 */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct moment {
	unsigned long long ticks;
	double seconds;
};

/* Of many attempts the one that was interrupted least, so that both values are of the same moment. */
static struct moment now(void)
{
	struct moment best = {0, 0};
	unsigned long long shortest = ~0ULL;

	for (int i = 0; i < 1000; i++) {
		struct timespec time;
		unsigned long long before = __rdtsc(), after;

		clock_gettime(CLOCK_MONOTONIC, &time);
		after = __rdtsc();
		if (after - before < shortest) {
			shortest = after - before;
			best.ticks = before + shortest / 2;
			best.seconds = (double)time.tv_sec + (double)time.tv_nsec / 1e9;
		}
	}
	return best;
}

int main(void)
{
	struct timespec pause = {0, 200000000};
	struct moment first = now(), last;

	nanosleep(&pause, NULL);
	last = now();
	printf("%.0f\n", (double)(last.ticks - first.ticks) / (last.seconds - first.seconds) / 1000);
	return 0;
}
