/* umpa.h: a user-mode page allocator, for C and C++ programs in a guest of vmm's.
 *
 * The paper's five functions, the mmap family, malloc and its kin, and N1527's batches: one allocator, so what
 * one gives another takes. A block of 128 KiB or more that malloc makes is one of userpage_malloc's.
 *
 * A program is freestanding: this header is all the library that it has, but for memcpy, memmove, memset, memcmp
 * and strlen, which compilers call by themselves. `vmm cc prog.c -o prog.elf` compiles one, `vmm run prog.elf`
 * runs it. The types agree with libc's, whose headers may be included too.
 *
 * errno is set by calls that fail, and left alone by others. A pointer that is no block, as far as can be told
 * (freed twice, foreign, into a block), is refused with EINVAL, and nothing is changed.
 *
 * Made by cbindgen from guest/src/c: don't edit it, run `UPDATE=1 cargo test -p guest --test header`. */

#ifndef UMPA_H
#define UMPA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define UMPA_NOTHROW noexcept(true)
#else
#define UMPA_NOTHROW
#endif

/* Where a call fails that returns an address of the mmap family's. */
#ifndef MAP_FAILED
#define MAP_FAILED ((void *)-1)
#endif

/* The number of the last error. */
#ifndef errno
#define errno (*__errno_location())
#endif


/*
 Operation not permitted: the address lies below the lowest that may be mapped.
 */
#ifndef EPERM
#define EPERM 1
#endif

/*
 Bad file descriptor: a file was meant, and there are none.
 */
#ifndef EBADF
#define EBADF 9
#endif

/*
 Out of memory: frames, tables or addresses ran out, or a part of the range isn't mapped.
 */
#ifndef ENOMEM
#define ENOMEM 12
#endif

/*
 Bad address: the range isn't mapped, or not within one mapping.
 */
#ifndef EFAULT
#define EFAULT 14
#endif

/*
 The range is mapped already.
 */
#ifndef EEXIST
#define EEXIST 17
#endif

/*
 An argument makes no sense: no block begins there, no such flags, no such alignment.
 */
#ifndef EINVAL
#define EINVAL 22
#endif

/*
 A block that must not move has no room where it is, or isn't aligned there.
 */
#ifndef ENOSPC
#define ENOSPC 28
#endif

/*
 Linux has it, umpa doesn't.
 */
#ifndef EOPNOTSUPP
#define EOPNOTSUPP 95
#endif

/*
 No access.
 */
#ifndef PROT_NONE
#define PROT_NONE 0
#endif

/*
 Reads.
 */
#ifndef PROT_READ
#define PROT_READ 1
#endif

/*
 Writes, and reads.
 */
#ifndef PROT_WRITE
#define PROT_WRITE 2
#endif

/*
 Instruction fetches, and reads.
 */
#ifndef PROT_EXEC
#define PROT_EXEC 4
#endif

/*
 Shared with other processes: not supported.
 */
#ifndef MAP_SHARED
#define MAP_SHARED 1
#endif

/*
 The program's own.
 */
#ifndef MAP_PRIVATE
#define MAP_PRIVATE 2
#endif

/*
 Just there, in place of what is mapped.
 */
#ifndef MAP_FIXED
#define MAP_FIXED 0x10
#endif

/*
 No file.
 */
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS 0x20
#endif

/*
 Just there, unless something is mapped there.
 */
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/*
 The content is whatever the frames hold: for memory that is written before it is read.
 */
#ifndef MAP_UNINITIALIZED
#define MAP_UNINITIALIZED 0x4000000
#endif

/*
 The address may change.
 */
#ifndef MREMAP_MAYMOVE
#define MREMAP_MAYMOVE 1
#endif

/*
 To a given address, in place of what is mapped there.
 */
#ifndef MREMAP_FIXED
#define MREMAP_FIXED 2
#endif

/*
 The old range stays mapped, and reads as zero.
 */
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/*
 It will be needed soon: it is in memory already.
 */
#ifndef MADV_WILLNEED
#define MADV_WILLNEED 3
#endif

/*
 Its content isn't needed: it reads as zero from now on.
 */
#ifndef MADV_DONTNEED
#define MADV_DONTNEED 4
#endif

/*
 Its content may be lost until it is written again: it isn't, here.
 */
#ifndef MADV_FREE
#define MADV_FREE 8
#endif

/*
 Large leaves are welcome.
 */
#ifndef MADV_HUGEPAGE
#define MADV_HUGEPAGE 14
#endif

/*
 What is mapped from now on has 4 KiB leaves.
 */
