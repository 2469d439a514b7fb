/* A C program on umpa.h: the paper's five functions, the mmap family, N1527's batches and malloc, each doing
 * something small that checks what is in memory, and each told nonsense.
 *
 *     tour [NODES]
 *
 * It is the workload `c` of the built-in guest; `vmm cc guest/c/tour.c -o tour.elf` makes a guest of its own. */

#include <umpa.h>

#define PAGE 4096u

/* Says what doesn't hold, and where. */
static int failures;

static void check(bool holds, const char *what, int line)
{
    if (holds)
        return;
    failures++;
    umpa_print("tour.c:");
    umpa_print_number((uint64_t)line);
    umpa_print(": ");
    umpa_print(what);
    umpa_print(", errno ");
    umpa_print_number((uint64_t)errno);
    umpa_print("\n");
}

#define CHECK(holds) check((holds), #holds, __LINE__)
/* The call fails, and says why. */
#define FAILS(call_fails, number) (errno = 0, check((call_fails) && errno == (number), #call_fails " " #number, __LINE__))

static void say(const char *what, uint64_t number, const char *unit)
{
    umpa_print(what);
    umpa_print_number(number);
    umpa_print(unit);
    umpa_print("\n");
}

/* A word for each place, so that a page in the wrong place is noticed. */
static uint64_t mark(uint64_t seed, size_t at)
{
    return (seed << 32) ^ (at * 0x9e3779b97f4a7c15u);
}

static void fill(uint64_t *words, size_t from, size_t to, uint64_t seed)
{
    for (size_t at = from; at < to; at++)
        words[at] = mark(seed, at);
}

static bool holds(const uint64_t *words, size_t from, size_t to, uint64_t seed)
{
    for (size_t at = from; at < to; at++)
        if (words[at] != mark(seed, at))
            return false;
    return true;
}

/* A buffer that grows by userpage_realloc, as log files and parsers have it; and a sparse table, of which only
 * the pages in use have memory. */
static void blocks(size_t most)
{
    size_t words = PAGE / sizeof(uint64_t), moves = 0;
    uint64_t *buffer = userpage_malloc(PAGE);
    CHECK(buffer != NULL);
    fill(buffer, 0, words, 1);
    for (size_t grown = 2 * words; grown * sizeof(uint64_t) <= most; words = grown, grown *= 2) {
        uint64_t *wider = userpage_realloc(buffer, grown * sizeof(uint64_t));
        CHECK(wider != NULL);
        moves += wider != buffer;
        buffer = wider;
        fill(buffer, words, grown, 1);
    }
    CHECK(holds(buffer, 0, words, 1));
    say("userpage: a buffer grown to ", words * sizeof(uint64_t) / 1024, " KiB, every word as it was written;");
    say("          it moved ", moves, " times, without a copy");

    uint64_t *table = userpage_reserve((size_t)1 << 30);
    CHECK(table != NULL);
    ptrdiff_t backed = 0;
    for (size_t at = 0; at < 4; at++) {
        uint64_t *part = table + at * (size_t)(PAGE * 1000 / sizeof(uint64_t));
        backed += userpage_commit(part, 2 * PAGE);
        fill(part, 0, 2 * PAGE / sizeof(uint64_t), at);
    }
    for (size_t at = 0; at < 4; at++)
        CHECK(holds(table + at * (size_t)(PAGE * 1000 / sizeof(uint64_t)), 0, 2 * PAGE / sizeof(uint64_t), at));
    CHECK(backed == 8 * PAGE);
    CHECK(userpage_commit(table, 2 * PAGE) == 0);
    CHECK(userpage_release(table, PAGE) == PAGE);
    CHECK(holds(table, PAGE / sizeof(uint64_t), 2 * PAGE / sizeof(uint64_t), 0));
    say("userpage: of a table of 1 GiB of addresses ", (uint64_t)backed / 1024, " KiB had memory");

    CHECK(userpage_free(NULL) == 0);
    FAILS(userpage_malloc(0) == NULL, EINVAL);
    FAILS(userpage_malloc(SIZE_MAX) == NULL, ENOMEM);
    FAILS(userpage_realloc(buffer, 0) == NULL, EINVAL);
    FAILS(userpage_realloc(buffer, SIZE_MAX / 2) == NULL, ENOMEM);
    FAILS(userpage_free((char *)buffer + PAGE) == -1, EINVAL);
    FAILS(userpage_commit(table + 1, PAGE) == -1, EINVAL);
    FAILS(userpage_commit(table, (size_t)2 << 30) == -1, EINVAL);
    FAILS(userpage_release((void *)0x12345000, PAGE) == -1, EINVAL);
    CHECK(holds(buffer, 0, words, 1));
    CHECK(userpage_free(table) == 0);
    CHECK(userpage_free(buffer) == 0);
    FAILS(userpage_free(buffer) == -1, EINVAL);
}

