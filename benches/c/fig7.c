/*
 * The work of Figures 7 and 8 in C, to see that the native series of `vmm bench fig7` don't come from a slow harness.
 *
 *   fig7 mmap|malloc SEED OPS WARMUP MIN MAX RING
 *
 * Written from the description of the work (benches/work), not from its code's structure: a ring of blocks; free the
 * oldest, allocate one of the next random size, write one byte to each of its pages, write them again. Bytes are read
 * back before a block is freed. Sizes are log-uniform: each power-of-two bin is equally likely. The generator is
 * wyrand (Wang Yi, final version 4.2), numbers in a range by Lemire's multiplication with rejection, as the crate
 * fastrand has them. `mmap` is a mapping of its own for each block, `malloc` the C library's.
 *
 * Prints a line for each bin: BIN OPS PAGES ALLOC TRAVERSE RETRAVERSE FREE, sums of cycles less the null loop's, then
 * `check SUM`, of all sizes in their order. Exit code 1: a byte was wrong, or there was no memory.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

enum { PAGE = 4096, BINS = 19, NULL_OPS = 256, NULL_ROUNDS = 16 };

static uint64_t random_state;

static uint64_t random_64(void)
{
	uint64_t s = random_state += 0x2d358dccaa6c78a5u;
	unsigned __int128 t = (unsigned __int128)s * (s ^ 0x8bb84b93962eacc9u);
	return (uint64_t)t ^ (uint64_t)(t >> 64);
}

/* 0 <= result < limit */
static uint64_t random_below(uint64_t limit)
{
	unsigned __int128 wide = (unsigned __int128)random_64() * limit;
	if ((uint64_t)wide < limit) {
		uint64_t reject = -limit % limit;
		while ((uint64_t)wide < reject)
			wide = (unsigned __int128)random_64() * limit;
	}
	return (uint64_t)(wide >> 64);
}

static unsigned bin_of(uint64_t bytes)
{
	unsigned bin = 0;
	while (bin < BINS - 1 && ((uint64_t)PAGE << bin) < bytes)
		bin++;
	return bin;
}

static uint64_t next_bytes(uint64_t min, uint64_t max)
{
	unsigned low = bin_of(min), high = bin_of(max);
	unsigned bin = low + (unsigned)random_below(high - low + 1);
	uint64_t first = bin == 0 ? 1 : ((uint64_t)PAGE << (bin - 1)) + 1;
	uint64_t last = (uint64_t)PAGE << bin;
	first = first < min ? min : first;
	last = last > max ? max : last;
	return first + random_below(last - first + 1);
}

static inline uint64_t now(void)
{
	_mm_lfence();
	uint64_t cycles = __rdtsc();
	_mm_lfence();
	return cycles;
}

static int by_malloc;

static void *get(uint64_t bytes)
{
	if (by_malloc)
		return malloc(bytes);
	void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return block == MAP_FAILED ? NULL : block;
}

static void put(void *block, uint64_t bytes)
{
	if (by_malloc)
		free(block);
	else
		munmap(block, bytes);
}

static uint64_t mix(uint64_t number)
{
	number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9u;
	number = (number ^ number >> 27) * 0x94d049bb133111ebu;
	return number ^ number >> 31;
}

struct block {
	volatile uint8_t *bytes;
	uint64_t size, pages, number;
	int counts;
};

static struct bin {
	uint64_t ops, pages, alloc, traverse, retraverse, release;
} bins[BINS];

/* Each block has bytes of its own: the upper eight bits of a number that each page adds to. */
static __attribute__((noinline)) uint64_t traverse(volatile uint8_t *bytes, uint64_t pages, uint64_t number)
{
	uint64_t first = mix((number + 1) * 0x9e3779b97f4a7c15u), step = (first << 32 | first >> 32) | 1;
	uint64_t start = now();
	for (uint64_t page = 0; page < pages; page++, first += step)
		bytes[page * PAGE] = (uint8_t)(first >> 56);
	return now() - start;
}

static uint64_t wrong;