#ifndef MADV_NOHUGEPAGE
#define MADV_NOHUGEPAGE 15
#endif

/*
 Large leaves now, where the range covers them.
 */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/*
 New bytes are zero.
 */
#ifndef M2_ZERO_MEMORY
#define M2_ZERO_MEMORY 1
#endif

/*
 A block that is resized stays where it is, or the entry fails.
 */
#ifndef M2_PREVENT_MOVE
#define M2_PREVENT_MOVE 2
#endif

/*
 In constant time rather than with least memory: nothing is given back, nothing is copied.
 */
#ifndef M2_CONSTANT_TIME
#define M2_CONSTANT_TIME 4
#endif

/*
 The reserve is a multiple of the size, not bytes.
 */
#ifndef M2_RESERVE_IS_MULT
#define M2_RESERVE_IS_MULT 8
#endif

/*
 All entries are new blocks: pointers are written, not read.
 */
#ifndef M2_BATCH_IS_ALL_ALLOC
#define M2_BATCH_IS_ALL_ALLOC 0x10
#endif

/*
 All entries are blocks to be resized.
 */
#ifndef M2_BATCH_IS_ALL_REALLOC
#define M2_BATCH_IS_ALL_REALLOC 0x20
#endif

/*
 All entries are blocks to be freed.
 */
#ifndef M2_BATCH_IS_ALL_FREE
#define M2_BATCH_IS_ALL_FREE 0x40
#endif

/*
 The first of the bits for extensions. There are none, so they are refused.
 */
#ifndef M2_USERFLAGS_FIRST
#define M2_USERFLAGS_FIRST 0x10000
#endif

/*
 The last of them.
 */
#ifndef M2_USERFLAGS_LAST
#define M2_USERFLAGS_LAST 0x80000000
#endif

/*
 An entry of batch_alloc2.
 */
struct mallocation2 {
    /*
     The block, or NULL.
     */
    void *ptr;
    /*
     Its size; what the block has, afterwards.
     */
    size_t size;
};

/*
 An entry of batch_alloc5.
 */
struct mallocation5 {
    /*
     The block, or NULL.
     */
    void *ptr;
    /*
     Its size; what the block has, afterwards.
     */
    size_t size;
    /*
     Its alignment, a power of two; 0: that of any object.
     */
    size_t alignment;
    /*
     How far it must be resizable in place; how far the block is, afterwards.
     */
    size_t reserve;
    /*
     How: M2_*.
     */
    uint64_t flags;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 Where `errno` is: the number of the last error. A call that succeeds leaves it as it is.
 */
int *__errno_location(void) UMPA_NOTHROW;

/*
 A block of at least so many bytes, in whole pages; its content is whatever its frames held.

 Errors:
 NULL. EINVAL: no bytes. ENOMEM: too few frames, tables or addresses.
 */
void *userpage_malloc(size_t bytes) UMPA_NOTHROW;

/*
 Addresses for a block of at most so many bytes, without memory: userpage_commit backs parts of it.

 Errors:
 NULL. As for userpage_malloc.
 */
void *userpage_reserve(size_t bytes) UMPA_NOTHROW;

/*
 Ends a block, whether allocated or reserved; returns 0. NULL is no block, and nothing is done.

 Errors:
 -1. EINVAL: no block begins there, so it was freed before, or never was.
 */
int userpage_free(void *block) UMPA_NOTHROW;

/*
 Gives a block so many bytes, in whole pages: in place where it can grow, else it moves, by its page
 table entries and without a copy. Returns where it is then. NULL is allocated.

 Errors:
 NULL, and the block is as it was. EINVAL: no bytes; no block begins there. ENOMEM: too few frames, tables
 or addresses.
 */
void *userpage_realloc(void *block, size_t bytes) UMPA_NOTHROW;

/*
 Backs the pages of a range within a block's addresses that aren't; returns the bytes newly backed. The
 range is whole pages. A block made by userpage_malloc may be backed as a whole for as long as it lives:
 0 then.

 Errors:
 -1, and nothing was backed. EINVAL: the range isn't whole pages, or isn't within a block's addresses.
 ENOMEM: too few frames or tables.
 */
ptrdiff_t userpage_commit(void *address, size_t bytes) UMPA_NOTHROW;

/*
 Gives the memory of a range back, and keeps the addresses: userpage_commit backs them again, with other
 content. Returns the bytes given back. A block made by userpage_malloc may keep its memory for as long as
 it lives: 0 then.

 Errors:
 -1, and nothing was given back. EINVAL: the range isn't whole pages, or isn't within a block's addresses.
 ENOMEM: too few tables.
 */
ptrdiff_t userpage_release(void *address, size_t bytes) UMPA_NOTHROW;

/*
 Maps bytes, rounded up to pages, of private memory that reads as zero, at once and for certain: no touch
 of it fails. Flags need MAP_PRIVATE and MAP_ANONYMOUS; the file descriptor is ignored. A hint is taken if
 the range there is free.

 Errors:
 MAP_FAILED, and nothing was changed. EBADF: without MAP_ANONYMOUS. EINVAL: no bytes; a misaligned offset,
 or address where that is fixed; neither MAP_PRIVATE nor MAP_SHARED. EPERM: a fixed address below the lowest.
 EEXIST: MAP_FIXED_NOREPLACE where a page is mapped. EOPNOTSUPP: MAP_SHARED, and flags for stacks that grow
 and reserved huge pages. ENOMEM: no frames, tables or addresses.
 */
void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset) UMPA_NOTHROW;

