package registry

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// hostTable is what hosts.toml may say of an endpoint.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// parseHosts checks a hosts.toml, and answers the files that it names. The library that applies it passes over what it does not
// know, and takes a file with a wrong value for none: pulls that were meant for a mirror would go elsewhere.
func parseHosts(content []byte) (files []string, err error) {
	var file struct {
		hostTable
		Server string               `toml:"server"`
		Host   map[string]hostTable `toml:"host"`
	}
	if err := toml.NewDecoder(bytes.NewReader(content)).DisallowUnknownFields().Decode(&file); err != nil {
		if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(missing.Errors) > 0 {
			return nil, fmt.Errorf("unknown key %s", strings.Join(missing.Errors[0].Key(), "."))
		}
		return nil, err
	}
	if files, err = file.check(); err != nil {
		return nil, err
	}
	if err := checkServer(file.Server); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	tables := hostTables(content)
	for host, table := range file.Host {
		at := fmt.Sprintf("host.%q", host)
		more, err := table.check()
		if err == nil {
			err = checkServer(host)
		}
		if err == nil && host == "" {
			err = errors.New("it has no name")
		}
		if err == nil && !slices.Contains(tables, host) {
			err = fmt.Errorf("write it as a table, [%s]: the order of tables is that in which hosts are asked", at)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		files = append(files, more...)
	}
	return files, nil
}

// check looks at the values, and answers the files that they name.
func (t *hostTable) check() ([]string, error) {
	for _, one := range t.Capabilities {
		if !slices.Contains([]string{"pull", "resolve", "push", "referrers"}, strings.ToLower(one)) {
			return nil, fmt.Errorf("capabilities: %q is none of pull, resolve, push, referrers", one)
		}
	}
	files, err := names(t.CA, false)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	more, err := names(t.Client, true)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	for name, value := range t.Header {
		if _, err := names(value, false); err != nil || value == nil {
			return nil, fmt.Errorf("header.%s: a text, or a list of texts", name)
		}
	}
	if t.DialTimeout != "" {
		if d, err := time.ParseDuration(t.DialTimeout); err != nil || d <= 0 {
			return nil, fmt.Errorf("dial_timeout: %q is not a duration such as \"10s\"", t.DialTimeout)
		}
	}
	return append(files, more...), nil
}

// names reads a text or a list of texts, and with pairs a list that may have pairs of texts.
func names(value any, pairs bool) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var all []string
		for _, one := range v {
			pair, isPair := one.([]any)
			more, err := names(one, false)
			if err != nil || isPair && (!pairs || len(pair) != 2) {
				return nil, fmt.Errorf("%v is not a file%s", one, map[bool]string{true: " or a pair of files", false: ""}[pairs])
			}
			all = append(all, more...)
		}
		return all, nil
	}
	return nil, fmt.Errorf("%v is neither a text nor a list of texts", value)
}

// checkServer takes a host, host:port or an http(s) URL without what would be dropped; "" is the registry itself.
func checkServer(server string) error {
	if server == "" {
		return nil
	}
	if scheme, _, found := strings.Cut(server, "://"); found && scheme != "http" && scheme != "https" {
		return fmt.Errorf("%q is reached by neither https nor http", server)
	}
	if !strings.HasPrefix(server, "http") { // as the library has it
		server = "https://" + server
	}
	u, err := url.Parse(server)
	switch {
	case err != nil:
		return err
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return fmt.Errorf("%q is not a URL such as https://mirror.example", server)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q: a URL of a host has no user, query or fragment", u.Redacted())
	}
	return nil
}

// hostTables are the names N of the tables [host.N], and of those below them.
func hostTables(content []byte) (all []string) {
	var p unstable.Parser
	p.Reset(content)
	for p.NextExpression() {
		if e := p.Expression(); e.Kind == unstable.Table {
			var parts []string
			for it := e.Key(); it.Next(); {
				parts = append(parts, string(it.Node().Data))
			}
			if len(parts) > 1 && parts[0] == "host" {
				all = append(all, parts[1])
			}
		}
	}
	return all
}
