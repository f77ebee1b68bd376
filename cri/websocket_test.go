package cri

import (
	"encoding/json"
	"errors"
	"testing"

	utilexec "k8s.io/utils/exec"
)

func TestStatusOfSession(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"success": {nil, `{"status":"Success"}`},
		"exit code": {utilexec.CodeExitError{Err: errors.New("exit code 7"), Code: 7},
			`{"status":"Failure","message":"command terminated with non-zero exit code 7","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}`},
		"error": {errors.New("no such thing"),
			`{"status":"Failure","message":"Internal error occurred: no such thing","reason":"InternalError","code":500}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := json.Marshal(statusOfSession(tt.err))
			if err != nil || string(got) != tt.want {
				t.Errorf("%s, %v, want %s", got, err, tt.want)
			}
		})
	}
}
