package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// network measures TCP between two pods. This process makes the sockets inside the pods' network namespaces and then reads
// and writes them, so that no program in a container is measured.
func (b *bench) network(ctx context.Context) error {
	speed, trip := map[*subject]float64{}, map[*subject]*float64{}
	conns := map[*subject][2]net.Conn{}
	for _, s := range b.both() {
		pods, err := s.ups(ctx, 2, 1, "")
		if err != nil {
			return err
		}
		if conns[s], err = s.connect(ctx, pods); err != nil {
			return s.failed(err)
		}
		defer func() {
			_ = conns[s][0].Close()
			_ = conns[s][1].Close()
			_ = s.downs(ctx, pods, 1, "") // the place ends soon, too
		}()
	}
	for range rounds {
		for _, s := range b.both() {
			if err := s.pingPong(conns[s], 1000); err != nil {
				return s.failed(err)
			}
		}
	}
	for range rounds {
		for _, s := range b.both() {
			rate, err := stream(conns[s], time.Duration(b.netSeconds*float64(time.Second)))
			if err != nil {
				return s.failed(err)
			}
			speed[s] = max(speed[s], rate)
		}
	}
	for _, s := range b.both() {
		trip[s] = ptr(*s.times.ms("round trip", 0.5) * 1000)
	}
	b.report.add(groupNet, "TCP stream", "Mbit/s", ptr(speed[b.ours]), ptr(speed[b.peer]))
	b.report.add(groupNet, "TCP round trip of a byte", "us", trip[b.ours], trip[b.peer])
	return nil
}

// connect makes a connection from the second pod to the first.
func (s *subject) connect(ctx context.Context, pods []*pod) (ends [2]net.Conn, err error) {
	status, err := s.runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: pods[0].id})
	if err != nil {
		return ends, err
	}
	address := net.JoinHostPort(status.Status.Network.Ip, "7000")
	var spaces [2]string
	for i, p := range pods {
		if spaces[i], err = s.netns(ctx, p); err != nil {
			return ends, err
		}
	}
	var listener net.Listener
	if err := inside(spaces[0], func() (err error) { listener, err = net.Listen("tcp", address); return err }); err != nil {
		return ends, err
	}
	defer listener.Close()
	err = inside(spaces[1], func() (err error) {
		ends[1], err = net.DialTimeout("tcp", address, 10*time.Second)
		return err
	})
	if err != nil {
		return ends, err
	}
	ends[0], err = listener.Accept()
	return ends, err
}

// netns is the path of a pod's network namespace: that of the process whose addresses have the pod's.
func (s *subject) netns(ctx context.Context, p *pod) (string, error) {
	status, err := s.runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		return "", err
	}
	pids, err := s.workloads()
	if err != nil {
		return "", err
	}
	for _, pid := range pids {
		path, found := fmt.Sprintf("/proc/%d/ns/net", pid), false
		err := inside(path, func() error {
			addresses, err := net.InterfaceAddrs()
			for _, a := range addresses {
				if ip, ok := a.(*net.IPNet); ok && ip.IP.String() == status.Status.Network.Ip {
					found = true
				}
			}
			return err
		})
		if err != nil {
			return "", err
		}
		if found {
			return path, nil
		}
	}
	return "", fmt.Errorf("no process of %d is in the network namespace of pod %s with %s", len(pids), p.id, status.Status.Network.Ip)
}

// inside does something in a network namespace. The thread that was there ends with it.
func inside(path string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		f, err := os.Open(path)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// pingPong notes the round trips of a byte.
func (s *subject) pingPong(ends [2]net.Conn, n int) error {
	go func() {
		_, _ = io.CopyN(ends[0], ends[0], int64(n)) // what fails here fails there
	}()
	one := []byte{0}
	for range n {
		err := s.times.time("round trip", func() error {
			if _, err := ends[1].Write(one); err != nil {
				return err
			}
			_, err := io.ReadFull(ends[1], one)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// stream is how much comes through for a while, Mbit/s.
func stream(ends [2]net.Conn, how time.Duration) (float64, error) {
	const block = 128 << 10
	sent := make(chan int64, 1)
	start := time.Now()
	go func() {
		buffer, n := make([]byte, block), int64(0)
		for time.Since(start) < how {
			got, err := ends[1].Write(buffer)
			n += int64(got)
			if err != nil {
				break
			}
		}
		sent <- n
	}()
	buffer, n, total := make([]byte, block), int64(0), int64(-1)
	for n != total {
		select {
		case total = <-sent:
			continue
		default:
		}
		// A deadline, so that the end of the sender is seen.
		if err := ends[0].SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return 0, err
		}
		got, err := ends[0].Read(buffer)
		n += int64(got)
		if err != nil && !os.IsTimeout(err) {
			return 0, err
		}
	}
	took := time.Since(start)
	return float64(n) * 8 / 1e6 / took.Seconds(), ends[0].SetReadDeadline(time.Time{})
}
