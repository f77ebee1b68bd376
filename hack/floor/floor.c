// The floor: the system calls without which there is no pod, no exec and no end of a pod, and nothing else. No protocol,
// no record, no log, no error handling to speak of: what a runtime needs beyond the times printed here is its own.
//
//	floor DIR ROOTFS STAGE BRIDGE CGROUP...
//
// DIR is for its files, ROOTFS the lower layer, BRIDGE a link that is there, each CGROUP a directory under which pods get
// one of theirs. It reads commands, a byte each, and answers each with the nanoseconds that it took:
//
//	p  make a network namespace ahead (a runtime does that behind its last answer; not part of a pod's time)
//	u  pod up: veth pair, bridge port, address, route, cgroups, writable layer, namespaces, mounts, masks, pivot_root, exec
//	e  exec of /bin/true: stage, cgroups, setns, fork, exec, wait
//	d  pod down: kill, wait, cgroups, writable layer, the network namespace's pin
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_link.h>
#include <linux/magic.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *dir, *rootfs, *stage;
static char **groups;         // cgroups' parents
static int unified = -1;      // which of them is v2's
static int bridge, home;      // index of the link; the network namespace of this process
static int host_link, number; // netlink here; of the pod
static int netns, pod_link;   // made ahead
static int pidfd, unified_fd;
static volatile int failed_line, failed_errno; // of a child, which shares this memory

