package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// helperPath is where this program is mounted in containers that run a role.
const helperPath = "/helper"

// roles are what this program does inside a container: its first argument names one.
var roles = map[string]func(args []string) int{
	"role-hold":    roleHold,
	"role-write":   roleWrite,
	"role-eat":     roleEat,
	"role-serve":   roleServe,
	"role-outside": roleOutside,
	"role-attack":  roleAttack,
	"role-stopper": roleStopper,
	"role-plugin":  rolePlugin,
	"role-hook":    roleHook,

	"role-datagrams": roleDatagrams,
}

// roleHook DIR is an OCI hook: it writes what it is given to DIR/state, and to DIR/mnt its mount namespace and $TOY.
func roleHook(args []string) int {
	state, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = os.WriteFile(args[0]+"/state", state, 0o644)
	}
	mnt, linkErr := os.Readlink("/proc/self/ns/mnt")
	err = errors.Join(err, linkErr, os.WriteFile(args[0]+"/mnt", []byte(mnt+"\n"+os.Getenv("TOY")+"\n"), 0o644))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// thisProgram is where a hook finds this program.
func thisProgram(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// roleWrite INTERVAL [LINES [CODE]] writes a numbered line every INTERVAL, ends with CODE after LINES of them, and with
// 42 on SIGTERM.
func roleWrite(args []string) int {
	interval, err := time.ParseDuration(args[0])
	if err != nil {
		return 99
	}
	lines, code := -1, 0
	if len(args) > 1 {
		lines, _ = strconv.Atoi(args[1])
	}
	if len(args) > 2 {
		code, _ = strconv.Atoi(args[2])
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	tick := time.NewTicker(interval)
	for i := 0; i != lines; i++ {
		if _, err := fmt.Printf("%d\n", i); err != nil {
			return 98 // a lost standard output is what the kill tests look for
		}
		select {
		case <-term:
			return 42
		case <-tick.C:
		}
	}
	return code
}

// roleEat takes memory until it is killed.
func roleEat([]string) int {
	var kept [][]byte
	for range 4096 {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		kept = append(kept, block)
		time.Sleep(time.Millisecond)
	}
	runtime.KeepAlive(kept)
	return 97
}

// peer answers with the address that a request came from, so that a test sees who was translated.
func peer(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	fmt.Fprintf(w, "from %s\n", host)
}

// roleServe ADDR... serves "from ADDRESS" at each address.
func roleServe(args []string) int {
	failed := make(chan error, len(args))
	for _, addr := range args {
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Printf("listening on %s\n", listener.Addr())
		go func() { failed <- http.Serve(listener, http.HandlerFunc(peer)) }()
	}
	fmt.Fprintln(os.Stderr, <-failed)
	return 1
}

// roleOutside ADDR plays a machine outside of the node: it serves "from ADDRESS" at / and fetches what /fetch?url=
// names, so that a test can look at the node from there.
func roleOutside(args []string) int {
	// Package net finds out once whether there is IPv6, by an address of the loopback, which is down in a new namespace.
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", peer)
	mux.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		body, err := fetch(r.Context(), r.URL.Query().Get("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		io.WriteString(w, body)
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(args[0], mux))
	return 1
}

// fetch gets a page with a new connection.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}
