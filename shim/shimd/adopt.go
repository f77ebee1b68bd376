package shimd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/keeper"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// adopt takes over what an earlier shim left: first what the keeper holds, then what only the directories tell.
func (s *Server) adopt(ctx context.Context) error {
	s.execs.endLeft()
	entries, err := s.link.list()
	if err != nil {
		return fmt.Errorf("take over from the keeper: %w", err)
	}
	slots := map[string]*slot{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Key, slotPrefix) {
			continue
		}
		owned, err := s.pool.adopt(e)
		if err != nil {
			s.note.Error("log slots are lost", "key", e.Key, "error", err)
		}
		for _, slot := range owned {
			slots[slot.owner()] = slot
		}
	}
	for _, e := range entries {
		kind, id, _ := strings.Cut(e.Key, "/")
		switch kind {
		case "c":
			s.adoptContainer(ctx, id, e, slots)
		case "p":
			s.adoptPod(id, e)
		}
	}
	s.adoptDirectories(ctx, slots)
	for _, slot := range slots { // of streams that are not there any more
		if _, err := slot.recover(0); err == nil {
			slot.setWord(slotWord{})
			s.pool.put(slot)
		}
	}
	return nil
}

// adoptContainer takes over what the keeper holds of a container. Without a record its start was cut short, and is undone.
func (s *Server) adoptContainer(ctx context.Context, id string, e keeper.Entry, slots map[string]*slot) {
	c := newContainer(id, e.Dir)
	for i, name := range e.Names {
		// Those that are read are in the poller already: non-blocking is a property of what the keeper holds.
		f := os.NewFile(uintptr(e.FDs[i]), name)
		c.held.add(name, e.FDs[i], f)
		switch name {
		case "pidfd":
			c.pidfd = e.FDs[i]
		case "stdout", "stderr":
			c.streams = append(c.streams, &stream{key: id + "/" + name, name: name, src: f})
		case "console":
			if console, err := pollable(f); err == nil {
				c.streams = append(c.streams, &stream{key: id + "/stdout", name: "stdout", src: console})
			}
		}
	}
	s.loadBinary(c)
	err := readJSON(c.dir, stateFile, &c.record)
	if err == nil && c.record.ID != id {
		err = fmt.Errorf("%s/%s is of container %q", c.dir, stateFile, c.record.ID)
	}
	if err != nil {
		s.undoStart(ctx, c, err)
		return
	}
	if i := c.logIndex(); i >= 0 {
		c.log = newLogFile(c.record.LogPath, c.held.files[i])
	}
	s.enter(c, slots)
}

func (c *container) logIndex() int {
	for i, name := range c.held.names {
		if name == "log" {
			return i
		}
	}
	return -1
}

// undoLimit bounds undoStart: nobody is served meanwhile. What it leaves, the next Start of the container ends (makeFIFO).
const undoLimit = 2 * time.Second

// undoStart ends what a start that was cut short has left. Whoever asked for it comes again.
func (s *Server) undoStart(ctx context.Context, c *container, why error) {
	if !errors.Is(why, fs.ErrNotExist) {
		s.note.Error("a container whose record cannot be read is ended", "container", c.id, "error", why)
	}
	c.failure = why
	if spec, err := c.loadSpec(); err == nil && spec.Linux.CgroupsPath != "" {
		c.cgroup, _ = cgroup.New(spec.Linux.CgroupsPath, nil)
	}
	work, cancel := context.WithTimeout(ctx, undoLimit)
	defer cancel()
	if err := s.teardown(work, c); err != nil {
		s.note.Error("a start that was cut short leaves something behind", "container", c.id, "error", err)
	}
}

// enter makes an adopted container known: its exit, if it has ended for good, or its process watched and its output read.
func (s *Server) enter(c *container, slots map[string]*slot) {
	if c.record.Cgroup != "" {
		g, err := cgroup.New(c.record.Cgroup, nil)
		if err != nil {
			s.note.Error("the cgroup of a container is lost", "container", c.id, "error", err)
		}
		c.cgroup = g
	}
	s.thawLeft(c)
	for _, st := range c.streams {
		if slot := slots[st.key]; slot != nil {
			delete(slots, st.key)
			st.log, st.pool, st.note = c.log, s.pool, s.note
			if err := st.adopt(slot); err != nil {
				s.note.Error("output is lost", "stream", st.key, "error", err)
			}
		}
	}
	c.state = running
	close(c.ready)
	s.mu.Lock()
	s.containers[c.id] = c
	s.mu.Unlock()
	s.readOutput(c)
	if c.pidfd < 0 {
		go s.onExitUnseen(c)
		return
	}
	if err := s.watch.add(c.pidfd, func() { s.onExit(c) }); err != nil {
		s.note.Error("a container's process cannot be watched", "container", c.id, "error", err)
	}
}

