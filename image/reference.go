package image

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Normalize gives the full name of a reference as docker reads it: "busybox" is docker.io/library/busybox:latest, and of
// a name with tag and digest the digest counts. errdefs.ErrInvalidArgument when it is none.
func Normalize(ref string) (string, error) {
	named, err := parseName(ref)
	if err != nil {
		return "", err
	}
	return named.String(), nil
}

func parseName(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w: %w", ref, errdefs.ErrInvalidArgument, err)
	}
	return named, nil
}

// digestName is the name by digest in the repository of a name.
func digestName(named reference.Named, d digest.Digest) string {
	return reference.TrimNamed(named).Name() + "@" + d.String()
}

// idPrefix says whether ref can only, or can also, be an ID or the beginning of one, and gives it in the long form.
func idPrefix(ref string) (prefix string, only bool, ok bool) {
	digits, only := strings.CutPrefix(ref, "sha256:")
	if digits == "" || len(digits) > 64 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", only, false
	}
	return "sha256:" + digits, only || len(digits) == 64, true
}
