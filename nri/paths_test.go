package nri

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Only root can put plugins in place, and the socket of another server is left alone.
func TestPathsAreRoots(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, c *Config)
		want    string
	}{
		"nothing there": {func(*testing.T, *Config) {}, ""},
		"left socket": {func(t *testing.T, c *Config) {
			l := listen(t, c.SocketPath)
			l.SetUnlinkOnClose(false)
			l.Close()
		}, ""},
		"socket in use": {func(t *testing.T, c *Config) {
			l := listen(t, c.SocketPath)
			t.Cleanup(func() { l.Close() })
		}, "another server answers"},
		"no socket": {func(t *testing.T, c *Config) {
			mkdir(t, filepath.Dir(c.SocketPath), 0o700)
			if err := os.WriteFile(c.SocketPath, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is no socket"},
		"open directory": {func(t *testing.T, c *Config) { mkdir(t, filepath.Dir(c.SocketPath), 0o777) }, "writable by others"},
		"open plugins":   {func(t *testing.T, c *Config) { mkdir(t, c.PluginPath, 0o775) }, "writable by others"},
		"foreign config": {func(t *testing.T, c *Config) {
			mkdir(t, c.PluginConfigPath, 0o700)
			if err := os.Chown(c.PluginConfigPath, 1000, 1000); err != nil {
				t.Fatal(err)
			}
		}, "writable by others"},
		"open directory of no socket": {func(t *testing.T, c *Config) {
			c.DisableConnections = true
			mkdir(t, filepath.Dir(c.SocketPath), 0o777)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := Config{
				SocketPath: filepath.Join(dir, "run", "nri.sock"), PluginPath: filepath.Join(dir, "plugins"), PluginConfigPath: filepath.Join(dir, "conf"),
			}
			test.prepare(t, &c)
			err := (&Plugins{cfg: c}).checkPaths()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func mkdir(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
}

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	mkdir(t, filepath.Dir(path), 0o700)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}