/*
 Unmaps whatever is mapped in a range, which is rounded up to pages.

 Errors:
 -1, and nothing was changed. EINVAL: no bytes; a misaligned address; the range leaves the program's
 addresses. ENOMEM: too few tables to cut a mapping.
 */
int munmap(void *addr, size_t length) UMPA_NOTHROW;

/*
 Sets what may be done with the pages of a range, which is rounded up to pages. What isn't allowed is a
 page fault, which ends the program.

 Errors:
 -1, and nothing was changed. EINVAL: a misaligned address; unknown rights. ENOMEM: a page of the range isn't
 mapped; too few tables to cut a mapping.
 */
int mprotect(void *addr, size_t length, int prot) UMPA_NOTHROW;

/*
 Resizes a mapping, and moves it as flags say, by its page table entries and without a copy. Returns where
 it is then. With MREMAP_FIXED and MREMAP_DONTUNMAP a fifth argument follows, void *, the new address.

 Errors:
 MAP_FAILED, and nothing was changed. EINVAL: unknown flags, or such that contradict each other; a misaligned
 address; no bytes; a new range that overlaps the old one. EFAULT: the range isn't within one mapping. EPERM:
 a new address below the lowest. ENOMEM: it can't grow in place and may not move; no frames, tables or
 addresses.
 */
void *mremap(void *old_address, size_t old_size, size_t new_size, int flags, ...) UMPA_NOTHROW;

/*
 Takes advice (MADV_*) for a range, which is rounded up to pages.

 Errors:
 -1. EINVAL: unknown advice; a misaligned address; MADV_COLLAPSE where MADV_NOHUGEPAGE was said, or of less
 than 2 MiB. ENOMEM: a part of the range isn't mapped (the rest has taken the advice); no large frame; too few
 tables.
 */
int madvise(void *addr, size_t length, int advice) UMPA_NOTHROW;

/*
 Tells for each page of a range whether it is in memory (1): all mapped pages are.

 Errors:
 -1, and nothing is told. EINVAL: a misaligned address. EFAULT: no array. ENOMEM: a page of the range isn't
 mapped.

 Precondition:
 vec has a byte for each page of the range.
 */
int mincore(void *addr, size_t length, unsigned char *vec) UMPA_NOTHROW;

/*
 Two mapped ranges of so many bytes change contents, by their page table entries and without a copy. What
 may be done with an address stays as it was. Linux has no such call.

 Errors:
 -1, and nothing was changed. EINVAL: a misaligned address; no whole pages; ranges that overlap or leave the
 program's addresses. EFAULT: a page of them isn't mapped. ENOMEM: too few tables.
 */
int umpa_mswap(void *one, void *other, size_t length) UMPA_NOTHROW;

/*
 A block of at least so many bytes, aligned for any object; its content is whatever the memory held. No
 bytes are a block too.

 Errors:
 NULL. ENOMEM: too little memory.
 */
void *malloc(size_t size) UMPA_NOTHROW;

/*
 A block of so many members of so many bytes each, all zero.

 Errors:
 NULL. ENOMEM: too little memory, or more than can be counted.
 */
void *calloc(size_t nmemb, size_t size) UMPA_NOTHROW;

/*
 Gives a block so many bytes; content is kept, up to the lesser size. Returns where the block is then:
 from 128 KiB on it moves by its page table entries, without a copy. NULL is allocated. Size 0 frees, and
 returns NULL.

 Errors:
 NULL, and the block is as it was. EINVAL: no block begins there. ENOMEM: too little memory.

 Precondition:
 Nobody uses the block any more by its old address.
 */
