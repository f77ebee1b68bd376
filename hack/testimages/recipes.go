package main

import (
	"archive/tar"
	"context"
	"errors"
	"path"
	"runtime"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`
	group = `root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
`
	arch       = runtime.GOARCH
	searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// addImages makes all images but the big ones.
func addImages(ctx context.Context, l *layout, debs map[string]string) error {
	base, err := busyboxLayer(ctx, l, debs)
	if err != nil {
		return err
	}
	for _, add := range []func(context.Context, *layout, map[string]string, layer) error{
		addShells, addServers, addStatic, addUsers, addTags, addBench, addVolumes,
	} {
		if err := add(ctx, l, debs, base); err != nil {
			return err
		}
	}
	return nil
}

// isLibrary says whether a file of a package is a shared library or the dynamic loader.
func isLibrary(name string) bool {
	return (strings.HasPrefix(name, "lib") || strings.HasPrefix(name, "usr/lib/")) && strings.Contains(path.Base(name), ".so") &&
		!strings.Contains(name, "/gconv/") && !strings.Contains(name, "/engines") && !strings.Contains(name, "/ossl-modules/") && !strings.Contains(name, "/audit/")
}

// busyboxLayer is busybox with its applets as hard links, ipcs, pgrep, their libraries, and a few accounts.
func busyboxLayer(ctx context.Context, l *layout, debs map[string]string) (layer, error) {
	t := newTree()
	for _, dir := range []string{"dev", "etc", "home", "mnt", "proc", "run", "sys", "usr/local/bin", "var/log", "var/www"} {
		t.dir(dir, 0o755)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	t.dir("var/tmp", 0o1777)
	t.file("etc/passwd", 0o644, passwd)
	t.file("etc/group", 0o644, group)
	t.file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n")
	take := map[string]func(string) bool{
		"busybox":    func(name string) bool { return name == "bin/busybox" },
		"util-linux": func(name string) bool { return name == "usr/bin/ipcs" },
		"procps":     func(name string) bool { return name == "usr/bin/pgrep" },
	}
	for _, library := range []string{"libc6", "libproc2-0", "libsystemd0", "libcap2", "libgcrypt20", "libgpg-error0", "liblzma5", "libzstd1", "liblz4-1"} {
		take[library] = isLibrary
	}
	for _, name := range packages {
		if take[name] == nil {
			continue
		}
		if err := t.deb(ctx, debs[name], take[name]); err != nil {
			return layer{}, err
		}
	}
	busybox := t.entries["bin/busybox"]
	if busybox == nil {
		return layer{}, errors.New("package busybox has no bin/busybox")
	}
	names, err := applets(ctx, string(busybox.body))
	if err != nil {
		return layer{}, err
	}
	for _, name := range names {
		if t.entries[name] == nil {
			t.hardlink(name, "bin/busybox")
		}
	}
	return l.layer("gzip", t.write)
}

// one stores a layer with a single file.
func one(l *layout, name string, mode int64, body string) (layer, error) {
	t := newTree()
	t.file(name, mode, body)
	return l.layer("gzip", t.write)
}

func addShells(_ context.Context, l *layout, _ map[string]string, base layer) error {
	shell := ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"sh"}}
	return errors.Join(
		l.add(image{layers: []layer{base}, config: shell, docker: true}, "e2e-test-images/busybox:1.29-2"),
		l.add(image{layers: []layer{base}, config: shell}, "criserver/busybox:latest"),
	)
}

func addServers(ctx context.Context, l *layout, debs map[string]string, base layer) error {
	if err := addNginx(ctx, l, debs, base, 80, "e2e-test-images/nginx:1.14-2"); err != nil {
		return err
	}
	if err := addNginx(ctx, l, debs, base, 12003, "k8s-staging-cri-tools/hostnet-nginx-amd64:latest", "k8s-staging-cri-tools/hostnet-nginx-"+arch+":latest"); err != nil {
		return err
	}
	page, err := one(l, "var/www/index.html", 0o644, "<html><body><h1>It works!</h1></body></html>\n")
	if err != nil {
		return err
	}
	if err := l.add(image{layers: []layer{base, page}, config: httpd(80)}, "e2e-test-images/httpd:2.4.39-4"); err != nil {
		return err
	}
	return addWeb(l, base)
}

// httpd is the configuration of an image that serves /var/www by busybox httpd.
func httpd(port int) ocispec.ImageConfig {
	return ocispec.ImageConfig{
		Env:          []string{searchPath},
		Cmd:          []string{"sh", "-c", "echo httpd serves port " + strconv.Itoa(port) + "; exec httpd -f -vv -p " + strconv.Itoa(port) + " -h /var/www"},
		ExposedPorts: map[string]struct{}{strconv.Itoa(port) + "/tcp": {}}, StopSignal: "SIGTERM",
	}
}

// addWeb makes the web server of the end-to-end tests and the demo: an index, whose other platform is of no use here.
func addWeb(l *layout, base layer) error {
	page, err := one(l, "var/www/index.html", 0o644, "<html><body><h1>Hello from criserver</h1></body></html>\n")
	if err != nil {
		return err
	}
	other := "arm64"
	if arch == other {
		other = "amd64"
	}
	foreign, err := l.manifest(image{layers: []layer{page}, config: httpd(80), arch: other})
	if err != nil {
		return err
	}
	native, err := l.manifest(image{layers: []layer{base, page}, config: httpd(80)})
	if err != nil {
		return err
	}
	return l.addIndex([]ocispec.Descriptor{foreign, native}, "criserver/web:latest")
}

// addNginx makes an image of nginx, logging to the standard streams.
func addNginx(ctx context.Context, l *layout, debs map[string]string, base layer, port int, names ...string) error {
	t := newTree()
	listen := strconv.Itoa(port)
	t.file("etc/nginx/nginx.conf", 0o644, `daemon off;
user www-data;
worker_processes 1;
error_log /dev/stderr notice;
pid /var/run/nginx.pid;
events { worker_connections 256; }
http {
  include /etc/nginx/mime.types;
  access_log /dev/stdout;
  server {
    listen `+listen+` default_server;
    listen [::]:`+listen+` default_server;
    root /usr/share/nginx/html;
  }
}
`)
	t.file("usr/share/nginx/html/index.html", 0o644, "<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>\n")
	t.dir("var/lib/nginx", 0o755)
	t.dir("var/run", 0o755)
	t.dir("var/log/nginx", 0o755)
	for _, name := range []string{"libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"} {
		if err := t.deb(ctx, debs[name], isLibrary); err != nil {
			return err
		}
	}
	if err := t.deb(ctx, debs["nginx"], func(name string) bool { return name == "usr/sbin/nginx" }); err != nil {
		return err
	}
	if err := t.deb(ctx, debs["nginx-common"], func(name string) bool { return name == "etc/nginx/mime.types" }); err != nil {
		return err
	}
	server, err := l.layer("gzip", t.write)
	if err != nil {
		return err
	}
	return l.add(image{layers: []layer{base, server}, config: ocispec.ImageConfig{
		Env: []string{searchPath}, Cmd: []string{"nginx"}, StopSignal: "SIGTERM",
		ExposedPorts: map[string]struct{}{listen + "/tcp": {}},
	}}, names...)
}

// addStatic makes the images around our own static programs.
func addStatic(ctx context.Context, l *layout, _ map[string]string, base layer) error {
	setuid, err := guest(ctx, "effuid")
	if err != nil {
		return err
	}
	effuid, err := one(l, "nnp", 0o4755, setuid)
	if err != nil {
		return err
	}
	if err := l.add(image{layers: []layer{base, effuid}, config: ocispec.ImageConfig{
		Env: []string{searchPath}, Entrypoint: []string{"/nnp"},
	}}, "e2e-test-images/nonewprivs:1.3"); err != nil {
		return err
	}
	health, err := guest(ctx, "health")
	if err != nil {
		return err
	}
	server, err := one(l, "health", 0o755, health)
	if err != nil {
		return err
	}
	if err := l.add(image{layers: []layer{server}, config: ocispec.ImageConfig{
		Env: []string{searchPath}, Entrypoint: []string{"/health"}, ExposedPorts: map[string]struct{}{"5051/tcp": {}},
	}}, "criserver/health:latest"); err != nil {
		return err
	}
	program, err := guest(ctx, "pause")
	if err != nil {
		return err
	}
	pause, err := one(l, "pause", 0o755, program)
	if err != nil {
		return err
	}
	for _, version := range []string{"3.9", "3.10"} {
		if err := l.add(image{layers: []layer{pause}, config: ocispec.ImageConfig{
			Env: []string{searchPath}, Entrypoint: []string{"/pause"}, User: "65535:65535", Labels: map[string]string{"version": version},
		}}, "pause:"+version); err != nil {
			return err
		}
	}
	return nil
}

// addUsers makes the images whose configuration names a user.
func addUsers(_ context.Context, l *layout, _ map[string]string, base layer) error {
	for _, variant := range []struct{ name, user string }{
		{"uid", "1002"}, {"username", "www-data"}, {"uid-group", "1003:1004"}, {"username-group", "www-data:1004"},
	} {
		if err := l.add(image{layers: []layer{base}, config: ocispec.ImageConfig{
			Env: []string{searchPath}, Cmd: []string{"sh"}, User: variant.user,
		}}, "k8s-staging-cri-tools/test-image-user-"+variant.name+":latest"); err != nil {
			return err
		}
	}
	accounts, err := l.layer("gzip", func(w *tar.Writer) error {
		t := newTree()
		t.file("etc/passwd", 0o644, passwd+"default-user:x:1000:1000::/home/default-user:/bin/sh\n")
		t.file("etc/group", 0o644, group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
		return t.write(w)
	})
	if err != nil {
		return err
	}
	return l.add(image{layers: []layer{base, accounts}, config: ocispec.ImageConfig{
		Env: []string{searchPath}, Cmd: []string{"sh"}, User: "1000",
	}}, "k8s-staging-cri-tools/test-image-predefined-group:latest")
}

// addTags makes images that differ in a file only, and one with several tags.
func addTags(_ context.Context, l *layout, _ map[string]string, base layer) error {
	const prefix = "k8s-staging-cri-tools/test-image-"
	for _, names := range [][]string{
		{"latest:latest"}, {"tag:test", "tag:all"}, {"digest:latest"}, {"1:latest"}, {"2:latest"}, {"3:latest"}, {"tags:1", "tags:2", "tags:3"},
	} {
		marker, err := one(l, "marker", 0o644, names[0]+"\n")
		if err != nil {
			return err
		}
		full := make([]string, len(names))
		for i, name := range names {
			full[i] = prefix + name
		}
		if err := l.add(image{layers: []layer{base, marker}, config: ocispec.ImageConfig{
			Env: []string{searchPath}, Cmd: []string{"sh"},
		}}, full...); err != nil {
			return err
		}
	}
	return nil
}
