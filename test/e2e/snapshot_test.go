package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/criserver/criserver/test/e2e/rig"
)

// fdSlack is by how many descriptors a process may grow from a test to the next without a leak: up to eight idle connections of
// the daemon to the shim for execs, two sockets a namespace of the pool, connections to the registry that are kept, and the runtime's
// own. A leak adds up over the tests of a daemon.
const fdSlack = 20

// snapshot is all that a pod could leave behind, one line a thing, with how many there are. Lines name things so that
// two of the same kind that replace each other (the pool of network namespaces) are equal.
type snapshot map[string]int

func (s snapshot) add(format string, args ...any) { s[fmt.Sprintf(format, args...)]++ }

// diff lists what is more (+) and less (-) in now. Descriptor counts may grow by fdSlack.
func (s snapshot) diff(now snapshot) []string {
	var lines []string
	for line, n := range now {
		slack := 0
		if strings.HasPrefix(line, "fds ") {
			slack = fdSlack
		}
		if n > s[line]+slack {
			lines = append(lines, fmt.Sprintf("+ %s (%d, was %d)", line, n, s[line]))
		}
	}
	for line, n := range s {
		if n > now[line] && !strings.HasPrefix(line, "fds ") {
			lines = append(lines, fmt.Sprintf("- %s (%d, was %d)", line, now[line], n))
		}
	}
	slices.Sort(lines)
	return lines
}

// snapshot looks at the whole place and at the daemon's directories.
func (n *node) snapshot() (snapshot, error) {
	s := snapshot{}
	err := errors.Join(n.processes(s), n.mounts(s), links(s), nftRules(s), cgroups(s))
	for _, dir := range []string{n.d.StateDir, n.d.RootDir} {
		err = errors.Join(err, n.files(s, dir))
	}
	return s, err
}

func (n *node) processes(s snapshot) error {
	all, err := rig.Processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.PID == os.Getpid() || p.PID == 1 {
			continue
		}
		s.add("%s", processLine(p))
		name, ours := strings.CutPrefix(p.Exe, place.BinDir+"/")
		if !ours {
			continue
		}
		fds, err := os.ReadDir("/proc/" + strconv.Itoa(p.PID) + "/fd")
		if err != nil {
			continue // it has just ended
		}
		s["fds of "+name] += len(fds)
		// The daemons may have mount namespaces of their own.
		if err := mountsOf(p.PID, func(target string) { s.add("mount of %s at %s", name, n.normal(target)) }); err != nil {
			continue
		}
	}
	return nil
}

// processLine is a process's line in a snapshot. Of ours the program's name is enough: a keeper that took over has other
// arguments.
func processLine(p rig.Process) string {
	if name, ours := strings.CutPrefix(p.Exe, place.BinDir+"/"); ours {
		return "process of ours " + name
	}
	return fmt.Sprintf("process %s (%s)", p.Cmdline, p.Exe)
}

func (n *node) mounts(s snapshot) error {
	return mountsOf(os.Getpid(), func(target string) { s.add("mount %s", n.normal(target)) })
}

// mountsOf lists the mount points that a process sees.
func mountsOf(pid int, each func(target string)) error {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			each(fields[4])
		}
	}
	return nil
}

// normal hides what differs between equal things: names in the directory of network namespaces, of which some are
// made ahead.
func (n *node) normal(text string) string {
	if strings.HasPrefix(text, n.d.NetnsDir+"/") {
		return n.d.NetnsDir + "/*"
	}
	return text
}

func links(s snapshot) error {
	all, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range all {
		s.add("link %s %s", link.Type(), link.Attrs().Name)
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() { // appears when a bridge gets its first port
				s.add("address %s on %s", a.IPNet, link.Attrs().Name)
			}
		}
	}
	return nil
}

func nftRules(s snapshot) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("nftables chains: %w", err)
	}
	for _, chain := range chains {
		s.add("nft chain %d %s %s", chain.Table.Family, chain.Table.Name, chain.Name)
		rules, err := conn.GetRules(chain.Table, chain)
		if err != nil {
			return fmt.Errorf("nftables rules of %s: %w", chain.Name, err)
		}
		s[fmt.Sprintf("nft rule in %d %s %s", chain.Table.Family, chain.Table.Name, chain.Name)] += len(rules)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("nftables tables: %w", err)
	}
	for _, table := range tables {
		sets, err := conn.GetSets(table)
		if err != nil {
			return fmt.Errorf("nftables sets of %s: %w", table.Name, err)
		}
		for _, set := range sets {
			elements, err := conn.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("nftables elements of %s: %w", set.Name, err)
			}
			for _, e := range elements {
				s.add("nft element %s %s %x", table.Name, set.Name, e.Key)
			}
		}
	}
	return nil
}

// cgroups lists what is beneath the place's cgroup in every hierarchy.
func cgroups(s snapshot) error {
	roots, err := rig.CgroupRoots()
	for _, root := range roots {
		err = errors.Join(err, walk(filepath.Join(root, place.CgroupParent), func(path string, d fs.DirEntry) error {
			if d.IsDir() {
				s.add("cgroup %s", path)
			}
			return nil
		}))
	}
	return err
}

// files lists a directory of the daemon's. The content of layers is left out, and so are databases, whose presence
// is no news; a temporary name is hidden only as far as its number.
func (n *node) files(s snapshot, dir string) error {
	layers := filepath.Join(n.d.RootDir, "snapshots", "layers")
	return walk(dir, func(path string, d fs.DirEntry) error {
		s.add("file %s", path)
		if filepath.Dir(path) == layers {
			return fs.SkipDir
		}
		return nil
	})
}

// walk calls each for everything beneath dir, which may be missing; what vanishes meanwhile is no error.
func walk(dir string, each func(path string, d fs.DirEntry) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return each(path, d)
	})
}

// TestSnapshotDiff keeps the checker honest: a checker that sees nothing passes everything.
func TestSnapshotDiff(t *testing.T) {
	before := snapshot{"mount /a": 1, "mount /b": 2, "fds of x": 10, "link veth v": 1}
	for name, tt := range map[string]struct {
		now  snapshot
		want []string
	}{
		"same":         {snapshot{"mount /a": 1, "mount /b": 2, "fds of x": 10, "link veth v": 1}, nil},
		"one more":     {snapshot{"mount /a": 1, "mount /b": 3, "fds of x": 10, "link veth v": 1}, []string{"+ mount /b (3, was 2)"}},
		"one less":     {snapshot{"mount /a": 1, "mount /b": 2, "fds of x": 10}, []string{"- link veth v (0, was 1)"}},
		"some fds":     {snapshot{"mount /a": 1, "mount /b": 2, "fds of x": 10 + fdSlack, "link veth v": 1}, nil},
		"too many fds": {snapshot{"mount /a": 1, "mount /b": 2, "fds of x": 11 + fdSlack, "link veth v": 1}, []string{fmt.Sprintf("+ fds of x (%d, was 10)", 11+fdSlack)}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := before.diff(tt.now); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