void *realloc(void *ptr, size_t size) UMPA_NOTHROW;

/*
 Ends a block. NULL is no block, and nothing is done.

 Errors:
 EINVAL: no block begins there, so it was freed before, or never was; nothing was done.

 Precondition:
 Nobody uses the block any more.
 */
void free(void *ptr) UMPA_NOTHROW;

/*
 A block of so many bytes at a multiple of the alignment, a power of two (0: for any object).

 Errors:
 NULL. EINVAL: the alignment is no power of two, or larger than any block. ENOMEM: too little memory.
 */
void *aligned_alloc(size_t alignment, size_t size) UMPA_NOTHROW;

/*
 realloc to a block at a multiple of the alignment, a power of two (0: for any object).

 Errors:
 NULL, and the block is as it was. EINVAL: no block begins there; the alignment is no power of two. ENOMEM:
 too little memory.

 Precondition:
 Nobody uses the block any more by its old address.
 */
void *aligned_realloc(void *ptr, size_t alignment, size_t size) UMPA_NOTHROW;

/*
 realloc that never moves the block: it is resized where it is, or not at all.

 Errors:
 NULL, and the block is as it was. EINVAL: no block begins there. ENOSPC: it would have to move. ENOMEM: too
 little memory.

 Precondition:
 Nobody uses bytes that the block loses.
 */
void *try_realloc(void *ptr, size_t size) UMPA_NOTHROW;

/*
 aligned_realloc that never moves the block: it is resized where it is, or not at all.

 Errors:
 NULL, and the block is as it was. EINVAL: no block begins there; the alignment is no power of two. ENOSPC:
 it would have to move, as it isn't aligned or has no room. ENOMEM: too little memory.

 Precondition:
 Nobody uses bytes that the block loses.
 */
void *try_aligned_realloc(void *ptr, size_t alignment, size_t size) UMPA_NOTHROW;

/*
 Bytes that a block has: at least what was asked for, and all may be used. 0 for NULL.

 Errors:
 0. EINVAL: no block begins there.
 */
size_t malloc_usable_size(void *ptr) UMPA_NOTHROW;

/*
 Allocates, resizes or frees blocks of one size. For each pointer: NULL becomes a new block; a block is
 resized, and may move; without a size (NULL or 0) it is freed and the pointer becomes NULL. Entries succeed
 or fail each by itself, and a failed one keeps its pointer.

 count becomes the number of entries that succeeded, size the least that a new or resized block has. errnos,
 where given, gets 0 or the error of each entry: EINVAL (no block begins there, flags that contradict each
 other, no such alignment), ENOMEM (too little memory) or ENOSPC (a block would have to move and must not).

 Returns ptrs. If that is NULL, an array of new blocks is allocated and returned, to be freed by free().

 Errors:
 NULL, and nothing was done. EINVAL: no count; arrays that overlap, are misaligned or larger than memory.
 ENOMEM: no memory for the array; count becomes 0.

 Precondition:
 The arrays have count elements. Nobody uses a block any more by its old address.
 */
void **batch_alloc1(int *errnos,
                    void **ptrs,
                    size_t *count,
                    size_t *size,
                    size_t alignment,
                    size_t reserve,
                    uint64_t flags)
UMPA_NOTHROW;

/*
 Allocates, resizes or frees blocks, each of its own size, which becomes what the block has. Otherwise as
 batch_alloc1; a NULL entry is passed over, and succeeds. Returns whether all entries succeeded.

 Errors:
 False, and nothing was done. EINVAL: no count, no entries; arrays that are misaligned or larger than memory.

 Precondition:
 The arrays have count elements. Nobody uses a block any more by its old address.
 */
bool batch_alloc2(int *errnos,
                  struct mallocation2 **mdataptrs,
                  size_t *count,
                  size_t alignment,
                  size_t reserve,
                  uint64_t flags)
UMPA_NOTHROW;

/*
 batch_alloc2 with alignment, reserve and flags of each entry's own; the reserve becomes what the block has.

 Errors:
 False, and nothing was done. As for batch_alloc2.

 Precondition:
 The arrays have count elements. Nobody uses a block any more by its old address.
 */
bool batch_alloc5(int *errnos, struct mallocation5 **mdataptrs, size_t *count) UMPA_NOTHROW;

/*
 Prints text on the console. NULL is nothing.

 Precondition:
 text is a string, or NULL.
 */
void umpa_print(const char *text) UMPA_NOTHROW;

/*
 Prints a number in decimal digits on the console.
 */
void umpa_print_number(uint64_t number) UMPA_NOTHROW;

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UMPA_H */
