package keeper

import (
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/trim"
)

// Config says what a keeper serves.
type Config struct {
	State  string // directory of shim.sock and keeper.lock
	Shim   string // path of criserver-shim
	Keeper string // path of criserver-keeper, passed on to the shim, which starts a new keeper from it
	// Adopt means that a living shim started this keeper and is at the other end of LinkFD.
	Adopt bool
	Env   []string // environment of the shim
}

// Restart back-off: a shim is started again at once, but when more than freeDeaths in a row lived shorter than settled,
// the pause doubles up to lastDelay.
const (
	freeDeaths = 10
	firstDelay = 10 * time.Millisecond
	lastDelay  = time.Second
	settled    = 5 * time.Second
)

// trimAfter is how long after a message the keeper has nothing to do any more, as a rule.
const trimAfter = time.Second

// killAfter is how long a shim may live on without its end of the socket pair.
const killAfter = 2 * time.Second

type keeper struct {
	config Config

	mu      sync.Mutex // guards entries; nothing blocks while it is held
	entries map[string]*Entry

	children chan struct{} // a token when a child was started: wakes the reaper that had none
	shims    chan Status   // how the shim, our child, ended
	shimMu   sync.Mutex
	shimPID  int
}

// Run holds keeper.lock and serves until a shim asks to stop (exit status 0 with nothing held) or says that another one
// serves (ExitServed with nothing held). It answers ErrLocked at once when another keeper serves the directory.
func Run(c Config) error {
	runtime.GOMAXPROCS(1)
	lock, err := takeLock(c.State, c.Adopt)
	if err != nil {
		return err
	}
	defer unix.Close(lock)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	guardFromOOM()
	raiseFileLimit()

	k := &keeper{
		config:   c,
		entries:  map[string]*Entry{},
		children: make(chan struct{}, 1),
		shims:    make(chan Status, 1),
	}
	go k.reap() // ends with the process
	if c.Adopt {
		unix.CloseOnExec(LinkFD)
		k.serveAndTrim(LinkFD)
		_ = unix.Close(LinkFD)
	}
	return k.supervise()
}

// supervise starts shims until one ends on purpose.
func (k *keeper) supervise() error {
	var pause backoff
	for {
		began := time.Now()
		status, err := k.runShim()
		lived := time.Since(began)
		switch {
		case err != nil:
			say("start " + k.config.Shim + ": " + err.Error())
		case status.Code == 0 && !k.holds():
			return nil
		case status.Code == ExitServed && !k.holds():
			say("another shim serves " + k.config.State)
			return nil
		default:
			say("shim " + strconv.Itoa(status.PID) + " ended with status " + strconv.Itoa(status.Code) + " and is started again")
		}
		time.Sleep(pause.next(lived))
	}
}

// backoff counts the shims in a row that lived shorter than settled.
type backoff struct{ early int }

// next is the pause before a restart, given how long the last shim lived.
func (b *backoff) next(lived time.Duration) time.Duration {
	if lived >= settled {
		b.early = 0
		return 0
	}
	b.early++
	if b.early <= freeDeaths {
		return time.Millisecond
	}
	return min(firstDelay<<min(b.early-freeDeaths-1, 10), lastDelay)
}

// holds reports whether a container or a pod is held.
func (k *keeper) holds() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := range k.entries {
		if len(key) > 1 && (key[:2] == "c/" || key[:2] == "p/") {
			return true
		}
	}
	return false
}

// runShim starts a shim, serves it until its end of the socket pair closes, and answers how it ended.
func (k *keeper) runShim() (Status, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Status{}, err
	}
	defer unix.Close(pair[0])
	c := k.config
	argv := []string{c.Shim, "serve", "--state", c.State, "--keeper", c.Keeper, "--shim", c.Shim}
	k.shimMu.Lock() // the reaper must not meet the pid before it is known to be the shim's
	pid, err := syscall.ForkExec(c.Shim, argv, &syscall.ProcAttr{
		Env:   c.Env,
		Files: []uintptr{0, 1, 2, uintptr(pair[1])},
	})
	k.shimPID = pid
	k.shimMu.Unlock()
	_ = unix.Close(pair[1])
	if err != nil {
		return Status{}, err
	}
	select {
	case k.children <- struct{}{}:
	default:
	}
	k.serveAndTrim(pair[0])
	select {
	case s := <-k.shims:
		return s, nil
	case <-time.After(killAfter):
		say("shim " + strconv.Itoa(pid) + " closed its link and lives: it is killed")
		_ = unix.Kill(pid, unix.SIGKILL) // not reaped yet, or k.shims would have it: the pid is still the shim's
		return <-k.shims, nil
	}
}

// serveAndTrim is serve. A second after the start and after the last message the program's pages are given back.
func (k *keeper) serveAndTrim(sock int) {
	trimming := time.AfterFunc(trimAfter, trim.Text)
	defer trimming.Stop()
	k.serve(sock, func() { trimming.Reset(trimAfter) })
}

// reap collects every child that ends, the orphans that come to this subreaper included.
func (k *keeper) reap() {
	for {
		s, err := Wait(unix.P_ALL, 0, unix.WEXITED|unix.WNOWAIT)
		if err != nil { // ECHILD
			<-k.children
			continue
		}
		k.record(s)
		// Only now may the pid be used again.
		_, _ = Wait(unix.P_PID, s.PID, unix.WEXITED|unix.WNOHANG)
		k.shimMu.Lock()
		shim := s.PID == k.shimPID
		if shim {
			k.shimPID = 0
		}
		k.shimMu.Unlock()
		if shim {
			k.shims <- s
		}
	}
}

// record writes the exit record of a process that has ended and is not reaped yet, if one is wanted.
func (k *keeper) record(s Status) {
	at := time.Now().UnixNano()
	var dirs []string
	k.mu.Lock()
	for _, e := range k.entries {
		if e.PID == s.PID && e.Dir != "" && isChild(e.FD("pidfd"), s.PID) {
			dirs = append(dirs, e.Dir)
		}
	}
	k.mu.Unlock()
	for _, dir := range dirs {
		err := WriteExit(dir, FormatExit(s.Code, at, false, ""))
		if err != nil && err != unix.EEXIST {
			say("write " + dir + "/" + ExitFile + ": " + err.Error())
		}
	}
}

// isChild reports whether pidfd names the ended child pid, and not an earlier process with the same number.
func isChild(pidfd, pid int) bool {
	if pidfd < 0 {
		return false
	}
	s, err := Wait(unix.P_PIDFD, pidfd, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	return err == nil && s.PID == pid
}
