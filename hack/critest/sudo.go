package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// sudo is the program by which the suite loads AppArmor profiles. Many machines, and the virtual one, lack it, and root needs
// none: this program takes its place under this name.
const sudo = "sudo"

// makeSudo makes a directory for the end of PATH with this program as sudo.
func makeSudo(dir string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	return bin, os.Symlink(self, filepath.Join(bin, sudo))
}

// asRoot becomes the program that args name. It returns only with an error.
func asRoot(args []string) error {
	if len(args) == 0 {
		return errors.New("sudo: no program")
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, os.Environ())
}
