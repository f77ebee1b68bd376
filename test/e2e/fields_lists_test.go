package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const pauseImage = "pause:3.9"

// forget removes an image by its full name.
func (n *node) forget(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	if _, err := n.d.Images.RemoveImage(ctx, &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: name}}); err != nil {
		t.Errorf("RemoveImage %s: %v", name, err)
	}
}

// names of what a list answers, in its order.
func idsOf[T interface{ GetId() string }](names map[string]string, items []T) string {
	var all []string
	for _, item := range items {
		all = append(all, names[item.GetId()])
	}
	return strings.Join(all, " ")
}

// TestPodFilters asks each list of pods, and its stream, with each field of a filter.
func TestPodFilters(t *testing.T) {
	n := sharedNode(t)
	labelled := func(value string) podOption {
		return func(c *runtimev1.PodSandboxConfig) { c.Labels["l"] = value }
	}
	a, b := n.runPod(t, hostNetwork, labelled("a")), n.runPod(t, hostNetwork, labelled("b"))
	ctx, cancel := callContext()
	defer cancel()
	if _, err := n.d.Runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: b.id}); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{a.id: "a", b.id: "b"}
	state := func(s runtimev1.PodSandboxState) *runtimev1.PodSandboxStateValue {
		return &runtimev1.PodSandboxStateValue{State: s}
	}
	for name, tt := range map[string]struct {
		filter *runtimev1.PodSandboxFilter
		want   string
	}{
		"none":      {nil, "a b"},
		"id":        {&runtimev1.PodSandboxFilter{Id: b.id[:13]}, "b"},
		"ready":     {&runtimev1.PodSandboxFilter{State: state(runtimev1.PodSandboxState_SANDBOX_READY)}, "a"},
		"not ready": {&runtimev1.PodSandboxFilter{State: state(runtimev1.PodSandboxState_SANDBOX_NOTREADY)}, "b"},
		"label":     {&runtimev1.PodSandboxFilter{LabelSelector: map[string]string{"l": "a"}}, "a"},
		"all":       {&runtimev1.PodSandboxFilter{Id: b.id, LabelSelector: map[string]string{"l": "a"}}, ""},
	} {
		list, err := n.d.Runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{Filter: tt.filter})
		if err != nil {
			t.Fatal(err)
		}
		if got := idsOf(names, list.Items); got != tt.want {
			t.Errorf("%s: the list is %q, want %q", name, got, tt.want)
		}
		stream, err := n.d.Runtime.StreamPodSandboxes(ctx, &runtimev1.StreamPodSandboxesRequest{Filter: tt.filter})
		if err != nil {
			t.Fatal(err)
		}
		if got := idsOf(names, drain(t, stream.Recv, (*runtimev1.StreamPodSandboxesResponse).GetPodSandboxes)); got != tt.want {
			t.Errorf("%s: the stream is %q, want %q", name, got, tt.want)
		}
	}
	for name, tt := range map[string]struct {
		filter *runtimev1.PodSandboxStatsFilter
		want   string
	}{
		"id":    {&runtimev1.PodSandboxStatsFilter{Id: a.id[:13]}, "a"},
		"label": {&runtimev1.PodSandboxStatsFilter{LabelSelector: map[string]string{"l": "a"}}, "a"},
		"none":  {&runtimev1.PodSandboxStatsFilter{LabelSelector: map[string]string{"l": "c"}}, ""},
	} {
		list, err := n.d.Runtime.ListPodSandboxStats(ctx, &runtimev1.ListPodSandboxStatsRequest{Filter: tt.filter})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := n.d.Runtime.StreamPodSandboxStats(ctx, &runtimev1.StreamPodSandboxStatsRequest{Filter: tt.filter})
		if err != nil {
			t.Fatal(err)
		}
		streamed := drain(t, stream.Recv, (*runtimev1.StreamPodSandboxStatsResponse).GetPodSandboxStats)
		for what, stats := range map[string][]*runtimev1.PodSandboxStats{"list": list.Stats, "stream": streamed} {
			var of []*runtimev1.PodSandboxAttributes
			for _, s := range stats {
				of = append(of, s.Attributes)
			}
			if got := idsOf(names, of); got != tt.want {
				t.Errorf("stats by %s: the %s is %q, want %q", name, what, got, tt.want)
			}
		}
	}
}

