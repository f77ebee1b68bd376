package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestUserNamespacesOfHandlers asserts of each program that the rig has that what Status says of it is so: its pods get user
// namespaces and mounts with mapped owners, or are refused them.
func TestUserNamespacesOfHandlers(t *testing.T) {
	if place.Runtimes == "" {
		t.Skip("no program with runc's command line is here")
	}
	n := sharedNode(t)
	needUser(t, n)
	ctx, cancel := callContext()
	defer cancel()
	s, err := n.d.Runtime.Status(ctx, &runtimev1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, h := range s.RuntimeHandlers {
		has[h.Name] = h.GetFeatures().GetUserNamespaces()
	}
	for one := range strings.SplitSeq(place.Runtimes, ",") {
		name, _, _ := strings.Cut(one, "=")
		t.Run(name, func(t *testing.T) {
			useHandler(t, name)
			if has[name] {
				c := n.runPod(t, inUser).run(t, command("sleep", "1000"), mappedVolume(t.TempDir(), "/volume"))
				if got := c.output(t, "stat", "-c", "%u:%g", "/", "/volume"); got != "0:0\n0:0\n" {
					t.Errorf("owners in the container are %q", got)
				}
				return
			}
			_, err := n.tryPod(t, inUser)
			wantCode(t, err, codes.InvalidArgument, "linux.mountExtensions.idmap")
			_, err = n.runPod(t).tryCreate(mappedVolume(t.TempDir(), "/volume"))
			wantCode(t, err, codes.InvalidArgument, "mount at /volume has mappings of owners")
		})
	}
}
