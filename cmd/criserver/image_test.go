package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/criserver/criserver/admin/api"
)

func TestByteSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 137_000_000: "137.0 MB", 1 << 62: "4.6 EB",
	} {
		if got := byteSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestBar(t *testing.T) {
	began := time.Now().Add(-3 * time.Second).UnixNano()
	var screen bytes.Buffer
	bar := &pullBar{w: &screen}
	bar.show(nil)
	bar.show(&api.PullProgress{BeganAt: began, Phase: "resolving"})
	bar.show(&api.PullProgress{BeganAt: began, Phase: "fetching", BytesDone: 50_000_000, BytesTotal: 100_000_000, LayersDone: 3, LayersTotal: 8})
	bar.end()
	bar.end()
	want := "\r\x1b[Kresolving, 3s\r\x1b[K[###############...............] 50.0 MB of 100.0 MB, 3 of 8 layers, 3s\n"
	if screen.String() != want {
		t.Errorf("got %q, want %q", screen.String(), want)
	}
	none := &pullBar{}
	none.show(&api.PullProgress{BeganAt: began})
	none.end()
}

func TestAuthFrom(t *testing.T) {
	for name, tt := range map[string]struct {
		in, user string
		token    bool
		want     *api.Auth
		fail     string
	}{
		"none":       {in: "x"},
		"password":   {in: "p w\r\n", user: "u", want: &api.Auth{Username: "u", Password: "p w"}},
		"no newline": {in: "p", user: "u", want: &api.Auth{Username: "u", Password: "p"}},
		"token":      {in: "t\nrest", token: true, want: &api.Auth{RegistryToken: "t"}},
		"both":       {in: "t", user: "u", token: true, fail: "one of them"},
		"empty":      {in: "\n", user: "u", fail: "empty"},
		"nothing":    {user: "u", fail: "empty"},
	} {
		got, err := authFrom(strings.NewReader(tt.in), tt.user, tt.token)
		if (tt.fail == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.fail) {
			t.Errorf("%s: error %v", name, err)
		}
		if got.String() != tt.want.String() {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
