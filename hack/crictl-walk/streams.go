package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runner runs a command that needs more than to be waited for, and answers with what it printed.
type runner struct {
	before string // what stands before the command on the page
	run    func(ctx context.Context, cmd *exec.Cmd) (string, error)
}

// given runs a command with a line of input, which then ends.
func given(line string) runner {
	return runner{before: "echo " + line + " | ", run: func(_ context.Context, cmd *exec.Cmd) (string, error) {
		cmd.Stdin = strings.NewReader(line + "\n")
		return output(cmd)
	}}
}

func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// onTerminal runs a command on a terminal of this size, on which line is typed.
func onTerminal(columns, rows uint16, line string) runner {
	return runner{run: func(ctx context.Context, cmd *exec.Cmd) (string, error) {
		master, slave, err := openTerminal(columns, rows)
		if err != nil {
			return "", err
		}
		defer master.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		err = cmd.Start()
		_ = slave.Close()
		if err != nil {
			return "", err
		}
		if _, err := io.WriteString(master, line); err != nil {
			return "", errors.Join(err, cmd.Wait())
		}
		var printed bytes.Buffer
		_, _ = io.Copy(&printed, master) // ends with EIO, when nobody has the other side any more
		text := strings.ReplaceAll(printed.String(), "\r\n", "\n")
		if err := cmd.Wait(); err != nil {
			return "", fmt.Errorf("%w: %s", err, text)
		}
		return text, nil
	}}
}

func openTerminal(columns, rows uint16) (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	number, e := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	err = errors.Join(err, e, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

// whileFetching fetches a URL while a command runs that makes it answer, and answers with what came.
func whileFetching(url string) runner {
	return runner{run: func(ctx context.Context, cmd *exec.Cmd) (string, error) {
		var printed bytes.Buffer
		cmd.Stdout, cmd.Stderr = &printed, &printed
		if err := cmd.Start(); err != nil {
			return "", err
		}
		body, err := fetch(ctx, url)
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it was interrupted
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, printed.String())
		}
		return printed.String() + "# curl " + url + "\n" + body, nil
	}}
}

// fetch tries until there is an answer.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			body, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			return string(body), err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
