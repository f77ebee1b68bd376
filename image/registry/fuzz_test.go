package registry

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
)

// FuzzHosts holds our reading of hosts.toml against the library's that applies it: what we let pass it must not reject, for it
// would then take the file for none, and it must make of it as many endpoints as there are tables.
func FuzzHosts(f *testing.F) {
	for _, seed := range []string{
		"", "server = \"https://a\"\n", "[host.\"https://m\"]\ncapabilities = [\"pull\", \"resolve\"]\nskip_verify = true\n",
		"server = \"https://a/x\"\n[host.\"http://b:5000/v2/c\"]\noverride_path = true\ndial_timeout = \"3s\"\n[host.\"http://b:5000/v2/c\".header]\nx = [\"y\", \"z\"]\n",
		"ca = \"/none\"\n", "client = [[\"a\", \"b\"], \"c\"]\n", "host = {\"https://a\" = {}}\n", "[host]\n", "[[host.a]]\n", "capabilities = [\"fly\"]\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		files, err := parseHosts([]byte(text))
		if err != nil || len(files) > 0 { // files are opened, and are not there
			return
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		hosts, err := config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: func(string) (string, error) { return dir, nil }})("registry.example")
		if err != nil {
			t.Fatalf("we took %q, the library does not: %v", text, err)
		}
		tables := map[string]bool{}
		for _, name := range hostTables([]byte(text)) {
			tables[name] = true
		}
		if len(hosts) < len(tables)+1 {
			t.Fatalf("of %q there are %d endpoints, with %d tables", text, len(hosts), len(tables))
		}
	})
}

// FuzzDockerConfig reads any config.json, and looks for credentials in what could be read.
func FuzzDockerConfig(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"r.example:5000/team":{"identitytoken":"t"}}}`,
		`{"credHelpers":{"r.example":"../x"}}`, `{"credsStore":"secretservice"}`, `{"auths":{"":{"username":"u"}}}`, `{"auths":{"%zz":{"auth":"dTpw"}}}`,
	} {
		f.Add([]byte(seed), "r.example:5000", "team/app")
	}
	f.Fuzz(func(t *testing.T, text []byte, host, repository string) {
		c, err := ParseDockerConfig(text)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		for _, helper := range append([]string{c.store}, mapValues(c.helpers)...) {
			if strings.ContainsAny(helper, "/ \x00") {
				t.Errorf("%q lets a helper be %q", text, helper)
			}
		}
		c.helpers, c.store = nil, "" // no programs are run here
		if _, err := c.Lookup(context.Background(), host, repository); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}

func mapValues(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}