// TestContainerFilters is TestPodFilters of containers.
func TestContainerFilters(t *testing.T) {
	n := sharedNode(t)
	labelled := func(value string) containerOption {
		return func(c *runtimev1.ContainerConfig) { c.Labels = map[string]string{"l": value} }
	}
	one, two := n.runPod(t, hostNetwork), n.runPod(t, hostNetwork)
	running := one.run(t, command("sleep", "1000"), labelled("a"))
	created := two.create(t, command("true"), labelled("a"))
	ended := two.run(t, command("true"), labelled("b"))
	ended.wait(t, callTimeout)
	names := map[string]string{running.id: "running", created.id: "created", ended.id: "ended"}
	state := func(s runtimev1.ContainerState) *runtimev1.ContainerStateValue {
		return &runtimev1.ContainerStateValue{State: s}
	}
	ctx, cancel := callContext()
	defer cancel()
	for name, tt := range map[string]struct {
		filter *runtimev1.ContainerFilter
		want   string
	}{
		"none":    {nil, "running created ended"},
		"id":      {&runtimev1.ContainerFilter{Id: ended.id[:13]}, "ended"},
		"pod":     {&runtimev1.ContainerFilter{PodSandboxId: two.id}, "created ended"},
		"label":   {&runtimev1.ContainerFilter{LabelSelector: map[string]string{"l": "a"}}, "running created"},
		"running": {&runtimev1.ContainerFilter{State: state(runtimev1.ContainerState_CONTAINER_RUNNING)}, "running"},
		"created": {&runtimev1.ContainerFilter{State: state(runtimev1.ContainerState_CONTAINER_CREATED)}, "created"},
		"exited":  {&runtimev1.ContainerFilter{State: state(runtimev1.ContainerState_CONTAINER_EXITED)}, "ended"},
		"unknown": {&runtimev1.ContainerFilter{State: state(runtimev1.ContainerState_CONTAINER_UNKNOWN)}, ""},
	} {
		list, err := n.d.Runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{Filter: tt.filter})
		if err != nil {
			t.Fatal(err)
		}
		if got := idsOf(names, list.Containers); got != tt.want {
			t.Errorf("%s: the list is %q, want %q", name, got, tt.want)
		}
		stream, err := n.d.Runtime.StreamContainers(ctx, &runtimev1.StreamContainersRequest{Filter: tt.filter})
		if err != nil {
			t.Fatal(err)
		}
		if got := idsOf(names, drain(t, stream.Recv, (*runtimev1.StreamContainersResponse).GetContainers)); got != tt.want {
			t.Errorf("%s: the stream is %q, want %q", name, got, tt.want)
		}
	}
	stats, err := n.d.Runtime.StreamContainerStats(ctx, &runtimev1.StreamContainerStatsRequest{
		Filter: &runtimev1.ContainerStatsFilter{LabelSelector: map[string]string{"l": "a"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := drain(t, stats.Recv, (*runtimev1.StreamContainerStatsResponse).GetContainerStats); len(got) != 1 || got[0].Attributes.Id != running.id {
		t.Errorf("the stream of stats is %v", got)
	}
}

// TestImageQueries asks for one image among two, by its name and its id.
func TestImageQueries(t *testing.T) {
	n := sharedNode(t)
	if err := n.pull(pauseImage); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.forget(t, image(pauseImage)) })
	ctx, cancel := callContext()
	defer cancel()
	s, err := n.d.Images.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: image(pauseImage)}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s.Image.GetUid().GetValue() != 65535 || !strings.Contains(s.Info["config"], "/pause") {
		t.Errorf("a verbose status is %v", s)
	}
	for name, want := range map[string]int{"": 2, image(pauseImage): 1, s.Image.Id: 1, image("no/such:image"): 0} {
		filter := &runtimev1.ImageFilter{Image: &runtimev1.ImageSpec{Image: name}}
		list, err := n.d.Images.ListImages(ctx, &runtimev1.ListImagesRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := n.d.Images.StreamImages(ctx, &runtimev1.StreamImagesRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		streamed := drain(t, stream.Recv, (*runtimev1.StreamImagesResponse).GetImages)
		for what, images := range map[string][]*runtimev1.Image{"list": list.Images, "stream": streamed} {
			if len(images) != want || want == 1 && images[0].Id != s.Image.Id {
				t.Errorf("%q: the %s has %v", name, what, images)
			}
		}
	}
	_, err = n.d.Images.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: image(pauseImage), RuntimeHandler: "nothing"}})
	wantCode(t, err, codes.InvalidArgument, "image.runtime_handler")
}