static void die(const char *what) {
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

#define MUST(x) ((x) < 0 ? die(#x), -1 : 0)
#define TRY(x) do { if ((x) < 0) { failed_line = __LINE__; failed_errno = errno; _exit(127); } } while (0)

// A message of netlink in the making.
static char message[4096];
static struct nlmsghdr *head = (void *)message;

static void *extend(size_t size) {
	void *at = message + NLMSG_ALIGN(head->nlmsg_len);
	memset(at, 0, NLMSG_ALIGN(size));
	head->nlmsg_len = NLMSG_ALIGN(head->nlmsg_len) + size;
	return at;
}

static void *begin(int type, int flags, size_t size) {
	head->nlmsg_len = NLMSG_HDRLEN, head->nlmsg_type = type, head->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	return extend(size);
}

static struct rtattr *attribute(int type, const void *data, size_t size) {
	struct rtattr *a = extend(RTA_LENGTH(size));
	a->rta_type = type, a->rta_len = RTA_LENGTH(size);
	if (size)
		memcpy(RTA_DATA(a), data, size);
	return a;
}

static void end(struct rtattr *a) { a->rta_len = message + head->nlmsg_len - (char *)a; }

static void ask(int link, const char *what) {
	struct { struct nlmsghdr h; struct nlmsgerr e; char more[1024]; } answer;
	if (send(link, message, head->nlmsg_len, 0) < 0 || recv(link, &answer, sizeof answer, 0) < 0)
		die(what);
	if (answer.h.nlmsg_type == NLMSG_ERROR && answer.e.error) {
		errno = -answer.e.error;
		die(what);
	}
}

static int netlink(void) {
	int link = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	MUST(link);
	return link;
}

static const char *at(const char *format) {
	static char path[8][256];
	static int next;
	char *p = path[next++ % 8];
	snprintf(p, sizeof path[0], "%s/", dir);
	snprintf(p + strlen(p), 200, format, number);
	return p;
}

static const char *group(int i, const char *file) {
	static char path[256];
	snprintf(path, sizeof path, "%s/%d%s", groups[i], number, file);
	return path;
}

// prepare makes a network namespace and pins it, as plugins and restarts need it.
static void prepare(void) {
	number++;
	MUST(unshare(CLONE_NEWNET));
	pod_link = netlink();
	struct ifinfomsg *lo = begin(RTM_NEWLINK, 0, sizeof *lo);
	lo->ifi_index = 1, lo->ifi_flags = lo->ifi_change = IFF_UP;
	ask(pod_link, "lo up");
	MUST(netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
	close(open(at("ns%d"), O_CREAT | O_RDONLY, 0444));
	MUST(mount("/proc/thread-self/ns/net", at("ns%d"), "", MS_BIND, 0));
	MUST(setns(home, CLONE_NEWNET));
}

static void network(void) {
	char name[IFNAMSIZ];
	snprintf(name, sizeof name, "floor%d", number);
	struct ifinfomsg *veth = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof *veth);
	veth->ifi_flags = veth->ifi_change = IFF_UP;
	attribute(IFLA_IFNAME, name, strlen(name) + 1);
	attribute(IFLA_MASTER, &bridge, 4);
	struct rtattr *info = attribute(IFLA_LINKINFO, 0, 0);
	attribute(IFLA_INFO_KIND, "veth", 4);
	struct rtattr *data = attribute(IFLA_INFO_DATA, 0, 0), *peer = attribute(VETH_INFO_PEER, 0, 0);
	struct ifinfomsg *inside = extend(sizeof *inside);
	inside->ifi_index = 2; // which comes up below: before it has its peer, it cannot
	attribute(IFLA_IFNAME, "eth0", 5);
	attribute(IFLA_NET_NS_FD, &netns, 4);
	end(peer), end(data), end(info);
	ask(host_link, "veth");

	struct ifinfomsg *eth = begin(RTM_NEWLINK, 0, sizeof *eth);
	eth->ifi_index = 2, eth->ifi_flags = eth->ifi_change = IFF_UP;
	ask(pod_link, "eth0 up");
	in_addr_t address = htonl(0x0ac70000 + number + 2), gateway = htonl(0x0ac70001);
	struct ifaddrmsg *a = begin(RTM_NEWADDR, NLM_F_CREATE, sizeof *a);
	a->ifa_family = AF_INET, a->ifa_prefixlen = 16, a->ifa_index = 2;
	attribute(IFA_LOCAL, &address, 4);
	attribute(IFA_ADDRESS, &address, 4);
	ask(pod_link, "address");
	struct rtmsg *r = begin(RTM_NEWROUTE, NLM_F_CREATE, sizeof *r);
	r->rtm_family = AF_INET, r->rtm_table = RT_TABLE_MAIN, r->rtm_protocol = RTPROT_BOOT, r->rtm_type = RTN_UNICAST;
	attribute(RTA_GATEWAY, &gateway, 4);
	ask(pod_link, "route");
}

static void mounts(void) {
	char options[1024];
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s,index=off,volatile", rootfs, at("upper%d"), at("work%d"));
	TRY(mount("", "/", "", MS_REC | MS_SLAVE, 0));
	TRY(mount("overlay", at("root"), "overlay", 0, options));
	TRY(chdir(at("root")));
	TRY(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	TRY(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
	TRY(mkdir("dev/pts", 0755));
	TRY(mkdir("dev/shm", 0755));
	TRY(mkdir("dev/mqueue", 0755));
	TRY(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
	TRY(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=65536k"));
	TRY(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	TRY(mount("sysfs", "sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	if (groups[1]) // v1: a directory a hierarchy
		TRY(mount("tmpfs", "sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=64k"));
	for (int i = 0; groups[i]; i++) {
		char target[64] = "sys/fs/cgroup";
		if (groups[1]) {
			snprintf(target, sizeof target, "sys/fs/cgroup/%d", i);
			TRY(mkdir(target, 0755));
		}
		TRY(mount(group(i, ""), target, "", MS_BIND, 0));
		TRY(mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	}
	static const char *files[] = {"etc/hosts", "etc/hostname", "etc/resolv.conf"};
	for (int i = 0; i < 3; i++)
		TRY(mount(at("file"), files[i], "", MS_BIND, 0));
	static const struct { const char *name; int minor; } nodes[] = {{"dev/null", 3}, {"dev/zero", 5}, {"dev/full", 7}, {"dev/random", 8}, {"dev/urandom", 9}};
	umask(0);
	for (int i = 0; i < 5; i++)
		TRY(mknod(nodes[i].name, S_IFCHR | 0666, makedev(1, nodes[i].minor)));
	TRY(mknod("dev/tty", S_IFCHR | 0666, makedev(5, 0)));
	TRY(symlink("/proc/self/fd", "dev/fd") | symlink("/proc/self/fd/0", "dev/stdin") | symlink("/proc/self/fd/1", "dev/stdout") |
		symlink("/proc/self/fd/2", "dev/stderr") | symlink("pts/ptmx", "dev/ptmx"));
	umask(022);
	static const char *shown[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
	for (int i = 0; i < 5; i++)
		if (mount(shown[i], shown[i], "", MS_BIND | MS_REC, 0) == 0)
			TRY(mount("", shown[i], "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	static const char *masked[] = {"proc/kcore", "proc/keys", "proc/latency_stats", "proc/timer_list", "proc/timer_stats", "proc/sched_debug"};
	for (int i = 0; i < 6; i++)
		mount("/dev/null", masked[i], "", MS_BIND, 0); // not every kernel has each
	static const char *empty[] = {"proc/asound", "proc/acpi", "proc/scsi", "sys/firmware"};
	for (int i = 0; i < 4; i++)
		mount("tmpfs", empty[i], "tmpfs", MS_RDONLY, "size=4k");
}

// workload is a pod's process before it is one. It shares memory with its parent, which waits until it executes.
__attribute__((noinline, noreturn)) static void workload(int out) {
	for (int i = 0; groups[i]; i++) {
		if (i == unified)
			continue;
		int tasks = open(group(i, "/tasks"), O_WRONLY | O_CLOEXEC);
		TRY(tasks);
		TRY(write(tasks, "0", 1));
		close(tasks);
	}
	TRY(unshare(CLONE_NEWCGROUP));
	TRY(setns(netns, CLONE_NEWNET));
	TRY(sethostname("floor", 5));
	mounts();
	TRY(syscall(SYS_pivot_root, ".", "."));
	TRY(umount2(".", MNT_DETACH));
	TRY(chdir("/"));
	dup2(out, 1), dup2(out, 2);
	close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
	for (int c = 0; c <= CAP_LAST_CAP; c++)
		if (!(0xa80425fbUL >> c & 1) || c > 31)
			prctl(PR_CAPBSET_DROP, c, 0, 0, 0);
	struct __user_cap_header_struct version = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct caps[2] = {{0xa80425fb, 0xa80425fb, 0}, {0}};
	TRY(syscall(SYS_setgroups, 0, 0));
	TRY(syscall(SYS_capset, &version, caps));
	setsid();
	char *argv[] = {"sleep", "36000", 0}, *environment[] = {"PATH=/bin", 0};
	TRY(execve("/bin/sleep", argv, environment));
	__builtin_unreachable();
}

// launch is clone3 as vfork is fork: the child goes on here, on the same stack, and must not return.
static inline __attribute__((always_inline)) long launch(struct clone_args *args) {
#if defined(__x86_64__)
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(SYS_clone3), "D"(args), "S"(sizeof *args) : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_clone3;
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = sizeof *args;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1) : "memory");
	return x0;
#endif
}

static void started(long pid) {
	if (pid < 0)
		errno = -pid, die("clone3");
	if (failed_line) {
		fprintf(stderr, "floor: line %d: %s\n", failed_line, strerror(failed_errno));
		exit(1);
	}
}

static void up(void) {
	int out[2];
	network();
	for (int i = 0; groups[i]; i++)
		MUST(mkdir(group(i, ""), 0755));
	MUST(mkdir(at("upper%d"), 0755));
	MUST(mkdir(at("work%d"), 0755));
	MUST(pipe2(out, O_CLOEXEC));
	struct clone_args args = {.flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS,
		.pidfd = (unsigned long)&pidfd, .exit_signal = SIGCHLD};
	if (unified >= 0) {
		MUST(unified_fd = open(group(unified, ""), O_PATH | O_DIRECTORY | O_CLOEXEC));
		args.flags |= CLONE_INTO_CGROUP, args.cgroup = unified_fd;
	}
	long pid = launch(&args);
	if (pid == 0)
		workload(out[1]);
	started(pid);
	close(out[0]), close(out[1]);
}

static char *stage_argv[64];

__attribute__((noinline, noreturn)) static void become_stage(int out) {
	dup2(out, 1), dup2(out, 2);
	TRY(dup2(pidfd, 3)); // without CLOEXEC
	TRY(execve(stage, stage_argv, (char *[]){0}));
	__builtin_unreachable();
}

static void exec_true(void) {
	static char tasks[16][256];
	int out[2], n = 0, status;
	char byte;
	stage_argv[n++] = "stage", stage_argv[n++] = "3";
	for (int i = 0; groups[i]; i++)
		if (i != unified)
			stage_argv[n++] = strcpy(tasks[i], group(i, "/tasks"));
	stage_argv[n++] = "--", stage_argv[n++] = "/bin/true", stage_argv[n] = 0;
	MUST(pipe2(out, O_CLOEXEC));
	struct clone_args args = {.flags = CLONE_VM | CLONE_VFORK, .exit_signal = SIGCHLD};
	if (unified >= 0)
		args.flags |= CLONE_INTO_CGROUP, args.cgroup = unified_fd;
	long pid = launch(&args);
	if (pid == 0)
		become_stage(out[1]);
	started(pid);
	close(out[1]);
	for (int i = 0; i < 2; i++) { // the stage and what it left, in any order
		MUST(waitpid(-1, &status, 0));
		if (status)
			errno = WEXITSTATUS(status), die("exec: a step failed (see stage.c), or true did");
	}
	MUST(read(out[0], &byte, 1));
	close(out[0]);
}

static void down(void) {
	siginfo_t info;
	MUST(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, 0, 0));
	MUST(waitid(P_PIDFD, pidfd, &info, WEXITED));
	close(pidfd);
	if (unified >= 0)
		close(unified_fd);
	for (int i = 0; groups[i]; i++)
		while (rmdir(group(i, "")) < 0)
			if (errno != EBUSY)
				die("rmdir of a cgroup");
	rmdir(at("upper%d"));
	unlink(at("work%d/work/incompat/volatile/dirty"));
	rmdir(at("work%d/work/incompat/volatile")), rmdir(at("work%d/work/incompat"));
	rmdir(at("work%d/work")), rmdir(at("work%d"));
	MUST(umount2(at("ns%d"), MNT_DETACH));
	unlink(at("ns%d"));
	close(netns), close(pod_link);
}

int main(int argc, char **argv) {
	if (argc < 6)
		return fprintf(stderr, "usage: floor DIR ROOTFS STAGE BRIDGE CGROUP...\n"), 2;
	dir = argv[1], rootfs = argv[2], stage = argv[3], groups = argv + 5;
	MUST((bridge = if_nametoindex(argv[4])) ? 0 : -1);
	MUST(home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
	host_link = netlink();
	mkdir(at("root"), 0755);
	close(open(at("file"), O_CREAT | O_WRONLY, 0644));
	for (int i = 0; groups[i]; i++) {
		struct statfs fs;
		MUST(statfs(groups[i], &fs));
		if (fs.f_type == CGROUP2_SUPER_MAGIC)
			unified = i;
	}
	for (int command; (command = getchar()) != EOF;) {
		struct timespec a, b;
		clock_gettime(CLOCK_MONOTONIC, &a);
		switch (command) {
		case 'p': prepare(); break;
		case 'u': up(); break;
		case 'e': exec_true(); break;
		case 'd': down(); break;
		default: continue;
		}
		clock_gettime(CLOCK_MONOTONIC, &b);
		printf("%lld\n", (b.tv_sec - a.tv_sec) * 1000000000LL + b.tv_nsec - a.tv_nsec);
		fflush(stdout);
	}
	return 0;
}
