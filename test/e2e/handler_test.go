package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHandlers runs the happy path through each program that the rig has, whatever E2E_HANDLER says, beside our own runtime.
func TestHandlers(t *testing.T) {
	if place.Runtimes == "" {
		t.Skip("no program with runc's command line is here")
	}
	for one := range strings.SplitSeq(place.Runtimes, ",") {
		name, _, _ := strings.Cut(one, "=")
		t.Run(name, func(t *testing.T) {
			useHandler(t, name)
			TestHappyPath(t)
			TestTTY(t)
		})
	}
}

// TestUnknownHandler names what this node has.
func TestUnknownHandler(t *testing.T) {
	n := sharedNode(t)
	useHandler(t, "kata")
	_, err := n.tryPod(t)
	wantCode(t, err, codes.InvalidArgument, `runtime handler "kata" is not configured on this node, which has`)
	wantCode(t, err, codes.InvalidArgument, `"native"`)
	useHandler(t, "io.containerd.runc.v2")
	_, err = n.tryPod(t)
	wantCode(t, err, codes.InvalidArgument, `"io.containerd.runc.v2" is a shim of containerd`)
}

// TestHandlersAreListed asserts that a client learns the handlers, native's features, and those that the programs tell.
func TestHandlersAreListed(t *testing.T) {
	n := sharedNode(t)
	ctx, cancel := callContext()
	defer cancel()
	s, err := n.d.Runtime.Status(ctx, &runtimev1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]*runtimev1.RuntimeHandlerFeatures{}
	for _, h := range s.RuntimeHandlers {
		listed[h.Name] = h.Features
	}
	want := []string{"", "native"}
	for one := range strings.SplitSeq(place.Runtimes, ",") {
		if name, _, ok := strings.Cut(one, "="); ok {
			want = append(want, name)
		}
	}
	for _, name := range want {
		if listed[name] == nil {
			t.Errorf("handler %q is not listed: %v", name, s.RuntimeHandlers)
		}
	}
	for _, name := range []string{"", "native"} {
		if !listed[name].GetRecursiveReadOnlyMounts() {
			t.Errorf("handler %q does not have recursive_read_only_mounts", name)
		}
	}
}