// TestVersions asks what the daemon is.
func TestVersions(t *testing.T) {
	n := sharedNode(t)
	ctx, cancel := callContext()
	defer cancel()
	for _, asked := range []string{"", "v1", "v9"} { // what a client is, changes nothing
		v, err := n.d.Runtime.Version(ctx, &runtimev1.VersionRequest{Version: asked})
		if err != nil || v.RuntimeName != "criserver" || v.RuntimeApiVersion != "v1" || v.RuntimeVersion == "" {
			t.Errorf("Version: %v, %v", v, err)
		}
	}
	c, err := n.d.Runtime.RuntimeConfig(ctx, &runtimev1.RuntimeConfigRequest{})
	if err != nil || c.GetLinux().GetCgroupDriver() != runtimev1.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig: %v, %v", c, err)
	}
}

// guarded is the registry behind a server that wants a name and a password, itself or at a server of tokens, which also takes
// an identity token.
func guarded(t *testing.T, tokens bool) string {
	t.Helper()
	const token = "a-registry-token"
	known := func(name, password string) bool { return name == "user" && password == "secret" }
	basic := func(r *http.Request) bool {
		name, password, ok := r.BasicAuth()
		return ok && known(name, password)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		challenge := `Basic realm="e2e"`
		if tokens {
			challenge = fmt.Sprintf(`Bearer realm=%q,service="e2e"`, server.URL+"/token")
		}
		good := r.FormValue("refresh_token") == "an-identity-token" || known(r.FormValue("username"), r.FormValue("password"))
		switch {
		case r.URL.Path == "/token" && (good || basic(r)):
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token": %q}`, token)
		case r.URL.Path != "/token" && (!tokens && basic(r) || r.Header.Get("Authorization") == "Bearer "+token):
			r.Header.Del("Authorization")
			proxy.ServeHTTP(w, r)
		default:
			w.Header().Set("WWW-Authenticate", challenge)
			http.Error(w, "who are you?", http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// TestPullCredentials pulls with each form of a credential, and with those that do not count.
func TestPullCredentials(t *testing.T) {
	n := sharedNode(t)
	plain, host := guarded(t, false), guarded(t, true)
	name := host + "/" + pauseImage
	encode := base64.StdEncoding.EncodeToString
	for what, tt := range map[string]struct {
		auth *runtimev1.AuthConfig
		good bool
	}{
		"nothing":        {nil, false},
		"password":       {&runtimev1.AuthConfig{Username: "user", Password: "secret"}, true},
		"basic":          {&runtimev1.AuthConfig{Username: "user", Password: "secret", ServerAddress: plain}, true},
		"wrong password": {&runtimev1.AuthConfig{Username: "user", Password: "public"}, false},
		"auth":           {&runtimev1.AuthConfig{Auth: encode([]byte("user:secret"))}, true},
		"this server":    {&runtimev1.AuthConfig{Username: "user", Password: "secret", ServerAddress: "http://" + host + "/v2/"}, true},
		"another server": {&runtimev1.AuthConfig{Username: "user", Password: "secret", ServerAddress: "registry.test"}, false},
		"registry token": {&runtimev1.AuthConfig{RegistryToken: "a-registry-token"}, true},
		"wrong token":    {&runtimev1.AuthConfig{RegistryToken: "x"}, false},
		"identity token": {&runtimev1.AuthConfig{IdentityToken: "an-identity-token"}, true},
	} {
		t.Run(what, func(t *testing.T) {
			ctx, cancel := callContext()
			defer cancel()
			name := name
			if tt.auth.GetServerAddress() == plain {
				name = plain + "/" + pauseImage
			}
			r, err := n.d.Images.PullImage(ctx, &runtimev1.PullImageRequest{
				Image: &runtimev1.ImageSpec{Image: name, Annotations: map[string]string{"of.the/pod": "has no effect"}}, Auth: tt.auth,
				SandboxConfig: podConfig(t, n),
			})
			if !tt.good {
				if err == nil {
					n.forget(t, name)
				}
				wantCode(t, err, codes.PermissionDenied, name)
				return
			}
			if err != nil {
				t.Fatalf("PullImage: %v", err)
			}
			defer n.forget(t, name)
			p := n.runPod(t, hostNetwork)
			c := p.run(t, func(c *runtimev1.ContainerConfig) { c.Image.Image = r.ImageRef })
			if s := c.status(t); s.State != runtimev1.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container is %v", s.State)
			}
			if err := p.down(); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := callContext()
	defer cancel()
	_, err := n.d.Images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: name}, Auth: &runtimev1.AuthConfig{Auth: "%"}})
	wantCode(t, err, codes.InvalidArgument, "auth")
}
