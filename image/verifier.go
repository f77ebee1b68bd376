package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/internal/bounded"
)

// maxVerdict is how much of what a verifier prints is read, bytes.
const maxVerdict = 32 << 10

const defaultVerifierTime = 10 * time.Second

// Verifiers are programs that are asked about each image that is pulled, in the way of containerd's image verifiers: with the
// arguments -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json, and the descriptor as JSON on
// standard input. All have to exit with 0. What one prints on standard output is its reason.
type Verifiers struct {
	// Dir has the programs, which are asked in the order of their names; "" is no verification. Without a program in it
	// nothing can be pulled: a verifier that is missing has not agreed.
	Dir string
	// Timeout is for each program; 0 is ten seconds. One that takes longer has not agreed.
	Timeout time.Duration
}

// verify asks all verifiers. errdefs.ErrPermissionDenied when one refuses, ErrFailedPrecondition when one cannot be asked.
func (v Verifiers) verify(ctx context.Context, name string, d ocispec.Descriptor) error {
	if v.Dir == "" {
		return nil
	}
	entries, err := os.ReadDir(v.Dir) // sorted
	if err != nil {
		return fmt.Errorf("image verifiers (image.verifier.bin_dir): %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if len(entries) == 0 {
		return fmt.Errorf("image verifiers: there is none in %s (image.verifier.bin_dir): %w", v.Dir, errdefs.ErrFailedPrecondition)
	}
	input, err := json.Marshal(ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	if err != nil {
		return err
	}
	for _, entry := range entries {
		command := bounded.Command{
			Path:  filepath.Join(v.Dir, entry.Name()),
			Args:  []string{"-name", name, "-digest", d.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor},
			Stdin: input, MaxOutput: maxVerdict,
		}
		if err := v.ask(ctx, command); err != nil {
			return fmt.Errorf("image verifier %s: %w", entry.Name(), err)
		}
	}
	return nil
}

func (v Verifiers) ask(ctx context.Context, command bounded.Command) error {
	limit := v.Timeout
	if limit <= 0 {
		limit = defaultVerifierTime
	}
	late := fmt.Errorf("no answer within %s (image.verifier.timeout): %w", limit, errdefs.ErrFailedPrecondition)
	bound, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	out, err := bounded.Run(bound, command)
	switch {
	case errors.Is(err, late), ctx.Err() != nil:
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	case out.Code == 0:
		return nil
	}
	return fmt.Errorf("refused %s: %s (exit code %d): %w", command.Args[3], verdict(out), out.Code, errdefs.ErrPermissionDenied)
}

// verdict is what a verifier said, fit for a line of an error.
func verdict(out bounded.Output) string {
	const enough = 2000
	text := out.Stdout
	if len(strings.TrimSpace(string(text))) == 0 {
		text = out.Stderr
	}
	line := strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(text), "?")))
	if len(line) > enough || out.Cut {
		line = strings.ToValidUTF8(line[:min(len(line), enough)], "") + " (cut)"
	}
	if line == "" {
		return "it gave no reason"
	}
	return line
}
