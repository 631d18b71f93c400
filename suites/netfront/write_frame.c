/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Write one Ethernet frame to an interface. Standard input is the interface's name in 16 bytes, padded with NUL, and then the frame.
 * The status is 0, or the errno of the call that failed.
 *
 * The program needs no C library: harness.guests.program compiles it for the guest's ABI (ELF_OSABI).
 * FreeBSD: bpf(4), sys/net/bpf.h, sys/kern/syscalls.master. Linux: packet(7), arch/x86/entry/syscalls/syscall_64.tbl.
 */
#define NAME 16
#define ELFOSABI_FREEBSD 9

/* The largest frame that a 16-bit IP length allows. */
static char input[NAME + 65549];

static long
call(long number, long a, long b, long c)
{
	long result;

#if ELF_OSABI == ELFOSABI_FREEBSD
	unsigned char failed;

	/* The carry flag tells an errno from a result. */
	__asm__ volatile("syscall" : "=a"(result), "=@ccc"(failed), "+d"(c) : "a"(number), "D"(a), "S"(b)
	    : "rcx", "r8", "r9", "r10", "r11", "memory");
	return (failed ? -result : result);
#else
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return (result);
#endif
}

#if ELF_OSABI == ELFOSABI_FREEBSD
enum { EXIT = 1, READ = 3, WRITE = 4, OPEN = 5, IOCTL = 54 };
enum { O_WRONLY = 1 };
#define BIOCSETIF	0x8020426cL
#define BIOCSHDRCMPLT	0x80044275L

/* A descriptor that writes whole frames to the interface; -errno on failure. */
static long
interface(const char *name)
{
	char ifreq[32] = { 0 };
	int complete = 1;
	long error, bpf;

	for (int i = 0; i < NAME; i++)
		ifreq[i] = name[i];
	if ((bpf = call(OPEN, (long)"/dev/bpf", O_WRONLY, 0)) < 0)
		return (bpf);
	if ((error = call(IOCTL, bpf, BIOCSETIF, (long)ifreq)) < 0)
		return (error);
	error = call(IOCTL, bpf, BIOCSHDRCMPLT, (long)&complete);
	return (error < 0 ? error : bpf);
}
#else
enum { READ = 0, WRITE = 1, IOCTL = 16, SOCKET = 41, BIND = 49, EXIT = 60 };
enum { AF_PACKET = 17, SOCK_RAW = 3, SIOCGIFINDEX = 0x8933 };

struct sockaddr_ll {
	unsigned short family, protocol;
	int ifindex;
	char rest[12];
};

/* A descriptor that writes whole frames to the interface; -errno on failure. */
static long
interface(const char *name)
{
	struct { char name[NAME]; int ifindex; char rest[20]; } ifreq = { .ifindex = 0 };
	struct sockaddr_ll address = { .family = AF_PACKET };
	long error, packet;

	for (int i = 0; i < NAME; i++)
		ifreq.name[i] = name[i];
	if ((packet = call(SOCKET, AF_PACKET, SOCK_RAW, 0)) < 0)
		return (packet);
	if ((error = call(IOCTL, packet, SIOCGIFINDEX, (long)&ifreq)) < 0)
		return (error);
	address.ifindex = ifreq.ifindex;
	error = call(BIND, packet, (long)&address, sizeof(address));
	return (error < 0 ? error : packet);
}
#endif

static long
run(void)
{
	long size = 0, got, descriptor;

	while ((got = call(READ, 0, (long)input + size, (long)sizeof(input) - size)) > 0)
		size += got;
	if (got < 0)
		return (got);
	if ((descriptor = interface(input)) < 0)
		return (descriptor);
	got = call(WRITE, descriptor, (long)input + NAME, size - NAME);
	return (got < 0 ? got : 0);
}

__attribute__((force_align_arg_pointer)) void
_start(void)
{
	call(EXIT, -run(), 0, 0);
	for (;;)
		;
}
