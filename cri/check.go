package cri

import (
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// maxHostname is what sethostname(2) takes on Linux.
const maxHostname = 64

// text refuses what cannot be an argument of execve(2), a path, or a value in a JSON record.
func text(field, s string) error {
	if strings.ContainsRune(s, 0) {
		return invalid(field, "contains a NUL byte")
	}
	if !utf8.ValidString(s) {
		return invalid(field, "is not UTF-8")
	}
	return nil
}

func texts(field string, all []string) error {
	for _, s := range all {
		if err := text(field, s); err != nil {
			return err
		}
	}
	return nil
}

// absolute checks a path that must be there and absolute, and cleans it.
func absolute(field, path string) (string, error) {
	if path == "" {
		return "", required(field)
	}
	if err := text(field, path); err != nil {
		return "", err
	}
	if !filepath.IsAbs(path) {
		return "", invalid(field, "%q is not an absolute path", path)
	}
	return filepath.Clean(path), nil
}

// word refuses what would break out of its line or column in resolv.conf or hosts.
func word(field, s string) error {
	if s == "" {
		return invalid(field, "is empty")
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f || r == utf8.RuneError {
			return invalid(field, "%q contains white space or a control character", s)
		}
	}
	return nil
}

func hostname(field, s string) error {
	if s == "" {
		return nil
	}
	if len(s) > maxHostname {
		return invalid(field, "%q has %d bytes; a host name has at most %d", s, len(s), maxHostname)
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._", c) >= 0) {
			return invalid(field, "%q contains %q; a host name is made of letters, digits, '-', '.' and '_'", s, c)
		}
	}
	return nil
}
