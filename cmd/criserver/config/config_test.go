package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDefaultNamesEveryKey(t *testing.T) {
	lines := keyLines(defaultText)
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for i := range typ.NumField() {
			field := typ.Field(i)
			key := prefix + field.Tag.Get("toml")
			if field.Type.Kind() == reflect.Struct {
				walk(key+".", field.Type)
			} else if field.Type == reflect.TypeFor[map[string]Runtime]() {
				walk(key+"."+NativeRuntime+".", field.Type.Elem())
			} else if lines[key] == 0 {
				t.Errorf("default.toml does not document %s", key)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
}

func TestDefaultIsRight(t *testing.T) {
	c := Default()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if got := c.SocketPath(); got != "/run/criserver/criserver.sock" {
		t.Errorf("socket path %q", got)
	}
	if got := time.Duration(c.Image.NoProgressTimeout); got != time.Minute {
		t.Errorf("no_progress_timeout %v", got)
	}
	parsed, err := Parse("default.toml", DefaultText())
	if err != nil || !reflect.DeepEqual(parsed, c) {
		t.Errorf("parsing the default text gives %+v, %v", parsed, err)
	}
}

func TestParse(t *testing.T) {
	for name, tt := range map[string]struct {
		text  string
		want  []string // substrings of the error; none: no error
		check func(Config) bool
	}{
		"empty": {},
		"overrides": {
			text: "root = '/srv/cri'\n[network]\nmode = 'cni'\nbin_dirs = ['/a', '/b']\n",
			check: func(c Config) bool {
				return c.Root == "/srv/cri" && len(c.Network.BinDirs) == 2 && c.State == "/run/criserver"
			},
		},
		"runtime": {
			text: "[runtimes.native]\nbase_spec = '/etc/base.json'\n[runtimes.other]\npath = '/bin/other'\npod_annotations = ['a.example/*']\n",
			check: func(c Config) bool {
				return c.Runtimes["native"].BaseSpec == "/etc/base.json" && len(c.Runtimes) == 2
			},
		},
		"other runtime only": {
			text:  "[runtimes.other]\npath = '/bin/other'\ncgroup_writable = true\n",
			check: func(c Config) bool { _, ok := c.Runtimes["native"]; return ok && c.Runtimes["other"].CgroupWritable },
		},
		"runtime without path":  {text: "[runtimes.a]\n", want: []string{"f.toml:1: runtimes.a: names no program"}},
		"relative runtime":      {text: "[runtimes.a]\npath='runc'\n", want: []string{"f.toml:2: runtimes.a.path: \"runc\" is not an absolute path"}},
		"containerd's shim":     {text: "[runtimes.a]\npath='/bin/containerd-shim-kata-v2'\n", want: []string{"f.toml:2: runtimes.a.path", "is a shim of containerd"}},
		"containerd's runtime":  {text: "[runtimes.'io.containerd.runc.v2']\npath='/bin/runc'\n", want: []string{"names a shim of containerd"}},
		"native with a path":    {text: "[runtimes.native]\npath='/bin/runc'\n", want: []string{"f.toml:2: runtimes.native.path", "own runtime"}},
		"native with arguments": {text: "[runtimes.native]\nargs=['--debug']\n", want: []string{"f.toml:1: runtimes.native: root and args"}},
		"runtime's name":        {text: "[runtimes.'a/b']\npath='/bin/runc'\n", want: []string{"runtimes.a/b", "a name is made of"}},
		"runtime's base spec":   {text: "[runtimes.a]\npath='/a'\nbase_spec='x'\n", want: []string{"f.toml:3: runtimes.a.base_spec"}},
		"runtime's glob":        {text: "[runtimes.a]\npath='/a'\npod_annotations=['[']\n", want: []string{"f.toml:3: runtimes.a.pod_annotations"}},
		"docker config":         {text: "[image]\ndocker_config='a'\n", want: []string{"f.toml:2: image.docker_config", "absolute"}},
		"verifier's directory":  {text: "[image.verifier]\nbin_dir='a'\n", want: []string{"f.toml:2: image.verifier.bin_dir", "absolute"}},
		"verifier's time":       {text: "[image.verifier]\ntimeout='0s'\n", want: []string{"f.toml:2: image.verifier.timeout"}},
		"layer size":            {text: "[image]\nmax_layer_size=1\n", want: []string{"f.toml:2: image.max_layer_size"}},
		"inflate ratio":         {text: "[image]\nmax_inflate_ratio=0\n", want: []string{"f.toml:2: image.max_inflate_ratio"}},
		"unknown key":           {text: "root = '/a'\nrooot = '/b'\n", want: []string{"f.toml:2:1: rooot: unknown key"}},
		"unknown key in table":  {text: "[network]\n\nmodus = 'cni'\n", want: []string{"f.toml:3:1: network.modus: unknown key"}},
		"unknown table":         {text: "[networks]\nmode = 'cni'\n", want: []string{"f.toml:1:", "networks", "unknown key"}},
		"two unknown keys":      {text: "a = 1\nb = 2\n", want: []string{"f.toml:1:1: a", "f.toml:2:1: b"}},
		"syntax":                {text: "root = \n", want: []string{"f.toml:1:"}},
		"wrong type":            {text: "[image]\nparallel = 'six'\n", want: []string{"f.toml:2:"}},
		"bad duration":          {text: "[image]\nno_progress_timeout = 'soon'\n", want: []string{"f.toml:2:", "not a duration"}},
		"negative duration":     {text: "[image]\nno_progress_timeout = '-1s'\n", want: []string{"f.toml:2:", "negative"}},
		"relative root":         {text: "\nroot = 'var'\n", want: []string{`f.toml:2: root: "var" is not an absolute path`}},
		"mode":                  {text: "[network]\nmode = 'bridge'\n", want: []string{"f.toml:2: network.mode", "builtin, cni"}},
		"dotted key":            {text: "network.mode = 'bridge'\n", want: []string{"f.toml:1: network.mode"}},
		"all problems at once":  {text: "root = 'a'\nstate = 'b'\n", want: []string{"f.toml:1: root", "f.toml:2: state"}},
		"tcp":                   {text: "listen = 'tcp://127.0.0.1:1'\n", want: []string{"f.toml:1: listen", "unix://"}},
		"unix url":              {text: "listen = 'unix:///run/x.sock'\n", check: func(c Config) bool { return c.SocketPath() == "/run/x.sock" }},
		"long socket by state":  {text: "state = '/" + strings.Repeat("s", 120) + "'\n", want: []string{"f.toml: listen", "at most 107"}},
		"host bits":             {text: "[network]\npod_cidrs = ['10.88.0.1/16']\n", want: []string{"f.toml:2: network.pod_cidrs", "10.88.0.0/16"}},
		"two of a family":       {text: "[network]\npod_cidrs = ['10.0.0.0/16', '10.1.0.0/16']\n", want: []string{"same family"}},
		"no range":              {text: "[network]\npod_cidrs = []\n", want: []string{"is empty"}},
		"relative NRI socket":   {text: "[nri]\nsocket_path = 'nri.sock'\n", want: []string{"f.toml:2: nri.socket_path", "absolute"}},
		"no time for plugins":   {text: "[nri]\nplugin_request_timeout = '0s'\n", want: []string{"nri.plugin_request_timeout"}},
		"validator":             {text: "[nri.default_validator]\nenable = true\nrequired_plugins = ['a']\n"},
		"no CDI directory":      {text: "[cdi]\nspec_dirs = []\n", want: []string{"f.toml:2: cdi.spec_dirs", "cdi.enabled"}},
		"CDI turned off":        {text: "[cdi]\nenabled = false\nspec_dirs = []\n"},
		"relative CDI":          {text: "[cdi]\nspec_dirs = ['cdi']\n", want: []string{"cdi.spec_dirs", "absolute"}},
		"not a range":           {text: "[network]\npod_cidrs = ['ten']\n", want: []string{"not an address range"}},
		"no range with cni":     {text: "[network]\nmode='cni'\npod_cidrs = []\n"},
		"bridge name":           {text: "[network]\nbridge = 'a-very-long-name'\n", want: []string{"network.bridge", "11 bytes"}},
		"mtu":                   {text: "[network]\nmtu = 1\n", want: []string{"network.mtu"}},
		"plain http with path":  {text: "[image]\nplain_http = ['http://a/']\n", want: []string{"image.plain_http"}},
		"plain http with port":  {text: "[image]\nplain_http = ['registry.local:5000']\n"},
		"seccomp":               {text: "[workload]\nunset_seccomp = 'localhost'\n", want: []string{"workload.unset_seccomp"}},
		"layers":                {text: "[image]\nparallel = 0\n", want: []string{"image.parallel"}},
		"requests":              {text: "[image]\nranges = 7\n", want: []string{"f.toml:2: image.ranges"}},
		"ulimit":                {text: "[workload]\ndefault_ulimits=['files=1']\n", want: []string{"f.toml:2: workload.default_ulimits", "files=1"}},
		"sysctl of the host":    {text: "[workload]\ndefault_sysctls=['kernel.pid_max=1']\n", want: []string{"f.toml:2: workload.default_sysctls", "kernel.pid_max"}},
		"sysctl without value":  {text: "[workload]\ndefault_sysctls=['net.core.somaxconn']\n", want: []string{"f.toml:2: workload.default_sysctls"}},
		"relative classes":      {text: "[workload]\nrdt_config='rdt.yaml'\n", want: []string{"f.toml:2: workload.rdt_config"}},
		"log":                   {text: "[log]\nlevel='loud'\nformat='xml'\n", want: []string{"f.toml:2: log.level", "f.toml:3: log.format"}},
		"streaming address":     {text: "[streaming]\naddress='localhost'\n", want: []string{"f.toml:2: streaming.address", "IP address"}},
		"streaming port":        {text: "[streaming]\nport=65536\n", want: []string{"f.toml:2: streaming.port"}},
		"streaming without key": {text: "[streaming]\ntls_cert='/c'\n", want: []string{"f.toml:2: streaming.tls_cert", "tls_key"}},
		"token for good":        {text: "[streaming]\ntoken_lifetime='0s'\n", want: []string{"f.toml:2: streaming.token_lifetime"}},
		"relative shim program": {text: "[shim]\nshim='bin/shim'\n", want: []string{"f.toml:2: shim.shim"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Parse("f.toml", []byte(tt.text))
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if tt.check != nil && !tt.check(c) {
					t.Fatalf("got %+v", c)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a named file that is missing gives %v", err)
	}
	if err := os.WriteFile(path, []byte("state = '/s'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil || c.State != "/s" || c.SocketPath() != "/s/criserver.sock" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(defaultText)
	f.Add([]byte("network.mode = 'x'\n[[image]]\na.b.c = 1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("f", text)
		if err == nil && c.Check() != nil {
			t.Fatalf("parsed, but wrong: %v", c.Check())
		}
	})
}