static void read_back(const struct block *block)
{
	uint64_t first = mix((block->number + 1) * 0x9e3779b97f4a7c15u), step = (first << 32 | first >> 32) | 1;
	for (uint64_t page = 0; page < block->pages; page++, first += step)
		wrong += block->bytes[page * PAGE] != (uint8_t)(first >> 56);
}

static void release(struct block *block)
{
	if (!block->bytes)
		return;
	read_back(block);
	uint64_t start = now();
	put((void *)block->bytes, block->size);
	uint64_t cycles = now() - start;
	if (block->counts) {
		struct bin *bin = &bins[bin_of(block->size)];
		bin->ops++;
		bin->release += cycles;
	}
	block->bytes = NULL;
}

/* What the clock and an empty loop take, the cheapest of several times: of a call, of a traversal. */
static void null_loop(uint64_t *call, uint64_t *loop)
{
	static uint8_t nothing;
	*call = *loop = UINT64_MAX;
	for (int round = 0; round < NULL_ROUNDS; round++) {
		uint64_t calls = 0, loops = 0;
		for (uint64_t op = 0; op < NULL_OPS; op++) {
			uint64_t start = now();
			__asm__ volatile("" ::: "memory");
			calls += now() - start;
			loops += traverse(&nothing, 0, op);
		}
		*call = calls < *call ? calls : *call;
		*loop = loops < *loop ? loops : *loop;
	}
}

static uint64_t less(uint64_t sum, uint64_t null, uint64_t ops)
{
	uint64_t cost = null * ops / NULL_OPS;
	return sum > cost ? sum - cost : 0;
}

int main(int argc, char **argv)
{
	uint64_t numbers[6];
	if (argc != 8 || (strcmp(argv[1], "mmap") && strcmp(argv[1], "malloc"))) {
		fprintf(stderr, "usage: fig7 mmap|malloc SEED OPS WARMUP MIN MAX RING\n");
		return 2;
	}
	by_malloc = !strcmp(argv[1], "malloc");
	for (int at = 0; at < 6; at++)
		numbers[at] = strtoull(argv[at + 2], NULL, 10);
	uint64_t ops = numbers[1], warmup = numbers[2], min = numbers[3], max = numbers[4], ring = numbers[5];
	random_state = numbers[0];
	if (min < 1 || max < min || max > (uint64_t)PAGE << (BINS - 1) || ring < 1)
		return 2;
	struct block *blocks = calloc(ring, sizeof *blocks);
	if (!blocks)
		return 1;
	uint64_t call, loop, check = 0;
	null_loop(&call, &loop);
	/* As many more at the end as the ring has blocks: so those that count are freed like all others. */
	for (uint64_t number = 0; number < warmup + ops + ring; number++) {
		struct block *block = &blocks[number % ring];
		release(block);
		uint64_t size = next_bytes(min, max), pages = (size + PAGE - 1) / PAGE;
		check = check * 31 + size;
		uint64_t start = now();
		void *bytes = get(size);
		uint64_t cycles = now() - start;
		if (!bytes)
			return 1;
		*block = (struct block){ bytes, size, pages, number, number >= warmup && number < warmup + ops };
		uint64_t first = traverse(block->bytes, pages, number), again = traverse(block->bytes, pages, number);
		if (block->counts) {
			struct bin *bin = &bins[bin_of(size)];
			bin->pages += pages;
			bin->alloc += cycles;
			bin->traverse += first;
			bin->retraverse += again;
		}
	}
	for (uint64_t at = 0; at < ring; at++)
		release(&blocks[at]);
	for (unsigned at = 0; at < BINS; at++) {
		struct bin *bin = &bins[at];
		if (bin->ops)
			printf("%llu %llu %llu %llu %llu %llu %llu\n", (unsigned long long)PAGE << at,
			       (unsigned long long)bin->ops, (unsigned long long)bin->pages,
			       (unsigned long long)less(bin->alloc, call, bin->ops),
			       (unsigned long long)less(bin->traverse, loop, bin->ops),
			       (unsigned long long)less(bin->retraverse, loop, bin->ops),
			       (unsigned long long)less(bin->release, call, bin->ops));
	}
	printf("check %llu\n", (unsigned long long)check);
	return wrong != 0;
}
