package cri

import (
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signalName turns SIGNAL_SIGTERM into "SIGTERM" and SIGNAL_SIGRTMINPLUS1 into "SIGRTMIN+1"; the default is "".
func signalName(field string, signal runtime.Signal) (string, error) {
	if signal == runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		return "", nil
	}
	name, known := runtime.Signal_name[int32(signal)]
	if !known {
		return "", invalid(field, "%d is not a signal", signal)
	}
	name = strings.TrimPrefix(name, "SIGNAL_")
	name = strings.Replace(name, "PLUS", "+", 1)
	return strings.Replace(name, "MINUS", "-", 1), nil
}

// signalOf is the inverse of signalName. What CRI has no name for is the default.
func signalOf(name string) runtime.Signal {
	name = strings.Replace(name, "+", "PLUS", 1)
	name = strings.Replace(name, "-", "MINUS", 1)
	return runtime.Signal(runtime.Signal_value["SIGNAL_"+name])
}
