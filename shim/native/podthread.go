package native

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A pod without a process of its own needs no stage: a thread of the shim makes the namespaces and comes back from them.

// madeByThread says whether a thread can make what a pod needs. It cannot be the first process of a pid namespace, nor join a
// user namespace, and a mount namespace would take its working directory from it.
func (r *Runtime) madeByThread(c PodConfig) bool {
	return !c.PID && c.owner == nil && c.Cgroup == nil && len(podRoots(r.host, c)) == 0
}

// podByThread makes a pod's namespaces and shared memory. When it fails nothing is left.
func podByThread(c PodConfig) (*Pod, error) {
	owned := map[specs.LinuxNamespaceType]bool{specs.IPCNamespace: c.IPC, specs.UTSNamespace: c.UTS, specs.NetworkNamespace: c.Netns != ""}
	values := map[string]string{} // file -> value
	for key, value := range c.Sysctls {
		file, err := sysctlFile(key, func(kind specs.LinuxNamespaceType) bool { return owned[kind] })
		if err != nil {
			return nil, fmt.Errorf("linux.sysctl: %w", err)
		}
		values[file] = value
	}
	pod := &Pod{Namespaces: map[specs.LinuxNamespaceType]*os.File{}}
	if err := onThread(func(t *traveller) error { return t.makePod(c, pod, values) }); err != nil {
		pod.close()
		return nil, fmt.Errorf("namespaces of the pod: %w", err)
	}
	if c.ShmSize > 0 {
		fd, err := detachedTmpfs(c.shmOptions())
		if err != nil {
			pod.close()
			return nil, err
		}
		pod.Shm = os.NewFile(uintptr(fd), "shm")
	}
	return pod, nil
}

// traveller is a thread that leaves namespaces of the shim's and comes back to them. It opens by bare calls: os.Open would offer each
// file to the poller, which takes five calls more and wakes another thread.
type traveller struct {
	home []home
}

// home is a namespace to come back to.
type home struct {
	fd, kind int
	file     string
}

func open(path string, flags int) (int, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// onThread runs work on a thread that no other goroutine has meanwhile. A thread that cannot go home is not used again.
func onThread(work func(*traveller) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var t traveller
		err := work(&t)
		lost := t.goHome()
		if lost == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
		done <- errors.Join(err, lost)
	}()
	return <-done
}

// leave keeps the way back to a namespace of the thread's.
func (t *traveller) leave(file string, kind int) error {
	fd, err := open(threadSpaces+file, unix.O_RDONLY)
	if err != nil {
		return err
	}
	t.home = append(t.home, home{fd, kind, file})
	return nil
}

const threadSpaces = "/proc/thread-self/ns/"

func (t *traveller) goHome() error {
	var errs []error
	for _, h := range t.home {
		if err := unix.Setns(h.fd, h.kind); err != nil {
			errs = append(errs, fmt.Errorf("back to the shim's %s namespace: %w", h.file, err))
		}
		_ = unix.Close(h.fd)
	}
	return errors.Join(errs...)
}

func (t *traveller) makePod(c PodConfig, pod *Pod, sysctls map[string]string) error {
	flags := 0
	for _, n := range podNamespaces {
		if n.kind == specs.IPCNamespace && c.IPC || n.kind == specs.UTSNamespace && c.UTS {
			flags |= int(n.flag)
			if err := t.leave(n.file, int(n.flag)); err != nil {
				return err
			}
		}
	}
	if flags != 0 {
		if err := unix.Unshare(flags); err != nil {
			return os.NewSyscallError("unshare", err)
		}
	}
	if c.UTS && c.Hostname != "" {
		if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
			return fmt.Errorf("hostname %q: %w", c.Hostname, err)
		}
	}
	if c.Netns != "" && len(sysctls) > 0 { // it is only for sysctls
		if err := t.join(c.Netns, "net", unix.CLONE_NEWNET); err != nil {
			return err
		}
	}
	for _, file := range slices.Sorted(maps.Keys(sysctls)) {
		if err := writeSysctl(file, sysctls[file]); err != nil {
			return fmt.Errorf("linux.sysctl: %w", err)
		}
	}
	for _, n := range podNamespaces {
		if flags&int(n.flag) == 0 {
			continue
		}
		fd, err := open(threadSpaces+n.file, unix.O_RDONLY)
		if err != nil {
			return err
		}
		pod.Namespaces[n.kind] = os.NewFile(uintptr(fd), n.file)
	}
	return nil
}

// join goes to a namespace by its path.
func (t *traveller) join(path, file string, kind int) error {
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := t.leave(file, kind); err != nil {
		return err
	}
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("join the namespace %s: %w", path, err)
	}
	return nil
}

// writeSysctl writes a parameter of the namespaces that the calling thread is in.
func writeSysctl(file, value string) error {
	fd, err := open(file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	if _, err = unix.Write(fd, []byte(value)); err != nil {
		err = &os.PathError{Op: "write", Path: file, Err: err}
	}
	return errors.Join(err, unix.Close(fd))
}
