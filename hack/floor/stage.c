// The stage of an exec: joins cgroups and namespaces and becomes the program. Freestanding, so that its own start costs as
// little as can be.
//
//	stage PIDFD TASKS... -- PROGRAM
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>

static long call(long n, long a, long b, long c, long d, long e) {
	long result;
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	result = x0;
#endif
	return result;
}

static void need(long result, int step) {
	if (result < 0)
		call(SYS_exit_group, step, 0, 0, 0, 0);
}

__attribute__((used, noreturn)) static void begin(long *stack) {
	char **argv = (char **)(stack + 1);
	int pidfd = 0;
	for (char *c = *++argv; *c; c++)
		pidfd = pidfd * 10 + (*c - '0');
	while (**++argv != '-') {
		long tasks = call(SYS_openat, AT_FDCWD, (long)*argv, O_WRONLY | O_CLOEXEC, 0, 0);
		need(tasks, 100);
		need(call(SYS_write, tasks, (long)"0", 1, 0, 0), 101);
		call(SYS_close, tasks, 0, 0, 0, 0);
	}
	need(call(SYS_setns, pidfd, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP, 0, 0, 0), 102);
	long pid = call(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
	need(pid, 103);
	if (pid == 0) {
		char *environment[] = {"PATH=/bin", 0};
		call(SYS_execve, (long)argv[1], (long)(argv + 1), (long)environment, 0, 0);
		call(SYS_exit_group, 104, 0, 0, 0, 0);
	}
	for (;;)
		call(SYS_exit_group, 0, 0, 0, 0, 0);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x0, sp\n\tbl begin\n");
#endif
