package native

import "testing"

// TestAllocations keeps the shim's part of a start and of an exec from growing, as the engine's test of this name does.
// The limits are a bit above what was counted when they were written.
func TestAllocations(t *testing.T) {
	limits := map[string]float64{"compile": 800, "create, start, wait": 560, "exec, wait": 190}
	r := newRuntime(t)
	spec := baseSpec("sleep")
	g := group(t)
	sleeping := running(t, r, Config{ID: "x", Spec: spec, Rootfs: tiny(t), Cgroup: g})
	process := *spec.Process
	process.Args = []string{"/bin/tiny"}
	short := baseSpec("exit", "0")
	short.Process.Args = []string{"/bin/tiny"}
	m, other := tiny(t), group(t)
	for name, do := range map[string]func() error{
		"compile": func() error {
			built, err := compileCreate(goldenInput(goldenSpec(), newKernel))
			if err == nil {
				_, err = built.plan.Encode()
			}
			return err
		},
		"create, start, wait": func() error {
			p, err := r.Create(t.Context(), Config{ID: "y", Spec: short, Rootfs: m, Cgroup: other})
			if err == nil {
				err = p.Start(t.Context())
			}
			if err == nil {
				status(t, p.Pidfd)
			}
			return err
		},
		"exec, wait": func() error {
			e, err := r.Exec(t.Context(), ExecConfig{Spec: spec, Process: &process, Target: sleeping.Pidfd, Cgroup: g})
			if err == nil {
				status(t, e.Pidfd)
			}
			return err
		},
	} {
		got := testing.AllocsPerRun(20, func() {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		})
		t.Logf("%s: %.0f allocations", name, got)
		if got > limits[name] {
			t.Errorf("%s makes %.0f allocations, the limit is %.0f (a benchmark with -memprofile says where)", name, got, limits[name])
		}
	}
}
