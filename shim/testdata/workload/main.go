// Command workload is what runs in the containers of the shim's tests: the first argument says what it does.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := os.Args[1:]
	switch args[0] {
	case "exit": // CODE
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "echo": // OUT ERR
		fmt.Println(args[1])
		fmt.Fprintln(os.Stderr, args[2])
	case "count": // UNTIL MILLISECONDS [CODE]: numbered lines, then exit
		until, _ := strconv.Atoi(args[1])
		pause, _ := strconv.Atoi(args[2])
		for i := range until {
			fmt.Println("line", i)
			time.Sleep(time.Duration(pause) * time.Millisecond)
		}
		if len(args) > 3 {
			code, _ := strconv.Atoi(args[3])
			os.Exit(code)
		}
	case "flood": // BYTES
		n, _ := strconv.Atoi(args[1])
		line := strings.Repeat("f", 99) + "\n"
		for ; n > 0; n -= len(line) {
			_, _ = os.Stdout.WriteString(line)
		}
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "term": // exits with 3 at SIGTERM
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		os.Exit(3)
	case "spawn": // a child that sleeps and holds the output open
		self, _ := os.Executable()
		cmd := exec.Command(self, "sleep")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		_ = cmd.Start()
		fmt.Println("spawned")
		if len(args) > 1 { // stay
			time.Sleep(time.Hour)
		}
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "eat":
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
		}
	case "tty":
		_, err := os.Stdin.Stat()
		fmt.Println("terminal", isTerminal(), err)
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Printf("read %q\n", line)
	case "oom":
		b, _ := os.ReadFile("/proc/self/oom_score_adj")
		fmt.Print(string(b))
	}
}

func isTerminal() bool {
	target, err := os.Readlink("/proc/self/fd/0")
	return err == nil && strings.HasPrefix(target, "/dev/")
}
