// The stage: a program without libc that runs a plan, a list of raw system calls. It knows nothing of containers.
//
// Descriptor 3 is the plan (plan.go writes it), descriptor 4 the report: eight bytes a message, and on a call that
// fails with an error that the plan does not accept, the call's index in the low half and errno in the high half.
// A plan ends in execve, or in exit_group; running off its end exits with 0.
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

// The plan is mapped at a fixed place, so that its pointers are those that plan.go wrote and no page of it is written to: where a
// hypervisor keeps page tables, a page that is copied for a write costs more than fifty calls. The place is beside the code, in
// tables that are there already; a static program at a fixed address has nothing else there. What is beyond the plan's end is not used.
enum { PLACE = 0x410000, ROOM = 1 << 26 };

struct header { u32 ops, unused; };

// An operation: make the call; keep the result; go on at `ok`, or `zero` if it was 0, or `otherwise` on an accepted error.
struct op { u16 call; u8 result, unused; u16 accept[3], ok, zero, otherwise; u8 kind[8]; u64 arg[6]; };

enum { VALUE, REGISTER, ADDRESS }; // what an argument is
enum { ANY_ERROR = 0xffff, PLAN = 3, REPORT = 4 };

#if defined(__x86_64__)
enum { WRITE = 1, CLOSE = 3, MMAP = 9, EXIT_GROUP = 231 };
static inline long call(long n, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
	register u64 r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return r;
}
#elif defined(__aarch64__)
enum { WRITE = 64, CLOSE = 57, MMAP = 222, EXIT_GROUP = 94 };
static inline long call(long n, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
	register u64 x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return (long)x0;
}
#endif

static int accepted(const struct op *o, u32 error) {
	return o->accept[0] == ANY_ERROR || o->accept[0] == error || o->accept[1] == error || o->accept[2] == error;
}

__attribute__((noreturn)) static void leave(int code) {
	for (;;) call(EXIT_GROUP, code, 0, 0, 0, 0, 0);
}

__attribute__((noreturn)) static void run(const struct header *h) {
	const struct op *ops = (const struct op *)(h + 1);
	u64 reg[256];
	for (u32 i = 0; i < h->ops;) {
		const struct op *o = ops + i;
		u64 v[6];
		for (int k = 0; k < 6; k++) switch (o->kind[k]) {
			case REGISTER: v[k] = reg[o->arg[k]]; break;
			case ADDRESS: v[k] = (u64)&reg[o->arg[k]]; break;
			default: v[k] = o->arg[k];
		}
		long r = call(o->call, v[0], v[1], v[2], v[3], v[4], v[5]);
		if (r >= 0 || r < -4095) {
			reg[o->result] = r;
			i = r ? o->ok : o->zero;
		} else if (accepted(o, -r)) {
			i = o->otherwise;
		} else {
			u32 why[2] = { i, -r };
			call(WRITE, REPORT, (u64)why, sizeof why, 0, 0, 0);
			leave(1);
		}
	}
	leave(0);
}

__attribute__((noreturn, used)) void stage(void) {
	long at = call(MMAP, PLACE, ROOM, 1 /* read */, 0x100002 /* private, fixed, nothing replaced */, PLAN, 0);
	if (at != PLACE) leave(2);
	call(CLOSE, PLAN, 0, 0, 0, 0, 0);
	run((const struct header *)at);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start: xor %ebp, %ebp\nand $-16, %rsp\ncall stage\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start: mov x29, xzr\nmov x30, xzr\nb stage\n");
#endif
