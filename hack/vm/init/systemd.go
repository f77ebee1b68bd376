package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// systemd is process 1 where it was unpacked. It then runs this program as a service.
const systemd = "/lib/systemd/systemd"

// service turns the machine off also when this program is killed and cannot.
const service = `[Unit]
DefaultDependencies=no
FailureAction=poweroff-immediate
[Service]
Type=oneshot
ExecStart=/init job
Delegate=yes
TasksMax=infinity
TimeoutStartSec=infinity
`

func writeService() error {
	if err := os.MkdirAll("/etc/systemd/system", 0o755); err != nil {
		return err
	}
	return os.WriteFile("/etc/systemd/system/job.service", []byte(service), 0o644)
}

// serviceJob runs the command as systemd's service. What systemd has not mounted is mounted before.
func serviceJob() int {
	err := func() error {
		console, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY|unix.O_NOCTTY, 0)
		if err != nil {
			return err
		}
		os.Stdout, os.Stderr = console, console
		if err := os.MkdirAll("/dev/mqueue", 0o755); err != nil {
			return err
		}
		if err := unix.Mount("mqueue", "/dev/mqueue", "mqueue", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount mqueue: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("share the mounts: %w", err)
		}
		if err := os.Symlink("/run", "/var/run"); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return errors.Join(unix.Chmod("/tmp", 0o1777), linkUp("lo"))
	}()
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
		return 125
	}
	return runJob()
}
