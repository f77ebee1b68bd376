package e2e

import (
	"bytes"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestImagePullCommand pulls by the operator's command, looks at the pull from another, and lists the image.
func TestImagePullCommand(t *testing.T) {
	n := imagesNode(t)
	r := newSlowRegistry(t)
	_, name := randomImage(t, r, rand.New(rand.NewPCG(9, 9)), 0)
	r.setPause(20 * time.Millisecond)
	run := func(args ...string) (string, error) {
		args = append([]string{"image", args[0], "--config", n.d.Config}, args[1:]...)
		out, err := exec.CommandContext(t.Context(), filepath.Join(place.BinDir, "criserver"), args...).CombinedOutput()
		return string(out), err
	}
	var pulled bytes.Buffer
	pull := exec.CommandContext(t.Context(), filepath.Join(place.BinDir, "criserver"), "image", "pull", "--config", n.d.Config, "--json", name)
	pull.Stdout, pull.Stderr = &pulled, &pulled
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	seen := false
	for deadline := time.Now().Add(20 * time.Second); !seen && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		out, err := run("progress", "--json")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		seen = strings.Contains(out, `"ref":"`+name+`"`) && strings.Contains(out, `"layers_total":5`) && strings.Contains(out, `"phase":"fetching"`)
	}
	if !seen {
		t.Error("the pull was not seen under way")
	}
	r.setPause(0)
	if err := pull.Wait(); err != nil || !strings.Contains(pulled.String(), `"id":"sha256:`) || !strings.Contains(pulled.String(), `"bytes_total":`) {
		t.Errorf("%v\n%s", err, pulled.String())
	}
	if out, err := run("list"); err != nil || !strings.Contains(out, name) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := run("pull", "--quiet", r.host+"/none:1"); err == nil || !strings.Contains(out, "(NotFound)") || !strings.Contains(out, r.host+"/v2/none/manifests/1: 404") {
		t.Errorf("an image that is not there: %v\n%s", err, out)
	}
}
