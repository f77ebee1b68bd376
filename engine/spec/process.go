package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (b *builder) process(s *specs.Spec) error {
	c := b.in.Container
	args, err := b.args()
	if err != nil {
		return err
	}
	env, err := b.env()
	if err != nil {
		return err
	}
	cwd := c.WorkingDir
	if cwd == "" {
		cwd = b.in.Image.WorkingDir
	}
	if strings.ContainsRune(cwd, 0) {
		return invalid("container's working directory %q: has a zero byte", cwd)
	}
	u := b.in.User
	s.Process = &specs.Process{
		Terminal:        c.TTY,
		User:            specs.User{UID: u.UID, GID: u.GID, AdditionalGids: slices.Clone(u.AdditionalGIDs)},
		Args:            args,
		Env:             env,
		Cwd:             path.Join("/", cwd),
		NoNewPrivileges: c.Security.NoNewPrivs,
	}
	for _, r := range c.Rlimits {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: r.Type, Soft: r.Soft, Hard: r.Hard})
	}
	b.oomScore(s.Process)
	return b.rlimits(c.Rlimits)
}

// args are command and args over the image's entrypoint and cmd: a command drops both, args drop the cmd alone.
func (b *builder) args() ([]string, error) {
	c, image := b.in.Container, b.in.Image
	command, args := c.Command, c.Args
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		return nil, invalid("container has neither command nor args, and image %s neither entrypoint nor cmd: name a command", c.Image)
	}
	if all[0] == "" {
		return nil, invalid("container's command is an empty string")
	}
	for i, arg := range all {
		if strings.ContainsRune(arg, 0) {
			return nil, invalid("argument %d of the container's command has a zero byte", i)
		}
	}
	return all, nil
}

// env is the image's environment, then the container's over it. PATH, HOSTNAME, HOME and (with a terminal) TERM have defaults.
func (b *builder) env() ([]string, error) {
	var env []string
	position := map[string]int{}
	set := func(entry string) {
		name, _, _ := strings.Cut(entry, "=")
		if i, ok := position[name]; ok {
			env[i] = entry
			return
		}
		position[name] = len(env)
		env = append(env, entry)
	}
	set(defaultPath)
	set("HOSTNAME=" + b.in.Hostname)
	if b.in.Container.TTY {
		set("TERM=xterm")
	}
	if b.in.User.Home != "" {
		set("HOME=" + b.in.User.Home)
	}
	for _, entry := range b.in.Image.Env {
		// An image's entry without a value is of no use and no reason to refuse the image.
		if name, _, ok := strings.Cut(entry, "="); ok && name != "" {
			set(entry)
		}
	}
	for _, entry := range b.in.Container.Env {
		name, _, ok := strings.Cut(entry, "=")
		if !ok || name == "" {
			return nil, invalid("container's environment variable %q: must be NAME=value", entry)
		}
		set(entry)
	}
	for _, entry := range env {
		if name, _, _ := strings.Cut(entry, "="); strings.ContainsRune(entry, 0) {
			return nil, invalid("environment variable %q has a zero byte", name)
		}
	}
	return env, nil
}

// oomScore sets the score always, since it would be inherited from the daemon otherwise.
func (b *builder) oomScore(p *specs.Process) {
	score, warning := OOMScoreAdj(b.in.Container.Resources, b.in.Host)
	if warning != "" {
		b.warn("%s", warning)
	}
	p.OOMScoreAdj = &score
}

// OOMScoreAdj is the score that a process can be given of what was asked for, and, where it is another, why.
func OOMScoreAdj(r Resources, host Host) (score int, warning string) {
	score = int(min(max(r.OOMScoreAdj, -1000), 1000))
	if floor := host.OOMScoreAdjMin; score < floor {
		return floor, fmt.Sprintf("oom_score_adj %d is raised to %d: lowering it needs CAP_SYS_RESOURCE, which this daemon lacks", score, floor)
	}
	return score, ""
}

func (b *builder) rlimits(limits []Rlimit) error {
	seen := map[string]bool{}
	for _, r := range limits {
		switch {
		case !strings.HasPrefix(r.Type, "RLIMIT_"):
			return invalid("rlimit %q: must be a name such as RLIMIT_NOFILE", r.Type)
		case seen[r.Type]:
			return invalid("rlimit %s is given twice", r.Type)
		case r.Soft > r.Hard:
			return invalid("rlimit %s: the soft limit %d is above the hard limit %d", r.Type, r.Soft, r.Hard)
		}
		seen[r.Type] = true
	}
	return nil
}
