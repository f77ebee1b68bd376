package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/internal/bounded"
)

// helperPrefix begins the names of credential helpers' programs.
const helperPrefix = "docker-credential-"

// The bounds of a credential helper.
const (
	helperTime   = 30 * time.Second
	helperOutput = 64 << 10
)

// notFound is what helpers say, with an exit code of 1, of a host that they know nothing of.
const notFound = "credentials not found"

// tokenUser stands for a user where a helper has an identity token.
const tokenUser = "<token>"

// checkHelper takes names of helpers that cannot lead out of the PATH.
func checkHelper(name string) error {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || name == "" {
		return fmt.Errorf("%q is not the name of a credential helper: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// runHelper asks docker-credential-<name> for a host's credential. The zero value when it has none.
func runHelper(ctx context.Context, name, host string) (Auth, error) {
	server := host
	if host == "docker.io" {
		server = dockerHub
	}
	path, err := exec.LookPath(helperPrefix + name)
	if err != nil {
		return Auth{}, fmt.Errorf("credential helper %s%s: %w: %w", helperPrefix, name, errdefs.ErrFailedPrecondition, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, helperTime, fmt.Errorf("it did not answer within %s", helperTime))
	defer cancel()
	run, err := bounded.Run(ctx, bounded.Command{Path: path, Args: []string{"get"}, Stdin: []byte(server), MaxOutput: helperOutput})
	if err != nil {
		return Auth{}, fmt.Errorf("credential helper %s%s: %w: %w", helperPrefix, name, errdefs.ErrUnavailable, err)
	}
	if run.Code != 0 {
		if said := strings.TrimSpace(string(run.Stdout)); !strings.Contains(said, notFound) {
			return Auth{}, fmt.Errorf("credential helper %s%s for %s: exit code %d: %.200q: %w", helperPrefix, name, server, run.Code, said, errdefs.ErrUnavailable)
		}
		return Auth{}, nil
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(run.Stdout, &answer); err != nil || answer.Secret == "" {
		if err == nil {
			err = errors.New("it has no secret")
		}
		return Auth{}, fmt.Errorf("credential helper %s%s for %s: its answer is of no use: %w: %w", helperPrefix, name, server, errdefs.ErrUnavailable, err)
	}
	if answer.Username == tokenUser {
		return Auth{IdentityToken: answer.Secret}, nil
	}
	return Auth{Username: answer.Username, Password: answer.Secret}, nil
}
