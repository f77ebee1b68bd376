// Command vm runs a command in a virtual machine with Debian's cloud kernel (6.1 in Debian 12), cgroup v2 and an ext4
// root, so that what the kernel of this machine lacks is tested too. It needs no KVM: the processor is emulated.
//
//	hack/vm/run [flags] -- command arguments...
//
// The command and what it needs are copied in with -add. Its output is streamed; its exit code is that of vm. 124
// means that the time limit passed, 125 that the machine could not be made or ended without a result.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Exit codes that are not the command's.
const (
	exitTimeout = 124
	exitMachine = 125
)

// list collects a flag that may be given many times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// options are what the command line asks for.
type options struct {
	cache   string
	timeout time.Duration
	memory  int
	disk    int
	append  string
	selinux bool
	add     list
	debs    list
	env     list
	command []string
}

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
	}
	os.Exit(code)
}

func parse() options {
	var o options
	flag.StringVar(&o.cache, "cache", "hack/cache/vm", "`directory` for the kernel and the machine's files")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "time limit of the whole run")
	flag.IntVar(&o.memory, "m", 2048, "memory in MiB")
	flag.IntVar(&o.disk, "disk", 3072, "size of the root disk in MiB (sparse)")
	flag.StringVar(&o.append, "append", "", "more kernel parameters")
	flag.BoolVar(&o.selinux, "selinux", false, "enforce the policy of hack/vm/policy.conf, instead of AppArmor")
	flag.Var(&o.add, "add", "`source:destination` copied into the machine, a file or a directory; repeatable")
	flag.Var(&o.debs, "debs", "`set` of Debian packages that is unpacked in the machine (criu, handlers); repeatable")
	flag.Var(&o.env, "env", "`KEY=value` for the command; repeatable")
	flag.Parse()
	o.command = flag.Args()
	return o
}

func run() (int, error) {
	o := parse()
	if len(o.command) == 0 {
		return 2, errors.New("no command; use: hack/vm/run [flags] -- command arguments")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()

	kernel, err := fetchKernel(ctx, o.cache)
	if err != nil {
		return exitMachine, err
	}
	work, err := os.MkdirTemp(o.cache, "run-")
	if err != nil {
		return exitMachine, err
	}
	defer os.RemoveAll(work)
	if err := makeInitramfs(ctx, kernel, filepath.Join(work, "initrd")); err != nil {
		return exitMachine, fmt.Errorf("initramfs: %w", err)
	}
	if err := makeDisk(ctx, o, work); err != nil {
		return exitMachine, fmt.Errorf("root disk: %w", err)
	}
	return boot(ctx, o, kernel, work)
}

// makeDisk makes an ext4 image with the files that were asked for. They are gathered in a directory first because
// mkfs.ext4 -d takes only one; hard links are used where they can be.
func makeDisk(ctx context.Context, o options, work string) error {
	root := filepath.Join(work, "root")
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "run", "tmp", "var/lib", "var/log", "root"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := writeEtc(filepath.Join(root, "etc")); err != nil {
		return err
	}
	for _, set := range o.debs {
		if err := unpackDebs(ctx, o.cache, set, root); err != nil {
			return err
		}
	}
	if o.selinux {
		if err := addPolicy(ctx, o.cache, root); err != nil {
			return fmt.Errorf("SELinux policy: %w", err)
		}
	}
	for _, pair := range o.add {
		from, to, ok := strings.Cut(pair, ":")
		if !ok || !filepath.IsAbs(to) {
			return fmt.Errorf("-add %q: want source:/absolute/destination", pair)
		}
		dest := filepath.Join(root, filepath.Clean(to))
		if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
			return err
		}
		// -L: what is a link on this machine may point outside what is copied.
		if err := command(ctx, "cp", "-rL", "--preserve=mode", from, dest); err != nil {
			return err
		}
	}
	job := strings.Join(o.command, "\x00") + "\n" + strings.Join(o.env, "\x00")
	if err := os.WriteFile(filepath.Join(root, "job"), []byte(job), 0o644); err != nil {
		return err
	}
	image := filepath.Join(work, "disk")
	err := command(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", root, image,
		strconv.Itoa(o.disk)+"M")
	if err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// writeEtc writes the few files of /etc that programs expect.
func writeEtc(etc string) error {
	files := map[string]string{
		"passwd":      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"group":       "root:x:0:\nnogroup:x:65534:\n",
		"hosts":       "127.0.0.1 localhost\n::1 localhost\n",
		"hostname":    "vm\n",
		"resolv.conf": "nameserver 127.0.0.1\n",
		"os-release":  "NAME=vm\nID=vm\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// boot runs the machine to its end and answers with the command's exit code, which the guest's init writes to the
// second serial port: nothing else writes there, so kernel messages cannot hide it.
func boot(ctx context.Context, o options, kernel kernel, work string) (int, error) {
	result := filepath.Join(work, "result")
	params := "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic random.trust_cpu=on mitigations=off no_timer_check cgroup_no_v1=all " + o.append
	if slices.Contains(o.debs, "systemd") {
		params += " systemd.unit=job.service systemd.show_status=false"
	}
	if o.selinux {
		params += " security=selinux enforcing=1"
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(o.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel.image, "-initrd", filepath.Join(work, "initrd"), "-append", params,
		"-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out",
		"-serial", "file:"+result,
		"-drive", "if=none,id=disk,format=raw,cache=unsafe,file="+filepath.Join(work, "disk"),
		"-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci")
	// The machine must not outlive this process, and not see the terminal's interrupt before it does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return exitMachine, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return exitMachine, fmt.Errorf("qemu: %w", err)
	}
	stream(os.Stdout, out)
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return exitTimeout, fmt.Errorf("stopped after %v: %w", time.Since(start).Round(time.Second), ctx.Err())
	}
	if waitErr != nil {
		return exitMachine, fmt.Errorf("qemu: %w", waitErr)
	}
	text, err := os.ReadFile(result)
	if err != nil {
		return exitMachine, err
	}
	code, err := parseResult(string(text))
	if err != nil {
		return exitMachine, err
	}
	fmt.Fprintf(os.Stderr, "vm: exit code %d after %v\n", code, time.Since(start).Round(100*time.Millisecond))
	return code, nil
}

// parseResult reads "exit N" as the guest's init writes it.
func parseResult(text string) (int, error) {
	text = strings.TrimSpace(strings.ReplaceAll(text, "\r", ""))
	num, ok := strings.CutPrefix(text, "exit ")
	if !ok {
		if text == "" {
			text = "nothing"
		}
		return 0, fmt.Errorf("the machine ended without a result (it said %s): its kernel or init failed, see the output above", text)
	}
	return strconv.Atoi(num)
}

// stream copies the console without the carriage returns that the terminal layer of the guest adds.
func stream(w io.Writer, r io.Reader) {
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadString('\n')
		io.WriteString(w, strings.ReplaceAll(line, "\r", ""))
		if err != nil {
			return
		}
	}
}

// command runs a program of this machine; its standard error is part of the error.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