// onExitUnseen is onExit for a process that ended while neither shim nor keeper held it.
func (s *Server) onExitUnseen(c *container) {
	var e exitRecord
	if err := readJSON(c.dir, keeper.ExitFile, &e); err != nil {
		e = exitRecord{Code: unknownCode, ExitedAt: time.Now().UnixNano(), Reason: unknownReason}
		c.drained(drainLimit)
		if err := keeper.WriteExit(c.dir, keeper.FormatExit(e.Code, e.ExitedAt, false, e.Reason)); err != nil {
			s.note.Error("the exit record is not written", "container", c.id, "dir", c.dir, "error", err)
		}
	}
	s.publish(c, e)
}

// adoptDirectories takes over containers that the keeper does not hold, because it was killed together with the shim.
func (s *Server) adoptDirectories(ctx context.Context, slots map[string]*slot) {
	records, err := filepath.Glob(filepath.Join(s.config.State, "pods", "*", "*", stateFile))
	if err != nil {
		return
	}
	for _, path := range records {
		dir := filepath.Dir(path)
		var r record
		if err := readJSON(dir, stateFile, &r); err != nil || r.ID == "" {
			s.note.Error("a record cannot be read", "path", path, "error", err)
			continue
		}
		s.mu.Lock()
		known := s.containers[r.ID] != nil
		s.mu.Unlock()
		if known || ctx.Err() != nil {
			continue
		}
		c := newContainer(r.ID, dir)
		c.record = r
		s.loadBinary(c)
		if err := s.reopen(c); err != nil {
			s.note.Error("the output of a container is lost", "container", c.id, "error", err)
		}
		if err := s.link.put(c.entry()); err != nil {
			s.note.Error("the keeper does not hold a container", "container", c.id, "error", err)
		}
		s.recoverPod(c)
		s.enter(c, slots)
	}
}

// reopen opens what a directory's record names: the process, unless its number is another's by now, the log and the FIFOs.
func (s *Server) reopen(c *container) error {
	if fd, err := unix.PidfdOpen(c.record.PID, 0); err == nil {
		if startOf(c.record.PID) == c.record.PIDStart && !hasEnded(fd, 0) {
			c.pidfd = fd
			c.held.add("pidfd", fd, os.NewFile(uintptr(fd), "pidfd"))
		} else {
			_ = unix.Close(fd)
		}
	}
	var errs []error
	if c.record.LogFormat == api.LogFormat_LOG_FORMAT_CRI && c.record.LogPath != "" {
		f, err := openLog(c.record.LogPath)
		if err == nil {
			c.log = newLogFile(c.record.LogPath, f)
			c.held.add("log", int(f.Fd()), f)
		}
		errs = append(errs, err)
	}
	if c.record.Terminal || c.pidfd < 0 {
		return errors.Join(errs...)
	}
	dir, err := unix.Open(c.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer unix.Close(dir)
	for _, name := range []string{"stdout", "stderr"} {
		read, err := openFIFO(dir, name, unix.O_RDONLY|unix.O_NONBLOCK)
		if err == nil {
			c.held.add(name, read.fd, read.file)
			c.streams = append(c.streams, &stream{key: c.id + "/" + name, name: name, src: read.file})
		}
		errs = append(errs, err)
	}
	if c.record.Stdin {
		write, err := openFIFO(dir, "stdin", unix.O_WRONLY|unix.O_NONBLOCK)
		if err == nil {
			c.held.add("stdin", write.fd, write.file)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// recoverPod takes the namespaces of a pod from one of its containers that runs, when nobody holds them any more.
func (s *Server) recoverPod(c *container) {
	if len(c.record.Namespaces) == 0 || c.pidfd < 0 {
		return
	}
	p, mine := s.reservePod(c.record.PodID)
	if !mine {
		return
	}
	defer close(p.ready)
	p.spaces = map[string]*os.File{}
	for _, name := range c.record.Namespaces {
		if name == shmName { // a mount cannot be taken from another mount namespace: StartPod makes a new one
			continue
		}
		if f, err := os.Open("/proc/" + strconv.Itoa(c.record.PID) + "/ns/" + name); err == nil {
			p.spaces[name] = f
		}
	}
	if hasEnded(c.pidfd, 0) {
		closePod(p)
	}
	if err := s.link.put(p.entry()); err != nil {
		s.note.Error("the keeper does not hold a pod", "pod", p.id, "error", err)
	}
}

// adoptPod takes over a pod's namespaces.
func (s *Server) adoptPod(id string, e keeper.Entry) {
	p := newPod(id)
	p.spaces, p.holder, p.cgroup = map[string]*os.File{}, e.PID, e.Extra
	close(p.ready)
	for i, name := range e.Names {
		f := os.NewFile(uintptr(e.FDs[i]), name)
		if name == "pidfd" {
			p.pidfd = f
		} else {
			p.spaces[name] = f
		}
	}
	s.mu.Lock()
	s.pods[id] = p
	s.mu.Unlock()
}