/* Two mappings that grow, move, and change places; and every way to be refused. */
static void mappings(void)
{
    enum { PAGES = 6, WORDS = PAGES * PAGE / sizeof(uint64_t) };
    const int rw = PROT_READ | PROT_WRITE, own = MAP_PRIVATE | MAP_ANONYMOUS;
    uint64_t *one = mmap(NULL, PAGES * PAGE, rw, own, -1, 0);
    CHECK(one != MAP_FAILED);
    for (size_t at = 0; at < WORDS; at++)
        if (one[at] != 0)
            CHECK(!"new memory is zero");
    fill(one, 0, WORDS, 7);
    uint64_t *other = mmap(NULL, PAGES * PAGE, rw, own, -1, 0);
    CHECK(other != MAP_FAILED && other != one);
    fill(other, 0, WORDS, 8);
    CHECK(umpa_mswap(one, other, PAGES * PAGE) == 0);
    CHECK(holds(one, 0, WORDS, 8) && holds(other, 0, WORDS, 7));

    uint64_t *moved = mremap(one, PAGES * PAGE, 4 * PAGES * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && holds(moved, 0, WORDS, 8));
    fill(moved, WORDS, 4 * WORDS, 8);
    uint64_t *target = (uint64_t *)0x200000000000;
    CHECK(mremap(moved, 4 * PAGES * PAGE, 4 * PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
    CHECK(holds(target, 0, 4 * WORDS, 8));

    unsigned char resident[4 * PAGES] = {0};
    CHECK(mincore(target, sizeof resident * PAGE, resident) == 0);
    for (size_t at = 0; at < sizeof resident; at++)
        CHECK(resident[at] == 1);
    CHECK(mprotect(target, PAGE, PROT_READ) == 0);
    CHECK(holds(target, 0, WORDS, 8));
    CHECK(mprotect(target, PAGE, rw) == 0);
    target[0] = 1;
    CHECK(madvise(target, PAGE, MADV_DONTNEED) == 0);
    CHECK(target[0] == 0 && target[PAGE / sizeof(uint64_t) - 1] == 0);
    CHECK(holds(target, PAGE / sizeof(uint64_t), WORDS, 8));
    umpa_print("mmap: two mappings swapped, grown, moved and protected, every word as it was written\n");

    FAILS(mmap(NULL, 0, rw, own, -1, 0) == MAP_FAILED, EINVAL);
    FAILS(mmap(NULL, PAGE, rw, MAP_PRIVATE, -1, 0) == MAP_FAILED, EBADF);
    FAILS(mmap(NULL, PAGE, rw, MAP_ANONYMOUS, -1, 0) == MAP_FAILED, EINVAL);
    FAILS(mmap(NULL, PAGE, rw, MAP_ANONYMOUS | MAP_SHARED, -1, 0) == MAP_FAILED, EOPNOTSUPP);
    FAILS(mmap(NULL, PAGE, rw, own, -1, 1) == MAP_FAILED, EINVAL);
    FAILS(mmap(NULL, SIZE_MAX, rw, own, -1, 0) == MAP_FAILED, ENOMEM);
    FAILS(mmap((void *)PAGE, PAGE, rw, own | MAP_FIXED, -1, 0) == MAP_FAILED, EPERM);
    FAILS(mmap(target, PAGE, rw, own | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED, EEXIST);
    FAILS(munmap((char *)target + 1, PAGE) == -1, EINVAL);
    FAILS(mprotect(other, SIZE_MAX - PAGE, rw) == -1, ENOMEM);
    FAILS(mprotect(other, PAGE, 0x40) == -1, EINVAL);
    FAILS(mremap(other, PAGE, PAGE, MREMAP_FIXED, NULL) == MAP_FAILED, EINVAL);
    FAILS(mremap((void *)0x12345000, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED, EFAULT);
    FAILS(madvise(other, PAGE, 1000) == -1, EINVAL);
    FAILS(mincore(target, PAGE, NULL) == -1, EFAULT);
    FAILS(mincore((void *)0x12345000, PAGE, resident) == -1, ENOMEM);
    FAILS(umpa_mswap(other, other, PAGE) == -1, EINVAL);
    CHECK(munmap(target, 4 * PAGES * PAGE) == 0);
    CHECK(munmap(other, PAGES * PAGE) == 0);
    FAILS(mprotect(other, PAGE, rw) == -1, ENOMEM);
}

struct node {
    struct node *next;
    uint64_t number;
};

/* The paper's example: a list whose nodes come from one call; then each second one is freed by another. */
static void list(size_t nodes)
{
    size_t count = nodes, size = sizeof(struct node);
    void **all = batch_alloc1(NULL, NULL, &count, &size, 0, 0, M2_BATCH_IS_ALL_ALLOC);
    CHECK(all != NULL && count == nodes && size >= sizeof(struct node));
    if (all == NULL)
        return;
    struct node *first = NULL;
    for (size_t at = nodes; at > 0; at--) {
        struct node *node = all[at - 1];
        node->next = first;
        node->number = at;
        first = node;
    }
    uint64_t sum = 0;
    for (struct node *node = first; node != NULL; node = node->next)
        sum += node->number;
    CHECK(sum == (uint64_t)nodes * (nodes + 1) / 2);
    say("batch_alloc1: the sum of the list is ", sum, "");

    size_t freed = 0;
    for (struct node **link = &first; *link != NULL;) {
        struct node *node = *link;
        if (node->number % 2 == 0) {
            *link = node->next;
            all[freed++] = node;
        } else {
            link = &node->next;
        }
    }
    count = freed;
    CHECK(batch_alloc1(NULL, all, &count, NULL, 0, 0, 0) == all && count == freed);
    sum = 0;
    while (first != NULL) {
        struct node *next = first->next;
        sum += first->number;
        free(first);
        first = next;
    }
    CHECK(sum == (uint64_t)((nodes + 1) / 2) * ((nodes + 1) / 2));
    free(all);
}

/* Blocks of malloc's and its kin; batches whose entries differ, and fail each by itself. */
static void heap(void)
{
    enum { SMALL = 100, LARGE = 300000 };
    uint64_t *small = malloc(SMALL * sizeof(uint64_t)), *zero = calloc(SMALL, sizeof(uint64_t));
    CHECK(small != NULL && zero != NULL);
    fill(small, 0, SMALL, 3);
    for (size_t at = 0; at < SMALL; at++)
        if (zero[at] != 0)
            CHECK(!"calloc's memory is zero");
    small = realloc(small, LARGE);
    CHECK(small != NULL && holds(small, 0, SMALL, 3));
    CHECK(malloc_usable_size(small) >= LARGE);
    /* A block from 128 KiB on is one of umpa's. */
    small = userpage_realloc(small, 2 * LARGE);
    CHECK(small != NULL && holds(small, 0, SMALL, 3) && malloc_usable_size(small) >= 2 * LARGE);
    zero = aligned_realloc(zero, 4096, 50);
    CHECK(zero != NULL && (uintptr_t)zero % 4096 == 0 && zero[0] == 0);
    CHECK(try_realloc(zero, 40) == zero);
    CHECK(try_aligned_realloc(zero, 4096, 30) == zero);

    int errnos[4];
    struct mallocation2 two[3] = {{NULL, 10}, {NULL, SIZE_MAX / 2}, {zero, 0}};
    struct mallocation2 *twos[4] = {&two[0], &two[1], NULL, &two[2]};
    size_t count = 4;
    CHECK(!batch_alloc2(errnos, twos, &count, 0, 0, M2_ZERO_MEMORY) && count == 3);
    CHECK(errnos[0] == 0 && errnos[1] == ENOMEM && errnos[2] == 0 && errnos[3] == 0);
    CHECK(two[0].ptr != NULL && two[0].size >= 10 && two[1].ptr == NULL && two[2].ptr == NULL);
    struct mallocation5 five[2] = {{small, 100, 0, 0, M2_PREVENT_MOVE}, {two[0].ptr, 100, 3, 0, 0}};
    struct mallocation5 roomy = {NULL, 100, 0, 1 << 20, M2_ZERO_MEMORY}, *only = &roomy;
    count = 1;
    CHECK(batch_alloc5(NULL, &only, &count) && roomy.reserve >= 1 << 20 && roomy.size >= 100);
    CHECK(try_realloc(roomy.ptr, 1 << 20) == roomy.ptr);
    FAILS(try_realloc(roomy.ptr, (size_t)1 << 32) == NULL, ENOSPC);
    free(roomy.ptr);
    struct mallocation5 *fives[2] = {&five[0], &five[1]};
    count = 2;
    CHECK(!batch_alloc5(errnos, fives, &count) && count == 1 && errnos[0] == 0 && errnos[1] == EINVAL);
    CHECK(five[0].ptr == small && five[1].ptr == two[0].ptr && holds(small, 0, 12, 3));
    umpa_print("malloc and batches: blocks resized, aligned, zeroed and freed, every word as it was written\n");

    FAILS(malloc(SIZE_MAX) == NULL, ENOMEM);
    FAILS(calloc(SIZE_MAX / 2, 3) == NULL, ENOMEM);
    FAILS(aligned_alloc(3, 8) == NULL, EINVAL);
    FAILS(realloc((char *)small + PAGE, 8) == NULL, EINVAL);
    FAILS((free((char *)small + 24), true), EINVAL);
    FAILS((free((void *)0x12345000), true), EINVAL);
    FAILS(try_realloc((void *)0x12345008, 8) == NULL, EINVAL);
    FAILS(malloc_usable_size(errnos) == 0, EINVAL);
    count = 1;
    FAILS(batch_alloc1(errnos, (void **)errnos, &count, NULL, 0, 0, 0) == NULL, EINVAL);
    FAILS(batch_alloc1(NULL, NULL, NULL, NULL, 0, 0, 0) == NULL, EINVAL);
    FAILS(!batch_alloc5(errnos, NULL, &count), EINVAL);
    count = SIZE_MAX / 4;
    FAILS(batch_alloc1(NULL, NULL, &count, NULL, 0, 0, 0) == NULL && count == 0, ENOMEM);
    count = SIZE_MAX / 4;
    FAILS(!batch_alloc2(errnos, twos, &count, 0, 0, 0), EINVAL);
    void *block = two[0].ptr;
    count = 1;
    size_t size = 20;
    CHECK(batch_alloc1(errnos, &block, &count, &size, 0, 0, M2_BATCH_IS_ALL_ALLOC | M2_BATCH_IS_ALL_FREE) == &block);
    CHECK(count == 0 && errnos[0] == EINVAL && block == two[0].ptr);
    free(small);
    free(block);
    FAILS((free(small), true), EINVAL);
    free(NULL);
}

int main(int argc, char **argv)
{
    size_t nodes = 0;
    for (const char *digit = argc > 1 ? argv[1] : "1000"; *digit >= '0' && *digit <= '9'; digit++)
        nodes = nodes * 10 + (size_t)(*digit - '0');
    blocks(nodes < 1000 ? 16 * PAGE : 1024 * PAGE);
    mappings();
    list(nodes);
    heap();
    if (failures == 0)
        umpa_print("nothing was believed that isn't so\n");
    return failures;
}
