package registry

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestDockerConfig(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for name, script := range map[string]string{
		"store": `read server
case "$server" in
https://index.docker.io/v1/) echo '{"ServerURL":"x","Username":"hub","Secret":"p"}';;
token.example) echo '{"Username":"<token>","Secret":"t"}';;
broken.example) echo 'nothing';;
locked.example) echo 'the keyring is locked'; exit 1;;
*) echo 'credentials not found in native keychain'; exit 1;;
esac`,
		"other": `echo '{"Username":"other","Secret":"'"$1"'"}'`,
	} {
		if err := os.WriteFile(filepath.Join(bin, helperPrefix+name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "config.json")
	lookup := DockerConfigFile(file)
	if auth, err := lookup(t.Context(), "r.example", "a"); err != nil || !auth.IsZero() {
		t.Errorf("without a file: %+v, %v", auth, err)
	}
	write := func(content string) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"r.example:5000":{"identitytoken":"t"},"helper.example":{},
		"http://r.example/team/":{"username":"team","password":"p"},"r.example/team/app":{"registrytoken":"app"},"r.example/v2":{"auth":"dTpw"}},
		"credHelpers":{"gcr.example":"other","https://gone.example/":"gone"},"HttpHeaders":{"a":"b"}}`)
	for _, test := range []struct {
		host, repository string
		want             Auth
	}{
		{"registry-1.docker.io", "library/a", Auth{Auth: "dTpw"}},
		{"r.example:5000", "a", Auth{IdentityToken: "t"}},
		{"helper.example", "a", Auth{}},
		{"r.example", "a", Auth{Auth: "dTpw"}},
		{"r.example", "team/other", Auth{Username: "team", Password: "p"}},
		{"r.example", "team/app", Auth{RegistryToken: "app"}},
		{"r.example", "team/app2", Auth{Username: "team", Password: "p"}},
		{"gcr.example", "a", Auth{Username: "other", Password: "get"}},
	} {
		if got, err := lookup(t.Context(), test.host, test.repository); got != test.want || err != nil {
			t.Errorf("%s/%s: %+v, %v", test.host, test.repository, got, err)
		}
	}
	if _, err := lookup(t.Context(), "gone.example", "a"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "docker-credential-gone") {
		t.Errorf("a helper that is not there: %v", err)
	}
	write(`{"auths":{"file.example":{"auth":"dTpw"}},"credsStore":"store"}`) // counts at once
	for host, want := range map[string]Auth{
		"registry-1.docker.io": {Username: "hub", Password: "p"}, "token.example": {IdentityToken: "t"}, "none.example": {}, "file.example": {Auth: "dTpw"},
	} {
		if got, err := lookup(t.Context(), host, "a"); got != want || err != nil {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	for host, text := range map[string]string{"broken.example": "of no use", "locked.example": "the keyring is locked"} {
		if _, err := lookup(t.Context(), host, "a"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, bad := range []string{`{`, `{"auths":{"r":{"auth":"%"}}}`, `{"credsStore":"../sh"}`, `{"credHelpers":{"r":"a b"}}`, `{"auths":{"%zz":{"auth":"dTpw"}}}`} {
		write(bad)
		if _, err := lookup(t.Context(), "r", "a"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestParseHosts(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "server = 'https://a'\n": "", "[host.'a:5000']\n": "", "[host.a]\n[host.a.header]\nx = 'y'\n": "",
		"ca = ['a', 'b']\nclient = [['c', 'd'], 'e']\n": "",
		"serverr = 'a'\n":                       "unknown key serverr",
		"[host.a]\ncapabilites = []\n":          "capabilites",
		"capabilities = ['fly']\n":              `"fly" is none of`,
		"[host.a]\nca = 3\n":                    `host."a": ca: 3 is neither`,
		"client = [['a', 'b', 'c']]\n":          "pair of files",
		"ca = [['a', 'b']]\n":                   "is not a file",
		"[host.a.header]\nx = 1\n":              "header.x",
		"dial_timeout = '3'\n":                  "dial_timeout",
		"server = 'ftp://a'\n":                  "server",
		"server = 'https://u:p@a'\n":            "has no user",
		"host = {'https://a' = {}}\n":           "write it as a table",
		"host.'https://a'.skip_verify = true\n": "write it as a table",
		"[host]\n":                              "",
		"[host.'http://']\n":                    "is not a URL",
	} {
		_, err := parseHosts([]byte(text))
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
