package keeper

import (
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked means that another keeper serves the state directory.
const ErrLocked = constError("another keeper holds keeper.lock")

// LockFile is the name, in the state directory, of the file that a keeper holds locked as long as it lives.
const LockFile = "keeper.lock"

// takeLock locks keeper.lock. With patience it waits up to a second: a predecessor that was killed may be ending still.
func takeLock(state string, patience bool) (int, error) {
	fd, err := unix.Open(state+"/"+LockFile, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, constError("open " + state + "/" + LockFile + ": " + err.Error())
	}
	deadline := time.Now().Add(time.Second)
	for {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if err != unix.EWOULDBLOCK || !patience || time.Now().After(deadline) {
			_ = unix.Close(fd)
			if err == unix.EWOULDBLOCK {
				return -1, ErrLocked
			}
			return -1, constError("lock " + state + "/" + LockFile + ": " + err.Error())
		}
		time.Sleep(5 * time.Millisecond)
	}
	_ = unix.Ftruncate(fd, 0)
	_, _ = unix.Pwrite(fd, []byte(strconv.Itoa(unix.Getpid())+"\n"), 0)
	return fd, nil
}

// guardFromOOM asks the kernel to kill others first. Without CAP_SYS_RESOURCE the value may not be lowered; then it stays.
func guardFromOOM() {
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = unix.Write(fd, []byte("-999"))
	_ = unix.Close(fd)
}

// raiseFileLimit lifts the soft limit of open files to the hard one: every container costs a few.
func raiseFileLimit() {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil && limit.Cur < limit.Max {
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
}

// say writes a line to the standard error. A reader that is gone does no harm: a raw write's SIGPIPE is ignored by Go's runtime.
func say(text string) {
	_, _ = unix.Write(2, []byte("criserver-keeper: "+text+"\n"))
}
